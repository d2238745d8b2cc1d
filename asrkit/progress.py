"""Progress of long work: a bar on a terminal, a line a minute in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


class _Lines:
    """Standard error on which each state of a bar is a line, as a log wants it."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(total: int | None, description: str, unit: str = "it", initial: int = 0) -> tqdm:
    """Return a tqdm bar on standard error that redraws at once on a terminal and once a minute elsewhere."""
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        file=sys.stderr if interactive else _Lines(),
        dynamic_ncols=interactive,
        mininterval=0.1 if interactive else 60.0,
        maxinterval=10.0 if interactive else 60.0,
        leave=not interactive,
    )


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Yield `items` while showing how many are done, the rate and the remaining time."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress_bar(total, description, unit) as bar:
        for item in items:
            yield item
            bar.update()
