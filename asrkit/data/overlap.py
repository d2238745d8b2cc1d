"""Test text inside training or language model text: whole sentences, and long word strings."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Overlap(NamedTuple):
    """Words of test sentence `test` (its index) that are in sentence `train` (its index) of the other text."""

    test: int
    train: int
    words: str
    whole: bool


def find_overlaps(test: Iterable[str], train: Iterable[str], length: int = 8) -> Iterator[Overlap]:
    """Each place where a line of `train` is a sentence of `test`, or shares `length` words in a row with one.

    Test text is hashed and the other streamed, so it may have many millions of lines. Of a string longer than
    `length`, and of a line that meets a test sentence in several places, the first place alone is given.
    """
    sentences: dict[str, int] = {}
    strings: dict[tuple[str, ...], int] = {}
    for index, text in enumerate(test):
        words = tuple(text.split())
        sentences.setdefault(" ".join(words), index)
        for start in range(len(words) - length + 1):
            strings.setdefault(words[start : start + length], index)
    for number, text in enumerate(train):
        words = tuple(text.split())
        whole = sentences.get(" ".join(words)) if words else None
        if whole is not None:
            yield Overlap(whole, number, " ".join(words), True)
        found = {whole}
        for start in range(len(words) - length + 1):
            string = words[start : start + length]
            index = strings.get(string)
            if index is not None and index not in found:
                found.add(index)
                yield Overlap(index, number, " ".join(string), False)
