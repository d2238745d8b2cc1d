"""Tensors as views of flat memory. A logical dimension is a product of factors (size, stride), the outermost first.

With factors, reshaping, flattening, shuffling pixels and enlarging never move data: only what computes does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np

Factors = tuple[tuple[int, int], ...]  # (size, stride) of each factor of a dimension, in floats; none for a size of 1


@dataclass(eq=False)
class Buffer:
    """A stretch of floats: in the workspace, in the file of weights, or given by the caller."""

    kind: Literal["workspace", "constant", "input", "output"]
    size: int
    index: int = 0
    """Number of the input or output."""
    start: int = 0
    """Where it lies in the workspace, in floats."""
    array: np.ndarray | None = None
    """What a constant holds."""
    apart: int = 0
    """Of one that holds a chunk of the pixels: floats from a chunk's place to the next one's, if each has its own."""


@dataclass(frozen=True)
class View:
    """Where the elements of a tensor lie in a buffer."""

    buffer: Buffer
    offset: int
    dims: tuple[Factors, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(size for size, _ in dim) for dim in self.dims)

    @property
    def factors(self) -> Factors:
        """All factors, those of the first dimension first."""
        return tuple(factor for dim in self.dims for factor in dim)

    def offsets(self, dim: int) -> np.ndarray:
        """Return where each element along a dimension lies, relative to the first (n,)."""
        return positions(self.dims[dim])


def positions(factors: Factors) -> np.ndarray:
    """Return the position of each element of a product of factors, in logical order (n,)."""
    found = np.zeros(1, np.int64)
    for size, stride in factors:
        found = (found[:, None] + np.arange(size) * stride).ravel()
    return found


def merged(factors: Iterable[tuple[int, int]]) -> Factors:
    """Return the same positions in as few factors as possible."""
    result: list[tuple[int, int]] = []
    for size, stride in factors:
        if size == 1:
            continue
        if result and result[-1][1] == size * stride:
            result[-1] = (result[-1][0] * size, stride)
        else:
            result.append((size, stride))
    return tuple(result)


def contiguous(shape: Sequence[int]) -> tuple[Factors, ...]:
    """Return the dimensions of a tensor in row-major order without gaps."""
    strides = np.cumprod([1, *reversed(shape)])[-2::-1]
    return tuple(merged([(size, int(stride))]) for size, stride in zip(shape, strides, strict=True))


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """Return the view with another shape of as many elements, or None if that takes a copy."""
    left = list(merged(view.factors))
    dims = []
    for size in shape:
        dim: list[tuple[int, int]] = []
        while size > 1:
            n, stride = left.pop(0)
            if size % n == 0:
                dim.append((n, stride))
                size //= n
            elif n % size == 0:
                inner = n // size
                dim.append((size, stride * inner))
                left.insert(0, (inner, stride))
                size = 1
            else:
                return None
        dims.append(merged(dim))
    return replace(view, dims=tuple(dims))


def permuted(view: View, order: Sequence[int]) -> View:
    return replace(view, dims=tuple(view.dims[i] for i in order))


def expanded(view: View, shape: Sequence[int]) -> View:
    """Return the view broadcast to a shape, as torch does: sizes of 1 repeat, missing first dimensions are added."""
    dims = [()] * (len(shape) - len(view.dims)) + list(view.dims)
    sizes = [prod(n for n, _ in dim) for dim in dims]
    grown = [dim if n == size else merged([(size, 0)]) for dim, n, size in zip(dims, sizes, shape, strict=True)]
    return replace(view, dims=tuple(grown))


def sliced(view: View, dim: int, start: int, stop: int, step: int = 1) -> View | None:
    """Return elements start, start + step, … before stop of a dimension, or None if that takes a copy."""
    count = -(-(stop - start) // step)
    factors = view.dims[dim]
    inner = prod(n for n, _ in factors[1:])
    if len(factors) <= 1:
        stride = factors[0][1] if factors else 0
        cut = merged([(count, stride * step)])
    elif step == 1 and start % inner == 0 and count % inner == 0:
        stride, start = factors[0][1], start // inner
        cut = merged([(count // inner, stride), *factors[1:]])
    else:
        return None
    dims = (*view.dims[:dim], cut, *view.dims[dim + 1 :])
    return replace(view, offset=view.offset + start * stride, dims=dims)


def loops(views: Sequence[View]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the nested loops that visit all elements of views of equal shape: length, and the step of each view.

    The order is that of the first view's memory, outermost first; loops that can be one are one.
    """
    common = _common_factors(views)
    common.sort(key=lambda loop: -loop[1][0])
    result: list[tuple[int, tuple[int, ...]]] = []
    for size, strides in common:
        if result and result[-1][1] == tuple(size * stride for stride in strides):
            result[-1] = (result[-1][0] * size, strides)
        else:
            result.append((size, strides))
    yield from result


def _common_factors(views: Sequence[View]) -> list[tuple[int, tuple[int, ...]]]:
    """Split the dimensions of all views into the same factors."""
    found = []
    for dims in zip(*(view.dims for view in views), strict=True):
        left = [list(dim) for dim in dims]
        while any(left):
            sizes = [dim[-1][0] for dim in left]
            size = min(sizes)
            if any(n % size for n in sizes):
                raise ValueError(f"factors {dims} of one dimension do not divide each other")
            found.append((size, tuple(dim[-1][1] for dim in left)))
            for dim in left:
                n, stride = dim.pop()
                if n > size:
                    dim.append((n // size, stride * size))
    return found
