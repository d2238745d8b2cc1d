"""Pruning schemes: which weights of a layer are removed together, how much they matter, and what is left of them.

A weight of any layer is seen as filters x channels x taps (taps: the positions of the kernel, 1 for a linear layer).
Each scheme removes boxes of that array, and its groups of weights are these boxes:

    unstructured     1 x 1 x 1
    filter           1 x all x all
    channel          all x 1 x all
    pattern          1 x 1 x all: a kernel goes ("connectivity"), or 4 of its 3x3 taps stay, one of `PATTERNS`
    punched p x q    p x q x 1: p filters x q channels share the taps that stay, in kernels of any size
    block p x q      1 x q and p x 1 of the matrix filters x (channels * taps): in each p x q block, apart from the
                     others, rows and columns go, so that what stays of a block is a smaller dense matrix

Blocks start anew with every group of a grouped convolution, because filters of different groups read different
channels; in a depthwise convolution, where a group has one filter, p filters next to each other make a block. At the
borders blocks are smaller where the shape does not divide.

Gong et al., "Automatic Mapping of the Best-Suited DNN Pruning Schemes for Real-Time Mobile Acceleration", 2022.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from asrkit.errors import InputError

Kind = Literal["dense", "unstructured", "filter", "channel", "pattern", "block", "punched"]
Box = tuple[int, int, int]

PATTERNS = torch.tensor(
    [
        [[1, 1, 0], [1, 1, 0], [0, 0, 0]],
        [[0, 1, 1], [0, 1, 1], [0, 0, 0]],
        [[0, 0, 0], [1, 1, 0], [1, 1, 0]],
        [[0, 0, 0], [0, 1, 1], [0, 1, 1]],
        [[0, 1, 0], [1, 1, 1], [0, 0, 0]],
        [[0, 0, 0], [1, 1, 1], [0, 1, 0]],
        [[0, 1, 0], [1, 1, 0], [0, 1, 0]],
        [[0, 1, 0], [0, 1, 1], [0, 1, 0]],
    ],
    dtype=torch.bool,
).flatten(1)  # (8, 9)
"""The taps that a kernel keeps: the centre and three neighbours, in the squares and Ts that trained kernels favour."""


@dataclass(frozen=True)
class Scheme:
    """One way to prune a layer; as text "dense", "filter", "punched 4x1", "block 16x8".

    Raises:
        InputError: an unknown kind, or a block without weights.
    """

    kind: Kind = "dense"
    block: tuple[int, int] = (4, 1)
    """punched: filters x channels; block: rows x columns of the matrix; of no meaning to the others."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"pruning scheme {self.kind!r}: not one of {', '.join(get_args(Kind))}")
        if len(self.block) != 2 or min(self.block) < 1:
            raise InputError(f"pruning scheme {self}: a block needs at least one row and one column")

    def __str__(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.block))}" if self.has_block else self.kind

    @property
    def has_block(self) -> bool:
        return self.kind in ("block", "punched")

    @staticmethod
    def parse(text: str) -> "Scheme":
        """Return the scheme that `str` writes as `text`.

        Raises:
            InputError: no scheme is written so.
        """
        match = re.fullmatch(r"(\w+)(?: (\d+)x(\d+))?", text.strip())
        scheme = Scheme(match[1] if match else text)
        if scheme.has_block != bool(match[2]):
            example = f"{scheme.kind} 8x4" if scheme.has_block else scheme.kind
            raise InputError(f"pruning scheme {text!r}: must be written like {example!r}")
        return Scheme(scheme.kind, (int(match[2]), int(match[3]))) if scheme.has_block else scheme


def check(scheme: Scheme, weight: Tensor) -> None:
    """Refuse a scheme that cannot prune a weight of this shape; shapes that blocks do not divide are welcome.

    Raises:
        InputError: a pattern for kernels that are not 3x3, or a weight without channels.
    """
    shape = "x".join(map(str, weight.shape))
    if weight.ndim < 2 and scheme.kind != "dense":
        raise InputError(f"scheme {scheme}: a weight of shape {shape} has no filters and channels")
    if scheme.kind == "pattern" and weight.shape[2:] != (3, 3):
        raise InputError(f"scheme pattern: takes 3x3 kernels only, not a weight of shape {shape}")


