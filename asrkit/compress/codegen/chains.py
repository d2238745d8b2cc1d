"""Steps that follow each other pixel for pixel, computed a chunk of the pixels at a time.

What one writes for a chunk is still in the cache when the next one reads it. Where nobody else reads it, it does not
even have a place for all pixels: each chunk finds the memory that the one before it has left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from asrkit.compress.codegen import views
from asrkit.compress.codegen.steps import Elementwise, Product, Step
from asrkit.compress.codegen.target import Target
from asrkit.compress.codegen.views import Buffer, View

CHUNK = 2**19  # bytes that a step should read and write at once: they stay in a second cache, beside the weights

ELSEWHERE = np.array([-1])
Places = dict[Buffer, np.ndarray]
"""Where pixel 0 of each row lies in buffers whose pixels follow each other."""


@dataclass(frozen=True)
class Chain:
    """Steps `first` … `last`, each a product or elementwise."""

    first: int
    last: int
    chunks: int
    pixels: int
    lanes: int

    @property
    def vectors(self) -> int:
        return -(-self.pixels // self.lanes)

    @property
    def most(self) -> int:
        """Vectors of a chunk; the later chunks may have one less."""
        return -(-self.vectors // self.chunks)

    @property
    def large(self) -> int:
        """How many chunks have `most`."""
        return self.vectors % self.chunks or self.chunks

    @property
    def last_pixels(self) -> int:
        """Pixels of the last chunk, whose last vector need not be full."""
        return self.pixels - (self.vectors - (self.most if self.large == self.chunks else self.most - 1)) * self.lanes


def chain(steps: Sequence[Step], target: Target) -> list[Chain]:
    """Find the chains among steps, and give what only a chain's own steps read a place for a chunk of pixels."""
    chains = []
    first = 0
    while first < len(steps):
        last = _last(steps, first)
        members = steps[first : last + 1]
        if last > first and (chunks := _chunks(members, target)) > 1:
            found = Chain(first, last, chunks, _pixels(members), target.lanes)
            chains.append(found)
            for step in members:
                if isinstance(step, Elementwise):
                    _take_apart(step, found.pixels)
            others = [*steps[:first], *steps[last + 1 :]]
            read = {buffer for step in others for buffer in step.read}
            for step in members[:-1]:
                if step.out.buffer not in read:
                    _shrink(step, members, found)
        first = last + 1
    return chains


def _pixels(members: Sequence[Step]) -> int:
    return next(step.pixels for step in members if isinstance(step, Product))


def _last(steps: Sequence[Step], first: int) -> int:
    """Return the last of the steps that can be computed chunk by chunk together with the first."""
    last, product = first, next((step for step in steps[first : first + 2] if isinstance(step, Product)), None)
    if product is None or product.pixels == 1 or (accesses := _accesses(steps[first], product.pixels)) is None:
        return first
    written = dict(accesses[0])
    for step in steps[first + 1 :]:
        accesses = _accesses(step, product.pixels)
        if accesses is None or not _fits(step, accesses[1], written):
            break
        written |= accesses[0]
        last += 1
    return last


def _fits(step: Step, reads: Places, written: Places) -> bool:
    """Return whether a step reads the same pixel only of what was written before it, and does read that."""
    shared = [buffer for buffer in step.read if buffer in written]
    if not shared or step.out.buffer in written:
        return False
    return all(buffer in reads and np.isin(reads[buffer], written[buffer]).all() for buffer in shared)


def _accesses(step: Step, pixels: int) -> tuple[Places, Places] | None:
    """Return what a step writes and what it reads of the same pixel; None if it cannot be computed chunk by chunk.

    A buffer whose pixels it writes in another order has no places; where it reads them in another, its place is -1.
    """
    if isinstance(step, Product) and step.pixels == pixels:
        reads = [(step.x, step.start + step.columns.ravel())]
        reads += [(rows.buffer, rows.start + rows.offsets) for rows in step.operands if not rows.per_row]
        return {step.out.buffer: step.out.offset + step.rows}, _joined(reads)
    if isinstance(step, Elementwise):
        nest, along = _loops(step, pixels)
        if along is None:
            return None
        aside = [loop for i, loop in enumerate(nest) if i != along]
        places = [
            view.offset + views.positions(tuple((n, strides[i]) for n, strides in aside))
            for i, view in enumerate([step.out, *step.inputs])
        ]
        out, *inputs = (x if stride == 1 else x[:0] for x, stride in zip(places, nest[along][1], strict=True))
        reads = [(view.buffer, x if len(x) else ELSEWHERE) for view, x in zip(step.inputs, inputs, strict=True)]
        return {step.out.buffer: out}, _joined(reads)
    return None


def _loops(step: Elementwise, pixels: int) -> tuple[list[tuple[int, tuple[int, ...]]], int | None]:
    """Return the loops of a step, and which of them goes along pixels that follow each other in one of its views."""
    nest = step.nest
    if step.along is not None:
        return nest, step.along
    return nest, next((i for i, (size, strides) in enumerate(nest) if size == pixels and 1 in strides), None)


def _take_apart(step: Elementwise, pixels: int) -> None:
    """Give a step a dimension for each of its loops."""
    nest, step.along = _loops(step, pixels)
    parts = [tuple(((n, strides[i]),) for n, strides in nest) for i in range(len(step.inputs) + 1)]
    step.out = replace(step.out, dims=parts[0])
    step.inputs = [replace(view, dims=dims) for view, dims in zip(step.inputs, parts[1:], strict=True)]


def _joined(places: Sequence[tuple[Buffer, np.ndarray]]) -> Places:
    result: Places = {}
    for buffer, rows in places:
        result[buffer] = np.union1d(result.get(buffer, rows), rows)
    return result


def _chunks(members: Sequence[Step], target: Target) -> int:
    pixels = _pixels(members)
    widest = max(sum(buffer.size // pixels for buffer in (step.out.buffer, *step.read)) for step in members)
    vectors = -(-pixels // target.lanes)
    return -(-vectors // max(1, CHUNK // (widest * target.vector_bytes)))


def _shrink(step: Step, members: Sequence[Step], chain: Chain) -> None:
    """Let what a step writes, and all that read it, have a place for one chunk, if its rows lie evenly apart."""
    old = step.out.buffer
    (rows,) = _accesses(step, chain.pixels)[0].values()
    plane = int(rows[1] - rows[0]) if len(rows) > 1 else old.size
    if old.kind != "workspace" or len(rows) == 0 or (np.diff(rows) != plane).any() or plane < chain.pixels:
        return
    pitch = (chain.most | 1) * chain.lanes  # an odd number of vectors, so that rows lie in different places of a cache
    new = Buffer("workspace", len(rows) * pitch, apart=len(rows) * pitch)

    def moved(where: np.ndarray | int) -> np.ndarray | int:
        return (where - rows[0]) // plane * pitch

    def view(x: View) -> View:
        if x.buffer is not old:
            return x
        dims = tuple(((n, s // plane * pitch if s >= plane else s),) for ((n, s),) in x.dims)
        return View(new, int(moved(x.offset)), dims)

    for member in members:
        if isinstance(member, Elementwise):
            member.inputs = [view(x) for x in member.inputs]
            member.out = view(member.out)
            continue
        if member.out.buffer is old:
            member.out, member.rows = View(new, 0, ()), moved(member.out.offset + member.rows)
        if member.x is old:
            member.x, member.start, member.columns = new, 0, moved(member.start + member.columns)
        member.operands = [
            replace(operand, buffer=new, start=0, offsets=moved(operand.start + operand.offsets))
            if operand.buffer is old
            else operand
            for operand in member.operands
        ]
