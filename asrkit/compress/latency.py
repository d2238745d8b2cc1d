"""How long a layer, or a network of them, takes on a target: a table measured once and interpolated.

The paper's latency model (arXiv:2111.11581): generated kernels are measured over layer kind, shape, pruning scheme,
block size and ratio; a network's latency is the sum over its layers, and no network is built to map schemes to it.

A table is a file of JSON lines, appended to as it is measured, so that a run that was stopped goes on where it was:

    {"target": "avx512", "machine": "..."}
    {"kind": "conv2d", "out_channels": 64, ..., "scheme": "punched 4x1", "ratio": 0.8, "seconds": 0.00012}
    {"factor": 1.02, "overhead": 1.5e-06}

Of a layer measured several times the least counts: what disturbs a machine only ever adds.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from asrkit.compress.codegen import TARGETS
from asrkit.compress.schemes import Scheme
from asrkit.compress.surfaces import Family, Surface
from asrkit.errors import InputError

if TYPE_CHECKING:
    from asrkit.compress.mapping import Mapping

log = logging.getLogger(__name__)

DENSE = Scheme("dense")
BLOCKS = tuple(map(Scheme.parse, ("punched 4x1", "punched 8x1", "punched 16x1", "block 16x16", "punched 8x8")))
"""Worth considering, the finest first."""
MODULES = {"linear": nn.Linear, "conv1d": nn.Conv1d, "conv2d": nn.Conv2d}


@dataclass(frozen=True)
class Layer:
    """One layer as the table sees it; `size` is that of its output without channels: rows, frames, or height, width."""

    kind: str
    out_channels: int
    in_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    path: str = field(default="", compare=False)

    @property
    def positions(self) -> int:
        """Positions of the output at which the weights are applied."""
        return math.prod(self.size)

    @property
    def weights(self) -> int:
        return self.out_channels * self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer."""
        return self.weights * self.positions

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels


