"""What pruning has brought: latency, size and work of compiled networks, layer by layer, and pictures of it."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter
from torch import Tensor, nn

from asrkit.compress.codegen import load_network
from asrkit.compress.codegen.runtime import WEIGHTS
from asrkit.compress.engines import ENGINES, in_c, seconds_by_turns
from asrkit.compress.mapping import Mapping as SchemeMapping
from asrkit.compress.sparsity import report, total
from asrkit.errors import InputError
from asrkit.progress import progress
from asrkit.scoring.pictures import BLUE, LOSS_COLOURS, STYLE, VERMILION

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


def trade_off_picture(
    names: Sequence[str], scores: Sequence[tuple[str, float]], reports: Sequence[dict[str, Any]]
) -> Figure:
    """Draw errors (100 - accuracy, or word error rate) over latency, both in logarithms.

    Experiments whose names differ in their last number only (`pattern-80`, `pattern-90`) are a line.
    """
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, (measure, score), measured in zip(names, scores, reports, strict=True):
        stem = name.rstrip("0123456789").rstrip("-_.")
        lines[stem].append((measured["milliseconds"], 100 - score if measure == "accuracy" else score))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(lines.items()):
            colour, marker = LOSS_COLOURS[i % len(LOSS_COLOURS)], "osD^vP*X"[i % 8]
            axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=marker, linewidth=1.4, label=name)
        axes.set_xlabel("latency, ms (one thread)")
        axes.set_ylabel("errors, % of test images" if scores[0][0] == "accuracy" else "word error rate, %")
        for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            set_scale("log")
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_formatter(FormatStrFormatter("%g"))
        axes.legend()
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
