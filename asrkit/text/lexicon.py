"""Pronunciation lexicons: word -> its pronunciations, the preferred one first."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from asrkit.errors import InputError
from asrkit.files import atomic_write

Pronunciation = tuple[str, ...]
Lexicon = dict[str, list[Pronunciation]]


def read_lexicon(path: Path | str) -> Lexicon:
    """Read `word phone phone …` lines; a word may have several lines.

    Raises:
        InputError: the file cannot be read or holds no word, or a line has no phones; names file and line.
    """
    lexicon: Lexicon = {}
    for number, line in _lines(path):
        word, *phones = line.split()
        if not phones:
            raise InputError(f"{path}: line {number}: '{word}' has no phones")
        _add(lexicon, word, phones)
    if not lexicon:
        raise InputError(f"{path}: no words")
    return lexicon


def read_cmudict(path: Path | str) -> Lexicon:
    """Read the CMU pronouncing dictionary: `word(2) P R1 OW0 # comment`; stress digits are dropped (39 phones).

    Raises:
        InputError: as `read_lexicon`.
    """
    lexicon: Lexicon = {}
    for number, line in _lines(path):
        if line.startswith(";;;"):  # comments of the older releases
            continue
        word, *phones = line.partition(" #")[0].split()
        if not phones:
            raise InputError(f"{path}: line {number}: '{word}' has no phones")
        _add(lexicon, re.sub(r"\(\d+\)$", "", word).lower(), [phone.rstrip("012") for phone in phones])
    if not lexicon:
        raise InputError(f"{path}: no words")
    return lexicon


def write_lexicon(lexicon: Lexicon, path: Path | str) -> None:
    """Write one `word phone phone …` line for each pronunciation, in the order of the lexicon."""
    with atomic_write(path) as out:
        for word, pronunciations in lexicon.items():
            for phones in pronunciations:
                print(word, *phones, file=out)


def select_words(lexicon: Lexicon, words: Iterable[str], source: Path | str) -> Lexicon:
    """The pronunciations of `words` alone, in their order; `source` names the lexicon in the error.

    Words are looked up as written and then in lower case.

    Raises:
        InputError: words without a pronunciation; names the first of them and says how many there are.
    """
    found = {word: lexicon.get(word) or lexicon.get(word.lower()) for word in words}
    missing = [word for word, pronunciations in found.items() if not pronunciations]
    if missing:
        shown = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
        raise InputError(f"{source}: no pronunciation of {len(missing)} of {len(found)} words: {shown}")
    return {word: pronunciations for word, pronunciations in found.items() if pronunciations}


def spell_out(words: Iterable[str], pronounce: Callable[[str], Sequence[str]]) -> Lexicon:
    """A lexicon from a grapheme-to-phoneme function: word -> phones.

    Raises:
        InputError: the function gives no phones for a word.
    """
    lexicon: Lexicon = {}
    for word in words:
        phones = tuple(pronounce(word))
        if not phones:
            raise InputError(f"no pronunciation of '{word}'")
        lexicon[word] = [phones]
    return lexicon


def _add(lexicon: Lexicon, word: str, phones: Iterable[str]) -> None:
    pronunciations = lexicon.setdefault(word, [])
    if (pronunciation := tuple(phones)) not in pronunciations:
        pronunciations.append(pronunciation)


def _lines(path: Path | str) -> Iterator[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