def layers_of(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> list[Layer]:
    """Return the linear and convolutional layers of a model in the order they run, one for each time they do.

    Args:
        model: is run once on the inputs.
        example_inputs: one utterance or image, batch size 1.
    """
    layers: list[Layer] = []

    def record(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: layers.append(_layer(path, module, output))

    kinds = tuple(MODULES.values())
    hooks = [m.register_forward_hook(record(path)) for path, m in model.named_modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            model(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def _layer(path: str, module: nn.Module, output: Tensor) -> Layer:
    if isinstance(module, nn.Linear):
        rows = output.numel() // module.out_features
        return Layer("linear", module.out_features, module.in_features, (rows,), path=path)
    kind = "conv1d" if isinstance(module, nn.Conv1d) else "conv2d"
    size, sizes = tuple(output.shape[2:]), (module.kernel_size, module.stride)
    return Layer(kind, module.out_channels, module.in_channels, size, *sizes, groups=module.groups, path=path)


@dataclass(frozen=True)
class Point:
    """What one measurement of a table is of."""

    layer: Layer
    scheme: Scheme
    ratio: float


# The table


@dataclass
class LatencyTable:
    """Latencies measured on a target, and what they say of other layers and of networks."""

    target: str
    machine: str
    measured: dict[Point, float] = field(default_factory=dict)
    """Least seconds of each point."""
    passes: Counter[Point] = field(default_factory=Counter)
    """How often each was measured."""
    factor: float = 1.0
    """Of the sum over the layers, found by `calibrate`."""
    overhead: float = 0.0
    """Seconds for each layer beside its own."""

    def add(self, point: Point, seconds: float) -> None:
        """Take in a measurement."""
        self.measured[point] = min(seconds, self.measured.get(point, math.inf))
        self.passes[point] += 1

    @property
    def calibrated(self) -> bool:
        return (self.factor, self.overhead) != (1.0, 0.0)

    def seconds(self, layer: Layer, scheme: Scheme, ratio: float) -> float:
        """Return the latency of a layer pruned by `ratio`, interpolated between what was measured.

        A layer without some of its filters or channels is a smaller dense one. The compiler runs a sparse layer
        densely where that is faster, so no scheme is slower than no pruning.

        Raises:
            InputError: the table has no measurement of the scheme's kind; the ratio is not from 0 to below 1.
        """
        if not 0 <= ratio < 1:
            raise InputError(f"ratio must be from 0 to below 1, not {ratio}")
        if scheme.kind == "filter":
            return self.seconds(replace(layer, out_channels=_remaining(layer.out_channels, ratio)), DENSE, 0.0)
        if scheme.kind == "channel":
            return self.seconds(replace(layer, in_channels=_remaining(layer.in_channels, ratio)), DENSE, 0.0)
        if layer.positions == 1 and layer.kernel and not layer.depthwise:
            return self._single(layer, scheme, ratio)
        dense = self._interpolated(layer, DENSE, 0.0)
        return dense if scheme == DENSE or ratio == 0 else min(dense, self._interpolated(layer, scheme, ratio))

    def _single(self, layer: Layer, scheme: Scheme, ratio: float) -> float:
        """Return the latency of a convolution of an image of one pixel: only the centres of its kernels meet it."""
        linear = replace(layer, kind="linear", kernel=(), stride=())
        if scheme.kind == "pattern":  # has the centres of all kernels that stay
            return self.seconds(linear, Scheme("unstructured"), max(0.0, 1 - 9 / 4 * (1 - ratio)))
        return self.seconds(linear, scheme, ratio)

    def predict(self, layers: Iterable[Layer], mapping: "Mapping") -> float:
        """Return the latency of a network: the sum over its layers, calibrated.

        Args:
            layers: of the network (`layers_of`).
            mapping: scheme and ratio of each, dense where it has none.
        """
        return float(self._features(layers, mapping) @ (self.factor, self.overhead))

    def calibrate(self, networks: Sequence[tuple[Sequence[Layer], "Mapping", float]]) -> None:
        """Find `factor` and `overhead` from whole networks: layers, mapping and measured seconds of each."""
        features = np.array([self._features(layers, mapping) for layers, mapping, _ in networks])  # (networks, 2)
        seconds = np.array([[seconds] for *_, seconds in networks])
        (self.factor, self.overhead), _ = nnls(features / seconds, np.ones(len(networks)))  # relative errors

    def _features(self, layers: Iterable[Layer], mapping: "Mapping") -> np.ndarray:
        """Return the sum of the layers' latencies and their number, (2,)."""
        times = []
        for layer in layers:
            chosen = mapping.get(layer.path)
            dense = chosen is None or chosen.scheme == DENSE
            times.append(self.seconds(layer, DENSE, 0.0) if dense else self.seconds(layer, chosen.scheme, chosen.ratio))
        return np.array([sum(times), len(times)])

    def _interpolated(self, layer: Layer, scheme: Scheme, ratio: float) -> float:
        known = [key for key in self._surfaces if key.scheme.kind == scheme.kind]
        if not known:
            raise InputError(f"the latency table of target {self.target} has no measurement of scheme {scheme}")
        wanted = Family.of(layer, scheme)
        return self._surfaces[min(known, key=wanted.distance)].seconds(layer, ratio)

    @cached_property
    def _surfaces(self) -> dict[Family, Surface]:
        families: dict[Family, list[Point]] = {}
        for point in self.measured:
            families.setdefault(Family.of(point.layer, point.scheme), []).append(point)
        return {
            family: Surface(points, [self.measured[point] for point in points], TARGETS[self.target])
            for family, points in families.items()
        }


def _remaining(count: int, ratio: float) -> int:
    return max(1, round(count * (1 - ratio)))


# The file


def read_table(file: Path | str) -> LatencyTable:
    """Read a table; a last line that was cut off is left out, with a warning.

    Raises:
        InputError: the file is missing or no latency table; names the line that is wrong.
    """
    file = Path(file)
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    if lines and not lines[-1].endswith("\n"):
        log.warning("%s: line %d was cut off, left out", file, len(lines))
        lines.pop()
    table = None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if number == 1:
                if record["target"] not in TARGETS:
                    raise ValueError(f"target {record['target']!r}")
                table = LatencyTable(record["target"], record["machine"])
            elif "factor" in record:
                table.factor, table.overhead = float(record["factor"]), float(record["overhead"])
            else:
                table.add(_point(record), record["seconds"])
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: line {number}: not of a latency table: {error}") from error
    if table is None:
        raise InputError(f"{file}: empty, not a latency table")
    return table


def header_line(table: LatencyTable) -> str:
    """Return the first line of a table's file."""
    return json.dumps({"target": table.target, "machine": table.machine}) + "\n"


def point_line(point: Point, seconds: float) -> str:
    """Return the line of a measurement."""
    layer = asdict(point.layer)
    del layer["path"]
    return json.dumps(layer | {"scheme": str(point.scheme), "ratio": point.ratio, "seconds": seconds}) + "\n"


def calibration_line(table: LatencyTable) -> str:
    """Return the line of a calibration; a later one replaces it."""
    return json.dumps({"factor": table.factor, "overhead": table.overhead}) + "\n"


def _point(record: dict[str, Any]) -> Point:
    sizes = {name: tuple(map(int, record[name])) for name in ("size", "kernel", "stride")}
    channels = {name: int(record[name]) for name in ("out_channels", "in_channels", "groups")}
    if record["kind"] not in MODULES or not math.isfinite(record["seconds"]) or record["seconds"] <= 0:
        raise ValueError(f"kind {record['kind']!r}, seconds {record['seconds']!r}")
    return Point(Layer(record["kind"], **channels, **sizes), Scheme.parse(record["scheme"]), float(record["ratio"]))
