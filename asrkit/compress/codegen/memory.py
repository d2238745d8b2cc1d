"""Where the buffers of a network lie in its workspace."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asrkit.compress.codegen.chains import Chain
from asrkit.compress.codegen.steps import Step
from asrkit.compress.codegen.views import Buffer

ALIGNMENT = 16  # floats


def rounded_up(n: int, step: int) -> int:
    return -(-n // step) * step


def allocate(steps: Sequence[Step], chains: Sequence[Chain] = ()) -> int:
    """Give each buffer of the workspace a place that nothing else needs while it does; return the size of all.

    The steps of a chain take turns: what they read and write lives as long as the chain. What holds a chunk of the
    pixels has its place in a frame, of which there is one for each chunk.
    """
    lives = _lives(steps, lambda buffer: not buffer.apart)
    frames = []
    for found in chains:
        members = steps[found.first : found.last + 1]
        inside = _lives(members, lambda buffer: buffer.apart)
        apart = rounded_up(_place(inside), ALIGNMENT)
        frame = Buffer("workspace", found.chunks * apart)
        frames.append((frame, apart, inside))
        lives[frame] = (found.first, found.last)
        for buffer in _lives(members, lambda buffer: not buffer.apart):
            first, last = lives[buffer]
            lives[buffer] = (min(first, found.first), max(last, found.last))
    size = _place(lives)
    for frame, apart, inside in frames:
        for buffer in inside:
            buffer.start += frame.start
            buffer.apart = apart
    return size


def _lives(steps: Sequence[Step], which: Callable[[Buffer], Any]) -> dict[Buffer, tuple[int, int]]:
    """Return the first and the last step that touches each buffer of the workspace."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for buffer in (*step.read, step.out.buffer):
            if buffer.kind == "workspace" and which(buffer):
                lives[buffer] = lives.get(buffer, (i, i))[0], i
    return lives


def _place(lives: Mapping[Buffer, tuple[int, int]]) -> int:
    """Place buffers by the steps they live from and to, the largest first, each as low as is free; return the size."""
    placed: list[Buffer] = []
    for buffer in sorted(lives, key=lambda buffer: -buffer.size):
        first, last = lives[buffer]
        others = [other for other in placed if lives[other][0] <= last and first <= lives[other][1]]
        for other in sorted(others, key=lambda other: other.start):
            if other.start >= buffer.start + buffer.size:
                break
            buffer.start = max(buffer.start, rounded_up(other.start + other.size, ALIGNMENT))
        placed.append(buffer)
    return max((buffer.start + buffer.size for buffer in placed), default=0)
