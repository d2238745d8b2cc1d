"""Measuring the latency table of a target: what is measured, how, and calibration on whole networks."""

import os
import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor, nn

from asrkit.compress.codegen import Network, Target, compile_network, load_network, native_target
from asrkit.compress.latency import (
    BLOCKS,
    DENSE,
    MODULES,
    LatencyTable,
    Layer,
    Point,
    calibration_line,
    header_line,
    layers_of,
    point_line,
    read_table,
)
from asrkit.compress.mapping import LayerMapping, Mapping, at_ratio, map_to_scheme
from asrkit.compress.schemes import Scheme, make_mask
from asrkit.compress.vision.networks import NetworkConfig, build_network
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.progress import progress, progress_bar
from asrkit.scoring.provenance import machine

REPEATS = 15
ROUNDS = 6
PASSES = 2
TOGETHER = 8
FEW = 4  # channels of layers that are only there to be beside others
CALIBRATION = tuple(
    (NetworkConfig(kind=kind, width=width, channels=3, size=size), ratio)
    for kind in ("vgg16", "resnet32", "mobilenet")
    for width, size in ((0.25, 16), (0.5, 32), (1.0, 32))
    for ratio in (0.0, 0.8)
)


def measure_table(file: Path | str, target: Target | None = None) -> LatencyTable:
    """Measure what a table file lacks of `grid()`, appending to it, calibrate it on networks, and return the table.

    Raises:
        InputError: the file is of another target, corrupt, or cannot be written.
    """
    file, target = Path(file), target or native_target()
    if not file.exists():
        with atomic_write(file) as out:
            out.write(header_line(LatencyTable(target.name, machine())))
    table = read_table(file)
    if table.target != target.name:
        raise InputError(f"{file}: a table of target {table.target}, not {target.name}")
    os.truncate(file, file.read_bytes().rfind(b"\n") + 1)  # without a last line that was cut off
    with file.open("a", encoding="utf-8", buffering=1) as out:
        measure_points(table, grid(), out, partial(stopwatch, target=target))
        if not table.calibrated:
            calibrate(table, target)
            out.write(calibration_line(table))
    return table


def measure_points(
    table: LatencyTable,
    points: Sequence[Point],
    out: IO,
    stopwatch: Callable[[Sequence[Point]], Callable[[], list[float]]],
) -> None:
    """Measure what a table lacks of `PASSES` over the points, and write each measurement.

    In each pass a layer is measured several times, between which others are compiled.
    """
    missing = [[point for point in points if table.passes[point] < number] for number in range(1, PASSES + 1)]
    running: deque[tuple[list[Point], Callable[[], list[float]]]] = deque()
    with progress_bar(sum(map(len, missing)), f"measuring {table.target}", "layer") as bar:

        def finish(rest: int) -> None:
            for _, watch in running:
                watch()
            while len(running) > rest:
                group, watch = running.popleft()
                for point, seconds in zip(group, watch(), strict=True):
                    table.add(point, seconds)
                    out.write(point_line(point, seconds))
                bar.update(len(group))

        for group in chain.from_iterable(map(_groups, missing)):
            running.append((group, stopwatch(group)))
            finish(ROUNDS - 1)
        finish(0)


