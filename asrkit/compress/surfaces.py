"""Interpolation of latencies: the compiler's own estimate of a layer, corrected by measurements near it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from scipy.optimize import nnls

from asrkit.compress.codegen import TARGETS, Target
from asrkit.compress.codegen.pack import choose
from asrkit.compress.codegen.plan import WASTE
from asrkit.compress.codegen.winograd import cost, tilings
from asrkit.compress.schemes import Scheme, make_mask

if TYPE_CHECKING:
    from asrkit.compress.latency import Layer, Point

SMOOTHING = 0.3  # of measurements, which are noisy
SAMPLE = (48, 432)  # rows and columns of the random matrix that stands for larger ones
MANY = 16  # vectors: more are done like so many
PATTERN_RATIO = 5 / 9
LEAST = 1e-30


@dataclass(frozen=True)
class Family:
    """Layers whose latencies make one surface: the compiler treats them alike."""

    scheme: Scheme
    depthwise: bool
    single: bool
    """One position."""

    @staticmethod
    def of(layer: "Layer", scheme: Scheme) -> "Family":
        return Family(scheme, layer.depthwise, layer.positions == 1)

    def distance(self, other: "Family") -> tuple[float, ...]:
        """Return how unlike two families with one kind of scheme are, what matters most first."""
        sides = zip(self.scheme.block, other.scheme.block, strict=True)
        return (
            self.depthwise != other.depthwise,
            self.single != other.single,
            sum(abs(math.log(side / other_side)) for side, other_side in sides),
        )


class Surface:
    """Latencies of a family over sizes and ratio.

    First a sum of what a layer has to do, arithmetic as the compiler estimates it, and reading and writing, each with a
    cost that is not negative; then a correction, interpolated over the logarithms of sizes and of the part of the
    weights kept. Beyond what was measured the correction is that of the edge, so that latency follows the work.
    """

    def __init__(self, points: Sequence["Point"], seconds: Sequence[float], target: Target) -> None:
        self.scheme, self.target = points[0].scheme, target
        work, coordinates = map(np.array, zip(*(self._describe(p.layer, p.ratio) for p in points), strict=True))
        relative = work / np.array(seconds)[:, None]  # (points, kinds of work); the fit is of relative errors
        most = relative.max(axis=0).clip(min=LEAST)
        self.costs = nnls(relative / most, np.ones(len(points)))[0] / most
        self.low, self.high = coordinates.min(axis=0), coordinates.max(axis=0)
        self.varying = self.high > self.low
        errors = -np.log(relative @ self.costs)
        self.correction = RBFInterpolator(coordinates[:, self.varying], errors, kernel="linear", smoothing=SMOOTHING)

    def seconds(self, layer: "Layer", ratio: float) -> float:
        """Return the interpolated latency of a layer."""
        work, coordinates = self._describe(layer, ratio)
        inside = coordinates.clip(self.low, self.high)[None, self.varying]  # (1, coordinates)
        return float(np.exp(self.correction(inside)[0]) * (work @ self.costs))

    def _describe(self, layer: "Layer", ratio: float) -> tuple[np.ndarray, np.ndarray]:
        """Return how much there is of each kind of work, and where on the surface a layer is."""
        vectors, copied = vectors_of(layer, self.target.lanes)
        positions, taps = vectors * self.target.lanes, math.prod(layer.kernel)
        arithmetic, winograd = estimate(layer, self.scheme, ratio, self.target.name)
        read, written = layer.in_channels * positions, layer.out_channels * positions
        work = [
            1,
            layer.out_channels,
            arithmetic * (not winograd),
            arithmetic * winograd,
            layer.weights * (1 - ratio),
            read * math.prod(layer.stride),
            read * taps * copied,
            written,
        ]
        sizes = np.log([layer.out_channels, layer.in_channels / layer.groups * taps, vectors, 1 - ratio])
        return np.array(work, float), np.array([*sizes, np.log(taps) / 2, copied, winograd])


def vectors_of(layer: "Layer", lanes: int) -> tuple[int, bool]:
    """Return the vectors of positions that are computed, and whether the input is copied for it, once for each tap.

    Vectors go over the rows of an image and the margins between them; where images are so small that these would be
    most of it, and for strides, what each tap reads is copied side by side.
    """
    margins = max(1, layer.kernel[-1] // 2) * (layer.size[0] - 1) if layer.kind == "conv2d" else 0
    whole, bare = (math.ceil(count / lanes) for count in (layer.positions + margins, layer.positions))
    small, strided = bare < WASTE * whole, max((1, *layer.stride)) > 1
    return (bare if small else whole), strided or (small and math.prod(layer.kernel) > 1)


@cache
def estimate(layer: "Layer", scheme: Scheme, ratio: float, target: str) -> tuple[float, bool]:
    """Return what the compiler reckons the arithmetic of a layer to take, and if that is by Winograd's algorithm."""
    vectors, _ = vectors_of(layer, TARGETS[target].lanes)
    density = _density(scheme, ratio, layer.kernel, layer.depthwise, layer.positions == 1, min(vectors, MANY), target)
    direct = density * layer.weights * vectors
    if scheme.kind != "dense" or layer.kernel != (3, 3) or layer.stride != (1, 1) or layer.groups > 1:
        return direct, False
    channels = layer.in_channels, layer.out_channels
    ways = tilings(*layer.size, sum(channels), TARGETS[target].lanes)
    best = min(cost(way, layer.out_channels, layer.in_channels, TARGETS[target]) for way in ways)
    return min(best, direct), best < direct


@cache
def _density(
    scheme: Scheme, ratio: float, kernel: tuple[int, ...], depthwise: bool, single: bool, vectors: int, target: str
) -> float:
    """Return the cost of one weight of the dense layer and one vector, found on random weights of another size."""
    taps, lanes = math.prod(kernel), TARGETS[target].lanes
    rows, columns = SAMPLE[0], 1 if depthwise else SAMPLE[1] // taps
    weight = torch.randn(rows, columns, *kernel, generator=torch.Generator().manual_seed(0))
    ratio = max(ratio, PATTERN_RATIO) if scheme.kind == "pattern" else ratio
    used = make_mask(weight, scheme, ratio).flatten(1).numpy()
    if single:  # a vector of rows at a time
        return float(used.reshape(-1, lanes, used.shape[1]).any(axis=1).mean()) / lanes
    total, *_ = choose(used, rows if depthwise else 1, vectors * lanes, TARGETS[target])
    return total / (used.size * vectors)
