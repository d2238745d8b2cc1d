"""What pruning has brought: latency, size and work of compiled networks, layer by layer, and pictures of it."""

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from torch import Tensor, nn

from asrkit.compress.codegen import load_network
from asrkit.compress.codegen.runtime import WEIGHTS
from asrkit.compress.engines import ENGINES, in_c, seconds_by_turns
from asrkit.compress.mapping import Mapping as SchemeMapping
from asrkit.compress.schemes import Scheme
from asrkit.compress.sparsity import report, total
from asrkit.errors import InputError
from asrkit.progress import progress
from asrkit.scoring.pictures import BLUE, LOSS_COLOURS, STYLE, VERMILION

LATENCY = "latency, ms (one thread)"
ERRORS = {"accuracy": "errors, % of test images", "wer": "word error rate, %"}
DENSE_ENGINES = tuple(name for name in ENGINES if name != "c")
Compilable = tuple[nn.Module, tuple[Tensor, ...], Sequence[tuple[int, int]]]  # network, inputs, states


@dataclass(frozen=True)
class Measured:
    """A compiled network."""

    seconds: float
    layers: dict[str, float]
    """Seconds of each layer, by its path."""
    bytes: int
    """Of its weights."""


def measure_networks(networks: Sequence[Compilable]) -> tuple[list[Measured], dict[str, float]]:
    """Compile networks and time them by turns, and the first one, which is dense, in the dense engines as well.

    Returns:
        what was measured of each network, and the seconds of the first in each engine that is installed.
    """
    with tempfile.TemporaryDirectory() as place:
        ready: dict[int | str, Callable[[], Any]] = {}
        compiled = []
        for i, (network, inputs, states) in enumerate(progress(networks, "compiling", unit="network")):
            folder = Path(place) / str(i)
            folder.mkdir()
            ready[i] = in_c(network, inputs, folder, states).bound
            compiled.append(load_network(folder))
        network, inputs, _ = networks[0]
        for name in DENSE_ENGINES:
            folder = Path(place) / name
            folder.mkdir()
            with suppress(InputError):  # not installed
                ready[name] = ENGINES[name](network, inputs, folder).bound
        seconds = seconds_by_turns(ready)
        measured = [
            Measured(seconds[i], network.profile(), (network.folder / WEIGHTS).stat().st_size)
            for i, network in enumerate(compiled)
        ]
        return measured, {name: seconds[name] for name in DENSE_ENGINES if name in seconds}


def figures(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    found: Measured,
    dense: Measured,
    engines: Mapping[str, float],
    mapping: SchemeMapping,
) -> dict[str, Any]:
    """Return the figures of a network beside those of the dense one, as JSON has them."""
    rows = report(network, inputs)
    everything = total(rows)
    return {
        "milliseconds": 1e3 * found.seconds,
        "dense_milliseconds": 1e3 * dense.seconds,
        "speed_up": dense.seconds / found.seconds,
        "engines_milliseconds": {name: 1e3 * seconds for name, seconds in engines.items()},
        "over_best_engine": min(dense.seconds, *engines.values()) / found.seconds,
        "weights": everything.weights,
        "kept": everything.kept / everything.weights,
        "macs": everything.macs,
        "macs_kept": everything.macs_kept / everything.macs,
        "bytes": found.bytes,
        "layers": [
            {
                "path": row.path,
                "kind": row.kind,
                "shape": list(row.shape),
                "scheme": str(mapping[row.path].scheme) if row.path in mapping else "dense",
                "kept": row.kept / row.weights,
                "microseconds": 1e6 * found.layers.get(row.path, 0.0),
                "dense_microseconds": 1e6 * dense.layers.get(row.path, 0.0),
            }
            for row in rows
        ],
    }


def accuracy_pictures(
    names: Sequence[str], scores: Sequence[tuple[str, float]], reports: Sequence[dict[str, Any]]
) -> dict[str, Figure]:
    """Return "trade_off", and "block_sizes" if several networks have one scheme in all layers.

    What there is of such a network at one ratio only is left out of the first one then.
    """
    blocks, stems = block_sizes(names, reports), [_stem(name) for name in names]
    if len(blocks) < 2:
        return {"trade_off": trade_off_picture(names, scores, reports)}
    rest = [i for i, stem in enumerate(stems) if i not in blocks.values() or stems.count(stem) > 1]
    trade_off, sizes = ([[given[i] for i in shown] for given in (scores, reports)] for shown in (rest, blocks.values()))
    return {
        "trade_off": trade_off_picture([names[i] for i in rest], *trade_off),
        "block_sizes": block_size_picture(list(blocks), *sizes),
    }