def check_ratio(scheme: Scheme, ratio: float) -> None:
    """Refuse the part of the weights to remove if the scheme cannot.

    Raises:
        InputError: it is not in [0, 1), above 0 for a dense layer, or below 5/9 for a pattern.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"pruning ratio {ratio:g}: must be at least 0 and below 1")
    if scheme.kind == "dense" and ratio > 0:
        raise InputError(f"pruning ratio {ratio:g}: scheme dense removes nothing")
    if scheme.kind == "pattern" and ratio < 0.555:
        raise InputError(f"pruning ratio {ratio:g}: scheme pattern removes 5 of 9 weights, so at least 0.556")


def group_norms(weight: Tensor, scheme: Scheme, conv_groups: int = 1) -> Tensor:
    """Return the squared norms (G,) of the groups of weights that go together; differentiable.

    A block scheme has two sets of groups, which overlap: first the rows of all blocks, then the columns.
    """
    array = _array(weight.square(), scheme, conv_groups)
    return torch.cat([_box_sums(array, box).flatten() for box in _boxes(array, scheme)] or [weight.new_zeros(0)])


def group_sizes(weight: Tensor, scheme: Scheme, conv_groups: int = 1) -> Tensor:
    """Return the number of weights (G,) in each group, as floats."""
    return group_norms(torch.ones_like(weight), scheme, conv_groups)


@torch.no_grad()
def mask_of(kept: Tensor, weight: Tensor, scheme: Scheme, conv_groups: int = 1) -> Tensor:
    """Return the weights that stay, bool and of the shape of `weight`, when the groups `kept` (G,) stay.

    Each kernel that stays under the pattern scheme keeps the pattern that retains most of its norm.
    """
    mask = _to_weights(kept, weight, scheme, conv_groups) > 0
    return mask & _best_patterns(weight) if scheme.kind == "pattern" else mask


@torch.no_grad()
def weight_scores(weight: Tensor, scheme: Scheme, conv_groups: int = 1) -> Tensor:
    """Return how much each weight matters, (shape of `weight`): weights that score least go first.

    The score is the root mean square of the weight's group, of the lesser one where it is in two. Weights that go in
    any case, those outside their kernel's pattern, score below 0.
    """
    return _weight_scores(_group_scores(weight, scheme, conv_groups), weight, scheme, conv_groups)


@torch.no_grad()
def make_mask(weight: Tensor, scheme: Scheme, ratio: float, conv_groups: int = 1) -> Tensor:
    """Return the weights that stay, bool and of the shape of `weight`, when groups of the least mean square go.

    Args:
        weight: (filters, channels of a convolution group, *kernel).
        scheme: what goes together.
        ratio: the part of all weights that goes at least: the last group overshoots it. One group stays always. A
            pattern removes 5 of 9 weights by itself; connectivity adds the rest.
        conv_groups: groups of the convolution.

    Raises:
        InputError: the layer cannot be pruned so.
    """
    check(scheme, weight)
    check_ratio(scheme, ratio)
    count = round(ratio * weight.numel())
    if count == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    groups = _group_scores(weight, scheme, conv_groups)
    scores = _weight_scores(groups, weight, scheme, conv_groups)
    threshold = scores.flatten().kthvalue(count).values
    tied = groups == threshold
    if tied.sum() > 1:  # of equal ones the first go
        order = torch.arange(len(groups), device=groups.device).masked_fill(~tied, len(groups))
        order.masked_fill_(groups < threshold, -1)
        scores = _weight_scores(order, weight, scheme, conv_groups)
        threshold = scores.flatten().kthvalue(count).values
    return scores > threshold if threshold < scores.max() else scores == threshold


def _array(weight: Tensor, scheme: Scheme, conv_groups: int) -> Tensor:
    """Return `weight` as (parts, filters, channels, taps); no box reaches across parts."""
    parts = conv_groups
    if scheme.has_block and conv_groups == len(weight):
        parts = 1
    array = weight.reshape(parts, len(weight) // parts, weight.shape[1], -1)
    return array.reshape(*array.shape[:2], -1, 1) if scheme.kind == "block" else array


def _boxes(array: Tensor, scheme: Scheme) -> list[Box]:
    """Return the box, or the two boxes, by which the scheme removes parts of `array`."""
    _, filters, channels, taps = array.shape
    rows, columns = min(scheme.block[0], filters), min(scheme.block[1], channels)
    return {
        "dense": [],
        "unstructured": [(1, 1, 1)],
        "filter": [(1, channels, taps)],
        "channel": [(filters, 1, taps)],
        "pattern": [(1, 1, taps)],
        "punched": [(rows, columns, 1)],
        "block": [(1, columns, 1), (rows, 1, 1)],
    }[scheme.kind]


def _box_grid(array: Tensor, box: Box) -> list[int]:
    """Return how many boxes `array` has: (parts, along filters, along channels, along taps)."""
    return [len(array), *(math.ceil(size / side) for size, side in zip(array.shape[1:], box, strict=True))]


def _box_sums(array: Tensor, box: Box) -> Tensor:
    """Sum `array` over boxes; returns the grid of sums."""
    parts, rows, columns, taps = _box_grid(array, box)
    missing = rows * box[0] - array.shape[1], columns * box[1] - array.shape[2]
    if any(missing):
        array = nn.functional.pad(array, (0, 0, 0, missing[1], 0, missing[0]))
    return array.reshape(parts, rows, box[0], columns, box[1], taps, box[2]).sum((2, 4, 6))


def _spread(grid: Tensor, box: Box, shape: torch.Size) -> Tensor:
    """Give all weights of a box its value in `grid`; returns an array of `shape`."""
    parts, rows, columns, taps = grid.shape
    boxes = grid[:, :, None, :, None, :, None].expand(parts, rows, box[0], columns, box[1], taps, box[2])
    return boxes.reshape(parts, rows * box[0], columns * box[1], taps * box[2])[:, : shape[1], : shape[2]]


def _to_weights(values: Tensor, weight: Tensor, scheme: Scheme, conv_groups: int) -> Tensor:
    """Give each weight the value (G,) of its group, the lesser one where it is in two; all weights of none get 1."""
    array = _array(weight, scheme, conv_groups)
    boxes = _boxes(array, scheme)
    if not boxes:
        return torch.ones_like(weight)
    grids = [_box_grid(array, box) for box in boxes]
    parts = values.split([math.prod(grid) for grid in grids])
    spread = [
        _spread(part.reshape(grid), box, array.shape) for part, grid, box in zip(parts, grids, boxes, strict=True)
    ]
    return (spread[0] if len(spread) == 1 else torch.minimum(*spread)).reshape(weight.shape)


def _group_scores(weight: Tensor, scheme: Scheme, conv_groups: int) -> Tensor:
    weight = weight.detach().float()
    return (group_norms(weight, scheme, conv_groups) / group_sizes(weight, scheme, conv_groups)).sqrt()


def _weight_scores(group_scores: Tensor, weight: Tensor, scheme: Scheme, conv_groups: int) -> Tensor:
    scores = _to_weights(group_scores, weight, scheme, conv_groups)
    return scores.masked_fill(~_best_patterns(weight), -2) if scheme.kind == "pattern" else scores


def _best_patterns(weight: Tensor) -> Tensor:
    """Return the pattern of each kernel that retains most of its norm; bool, of the shape of `weight`."""
    patterns = PATTERNS.to(weight.device)
    energy = weight.detach().float().square().flatten(2)  # (O, I, 9)
    return patterns[(energy @ patterns.float().T).argmax(-1)].view_as(weight)