def _groups(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Divide points into those that are compiled together; kernels of one size leave each other's images alone."""
    for _, alike in groupby(points, lambda point: point.layer.kernel):
        while group := list(islice(alike, TOGETHER)):
            yield group


def stopwatch(points: Sequence[Point], target: Target) -> Callable[[], list[float]]:
    """Compile layers with random weights, pruned, for a target that runs here; return what measures their seconds.

    Each call measures once more and returns the least so far.
    """
    tiny = nn.Linear(FEW, FEW), torch.zeros(1, FEW)  # takes what a step's call from Python takes
    networks, inputs = zip(*map(_network, (point.layer for point in points)), tiny, strict=True)
    paths = [f"{number}.1" for number in range(len(points))]
    layers = [replace(point.layer, path=path) for path, point in zip(paths, points, strict=True)]
    mapping = {path: LayerMapping(point.scheme, point.ratio) for path, point in zip(paths, points, strict=True)}
    compiled = _compiled(_Beside(networks), inputs, layers, mapping, target)
    steps = Counter(step["path"] for step in compiled.steps)

    rounds = []

    def seconds() -> list[float]:
        rounds.append(compiled.profile(REPEATS))
        least = {path: min(parts[path] for parts in rounds) for path in steps}
        call = least[str(len(points))] / steps[str(len(points))]
        return [max(least[path] - call * steps[path], least[path] / 10) for path in paths]

    return seconds


class _Beside(nn.ModuleList):
    """Networks that have nothing to do with each other, compiled together."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(network(x) for network, x in zip(self, inputs, strict=True))


def _network(layer: Layer) -> tuple[nn.Sequential, Tensor]:
    """Return the layer, with an activation, between two small ones, which keep its data as a network would."""
    if layer.kind == "linear":
        before, after = nn.Linear(FEW, layer.in_channels), nn.Linear(layer.out_channels, FEW)
        module = nn.Linear(layer.in_channels, layer.out_channels)
        return nn.Sequential(before, module, nn.ReLU(), after).eval(), torch.randn(1, *layer.size, FEW)
    convolution = MODULES[layer.kind]
    padding = tuple(width // 2 for width in layer.kernel)
    module = convolution(
        layer.in_channels, layer.out_channels, layer.kernel, layer.stride, padding, groups=layer.groups
    )
    before, after = convolution(FEW, layer.in_channels, 1), convolution(layer.out_channels, FEW, 3, padding=1)
    size = [count * step for count, step in zip(layer.size, layer.stride, strict=True)]
    return nn.Sequential(before, module, nn.ReLU(), after).eval(), torch.randn(1, FEW, *size)


def calibrate(table: LatencyTable, target: Target) -> None:
    """Compile and measure the networks of `CALIBRATION`, with random weights, and fit the table to them."""
    runs = []
    for config, ratio in progress(CALIBRATION, "calibrating", unit="network"):
        network = build_network(config).eval()
        image = torch.zeros(1, config.channels, config.size, config.size)
        layers = layers_of(network, (image,))
        mapping = at_ratio(map_to_scheme(layers, BLOCKS[0] if ratio else DENSE), ratio)
        runs.append((layers, mapping, _compiled(network, (image,), layers, mapping, target)))
    rounds = [[compiled.seconds(REPEATS) for *_, compiled in runs] for _ in range(ROUNDS)]
    least = np.min(rounds, axis=0)
    table.calibrate([(layers, mapping, float(s)) for (layers, mapping, _), s in zip(runs, least, strict=True)])


def _compiled(
    network: nn.Module, inputs: tuple[Tensor, ...], layers: Sequence[Layer], mapping: Mapping, target: Target
) -> Network:
    with torch.no_grad():
        for layer in layers:
            chosen, weight = mapping[layer.path], network.get_submodule(layer.path).weight
            weight *= make_mask(weight, chosen.scheme, chosen.ratio, layer.groups)
    with tempfile.TemporaryDirectory() as folder:
        compile_network(network, inputs, Path(folder), target)
        return load_network(folder)


# What to measure


@dataclass(frozen=True)
class Family:
    """Layers alike but for their sizes; each scheme has a number of measurements over those sizes and its ratios."""

    kind: str
    kernel: tuple[int, ...] = ()
    stride: int = 1
    depthwise: bool = False
    positions: tuple[int, int] = (4, 1024)
    dense: int = 24
    sparse: int = 12


FAMILIES = (
    Family("linear", positions=(1, 1), sparse=16),
    Family("linear", positions=(2, 256)),
    Family("conv2d", (1, 1)),
    Family("conv2d", (1, 1), stride=2, dense=8, sparse=4),
    Family("conv2d", (3, 3), dense=40, sparse=24),
    Family("conv2d", (3, 3), stride=2, dense=12, sparse=6),
    Family("conv2d", (3, 3), depthwise=True, dense=16),
    Family("conv2d", (3, 3), stride=2, depthwise=True, dense=10),
    Family("conv2d", (5, 5), dense=8, sparse=4),
    Family("conv1d", (3,), positions=(8, 512), dense=12, sparse=6),
    Family("conv1d", (15,), depthwise=True, positions=(8, 512), dense=8),
)
CHANNELS = (8, 1024)
WIDENING = (1 / 3, 3)  # output channels to input channels
MACS = (2e4, 1.5e8)  # fewer are lost in the overhead, more take long
MOST_WEIGHTS = 2.5e6
KEPT = (0.03, 0.6)


def grid() -> list[Point]:
    """Return what to measure: for each family and scheme, sizes and ratios spread evenly in logarithms (Sobol)."""
    return [point for family in FAMILIES for scheme in schemes_of(family) for point in _points(family, scheme)]


def schemes_of(family: Family) -> list[Scheme]:
    if family.depthwise:
        return [DENSE]
    pattern = [Scheme("pattern")] if family.kernel == (3, 3) else []
    return [DENSE, Scheme("unstructured"), *pattern, *(b for b in BLOCKS if b.kind == "punched" or not family.kernel)]


def _points(family: Family, scheme: Scheme) -> Iterator[Point]:
    kept = (KEPT[0], 4 / 9) if scheme.kind == "pattern" else KEPT
    ranges = np.log([CHANNELS, WIDENING, family.positions, kept])
    units = qmc.Sobol(len(ranges), seed=zlib.crc32(str(scheme).encode())).random_base2(9)
    sizes = np.exp(ranges[:, 0] + units * np.diff(ranges).T)  # (points, 4)
    layers = [_layer_of_size(family, *size[:3]) for size in sizes]
    sensible = [MACS[0] <= layer.macs <= MACS[1] and layer.weights <= MOST_WEIGHTS for layer in layers]
    for number in np.flatnonzero(sensible)[: family.dense if scheme == DENSE else family.sparse]:
        yield Point(layers[number], scheme, 0.0 if scheme == DENSE else round(1 - float(sizes[number, 3]), 3))


def _layer_of_size(family: Family, channels: float, widening: float, positions: float) -> Layer:
    """Return a layer of about a size, with channels in multiples of 4 and square images."""
    inputs, outputs = (max(4, 4 * round(count / 4)) for count in (channels, channels * widening))
    dimensions = max(1, len(family.kernel))
    size = (max(1, round(positions ** (1 / dimensions))),) * dimensions
    stride = (family.stride,) * len(family.kernel)
    if family.depthwise:
        return Layer(family.kind, inputs, inputs, size, family.kernel, stride, groups=inputs)
    return Layer(family.kind, outputs, inputs, size, family.kernel, stride)