def trade_off_picture(
    names: Sequence[str], scores: Sequence[tuple[str, float]], reports: Sequence[dict[str, Any]]
) -> Figure:
    """Draw errors (100 - accuracy, or word error rate) over latency, both in logarithms.

    Experiments whose names differ in their last number only (`pattern-80`, `pattern-90`) are a line.
    """
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, score, measured in zip(names, scores, reports, strict=True):
        lines[_stem(name)].append((measured["milliseconds"], _errors(score)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(lines.items()):
            colour, marker = LOSS_COLOURS[i % len(LOSS_COLOURS)], "osD^vP*X"[i % 8]
            axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=marker, linewidth=1.4, label=name)
        axes.set_xlabel(LATENCY)
        axes.set_ylabel(ERRORS[scores[0][0]])
        axes.set_xscale("log")
        axes.set_yscale("log")
        _label_plainly(axes.xaxis)
        _label_plainly(axes.yaxis)
        axes.legend()
    return figure


def block_sizes(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the places of the networks pruned by one scheme in all layers, by that scheme, the smallest block first.

    Of those whose names end in the same number, which is how much of them is pruned: where there are most.
    """
    found: dict[str, dict[Scheme, int]] = defaultdict(dict)
    for i, (name, measured) in enumerate(zip(names, reports, strict=True)):
        schemes = {layer["scheme"] for layer in measured["layers"]} - {"dense"}
        scheme = Scheme.parse(schemes.pop()) if len(schemes) == 1 else Scheme("dense")
        if scheme.has_block or scheme.kind in ("unstructured", "filter"):
            found[name.removeprefix(_stem(name))][scheme] = i
    most = max(found.values(), key=len, default={})
    sizes = {
        scheme: {"unstructured": 1, "filter": math.inf}.get(scheme.kind, math.prod(scheme.block)) for scheme in most
    }
    return {str(scheme): most[scheme] for scheme in sorted(sizes, key=sizes.get)}


def block_size_picture(
    blocks: Sequence[str], scores: Sequence[tuple[str, float]], reports: Sequence[dict[str, Any]]
) -> Figure:
    """Draw errors, in logarithms, and latency over block sizes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(blocks, [_errors(score) for score in scores], color=VERMILION, marker="o", linewidth=1.4)
        above.set_ylabel(ERRORS[scores[0][0]])
        above.set_yscale("log")
        _label_plainly(above.yaxis)
        below.plot(blocks, [measured["milliseconds"] for measured in reports], color=BLUE, marker="o", linewidth=1.4)
        below.set_ylabel(LATENCY)
        below.set_ylim(bottom=0)
    return figure


def layers_picture(dense: dict[str, Any], pruned: dict[str, Any]) -> Figure:
    """Draw what each layer keeps of its weights, and its time dense and pruned."""
    layers = pruned["layers"]
    places = np.arange(len(layers))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 0.24 * len(layers) + 2), 4.8), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        above.bar(places, [100 * layer["kept"] for layer in layers], color=BLUE)
        above.set_ylabel("weights kept, %")
        below.bar(places - 0.2, [layer["dense_microseconds"] for layer in layers], 0.4, color=VERMILION, label="dense")
        below.bar(places + 0.2, [layer["microseconds"] for layer in layers], 0.4, color=BLUE, label="pruned")
        below.set_ylabel("time, µs")
        below.legend()
        names = [f"{layer['path'].removeprefix('encoder.')}\n{layer['scheme']}" for layer in layers]
        below.set_xticks(places, names, rotation=90, fontsize=6)
        above.set_title(f"{dense['milliseconds']:.3f} ms dense, {pruned['milliseconds']:.3f} ms pruned")
    return figure


def _stem(name: str) -> str:
    """Return the name of an experiment without the number at its end."""
    return name.rstrip("0123456789").rstrip("-_.")


def _errors(score: tuple[str, float]) -> float:
    """Return errors in percent of a measure and its value."""
    return 100 - score[1] if score[0] == "accuracy" else score[1]


def _label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2, 3, 5, 7, 10, … in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())
