"""Weights of a product in the order in which its kernel reads them: blocked compressed storage with rows reordered.

Rows that lie next to each other in a block share a list of columns (in the terms of 2111.11581, section 5: occurrence,
column stride and compact column, with the weights of a block column after column). Which rows make a block, and which
kernel reads it, is chosen by an estimate of what it takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asrkit.compress.codegen.steps import Product
from asrkit.compress.codegen.target import Target

MASKED_ROWS = 4  # rows of a block whose columns are grouped by which of the rows need them
# In the unit of `choose`, products of vectors: beginning and ending a block, and loading a vector of pixels, which
# comes from the second cache or lies across the lines of the first.
BLOCK_COST, LOAD_COST = 12.0, 2.5
LEAST_ROWS, LOAD_PART = 4, 0.25  # of the vector kernel: rows of a block; what a pixel costs, in vectors of weights


@dataclass
class Packed:
    """Blocks of rows for one kernel."""

    kernel: Literal["shared", "masked", "vector"]
    rows: int
    """Rows that share their columns, a block; the last `len(order) % rows` make a block of their own. For the vector
    kernel, as many blocks as fill a vector count as one, and the last is filled with zeros."""
    order: np.ndarray
    """(O,) which row comes when."""
    counts: np.ndarray
    """(blocks, 1) columns of each block; for the masked kernel (blocks, 15), by the set of rows; for the vector kernel
    (vectors of rows, blocks of each)."""
    columns: np.ndarray
    """Offsets into the input, of all blocks one after another, int32."""
    weights: np.ndarray
    """In the order of the columns, those of the rows of a column together, float32."""

    @property
    def stored(self) -> int:
        return len(self.weights)


def pack(step: Product, target: Target) -> Packed:
    """Choose the kernel, the size of blocks and the order of rows that should take least."""
    if step.pixels == 1 and len(step.columns) == 1:
        return _pack_vectors(step, _rows_of_vectors(step.weight != 0, target), target.lanes)
    _, *chosen = choose(step.weight != 0, len(step.columns), step.pixels, target)
    return _pack(step, *chosen)


def choose(used: np.ndarray, groups: int, pixels: int, target: Target) -> tuple[float, str, int, np.ndarray]:
    """Return cost, kernel, size of blocks and order of rows of the best way to multiply by weights (O, K).

    The cost is about the number of half cycles, of which a product of vectors takes one.
    """
    vectors = -(-pixels // target.lanes)
    best: tuple[float, str, int, np.ndarray] | None = None
    for order in _orders(used, groups):
        ordered = used[order]
        for rows, most in target.tiles.items():
            if rows > 1 and (len(order) // groups) % rows and groups > 1:
                continue  # a block would reach into another group
            width = min(most, vectors)
            for kernel in ("shared", "masked") if rows == MASKED_ROWS else ("shared",):
                cost = _cost(ordered, rows, width, kernel) * vectors
                if best is None or cost < best[0]:
                    best = cost, kernel, rows, order
    assert best is not None
    return best


def _orders(used: np.ndarray, groups: int) -> Iterator[np.ndarray]:
    """Yield orders of rows: as they are, and equal ones together with the emptiest last, within each group."""
    natural = np.arange(len(used))
    yield natural
    if used.all():
        return
    patterns = np.packbits(used, axis=1)
    keys = [patterns[:, i] for i in range(min(patterns.shape[1], 64))]
    order = np.lexsort((*keys, -used.sum(axis=1), natural // (len(used) // groups)))
    if not np.array_equal(order, natural):
        yield order


def _cost(used: np.ndarray, rows: int, width: int, kernel: str) -> float:
    """Return the cost of a vector of pixels in tiles of `width` of them."""
    total = 0.0
    for block in _blocks(used, rows):
        here = len(block)
        counts = block.sum(axis=0)
        if kernel == "shared":
            columns = np.count_nonzero(counts)
            total += columns * max(here * width, LOAD_COST * width + here, 8 if here * width < 4 else 0)
        else:
            counts = counts[counts > 0]
            total += np.maximum(counts * width, counts + LOAD_COST * width).sum() + 15 * 2
        total += BLOCK_COST + here * width
    return total / width


def _blocks(used: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    for first in range(0, len(used), rows):
        yield used[first : first + rows]


def _rows_of_vectors(used: np.ndarray, target: Target) -> int:
    """Return how many rows should share their columns where there is one pixel: those of a vector, or of a part of it.

    The weights are read once only, so they cost by their number, and each load of a pixel a quarter of a vector.
    """
    used = np.pad(used, ((0, -len(used) % target.lanes), (0, 0)))

    def cost(rows: int) -> float:
        return _apart(used, rows).any(axis=1).sum() * (rows / target.lanes + LOAD_PART)

    return min((n for n in (target.lanes, target.lanes // 2, target.lanes // 4) if n >= LEAST_ROWS), key=cost)


def _apart(matrix: np.ndarray, rows: int) -> np.ndarray:
    """Return a matrix (O, K) as blocks (O / rows, rows, K)."""
    return matrix.reshape(len(matrix) // rows, rows, matrix.shape[1])


def _pack_vectors(step: Product, rows: int, lanes: int) -> Packed:
    weight = np.pad(step.weight, ((0, -len(step.weight) % lanes), (0, 0)))
    blocks = [(block, np.flatnonzero(block.any(axis=0))) for block in _apart(weight, rows)]
    return Packed(
        "vector",
        rows,
        np.arange(len(step.weight)),
        np.array([len(found) for _, found in blocks], np.int32).reshape(-1, lanes // rows),
        np.concatenate([step.columns[0][found] for _, found in blocks]).astype(np.int32),
        np.concatenate([block[:, found].T.ravel() for block, found in blocks]).astype(np.float32),
    )


def _pack(step: Product, kernel: str, rows: int, order: np.ndarray) -> Packed:
    weight = step.weight[order]
    groups = order // (len(order) // len(step.columns))
    counts, columns, weights = [], [], []
    for first in range(0, len(order), rows):
        block = weight[first : first + rows]
        offsets = step.columns[groups[first]]
        used = block != 0
        if kernel == "masked" and len(block) == MASKED_ROWS:
            sets = (used * (1 << np.arange(MASKED_ROWS))[:, None]).sum(axis=0)
            chosen = [np.flatnonzero(sets == n) for n in range(1, 1 << MASKED_ROWS)]
            counts.append([len(found) for found in chosen])
            for n, found in enumerate(chosen, 1):
                columns.append(offsets[found])
                weights.append(block[[r for r in range(MASKED_ROWS) if n >> r & 1]][:, found].T.ravel())
        else:
            found = np.flatnonzero(used.any(axis=0))
            counts.append([len(found), *[0] * ((1 << MASKED_ROWS) - 2)] if kernel == "masked" else [len(found)])
            columns.append(offsets[found])
            weights.append(block[:, found].T.ravel())
    return Packed(
        kernel,
        rows,
        order,
        np.array(counts, np.int32),
        np.concatenate(columns).astype(np.int32),
        np.concatenate(weights).astype(np.float32),
    )
