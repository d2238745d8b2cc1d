"""Transcripts in the form the toolkit works with: words of letters and apostrophes, one case, single spaces."""

import re
import unicodedata
from typing import Literal

Case = Literal["lower", "upper", "keep"]

_APOSTROPHES = str.maketrans("’‘ʼ`´", "'''''")
_JOINERS = re.compile(r"[-‐‑‒–—/_]+")  # between two words


def normalise(text: str, case: Case = "lower") -> str:
    """Remove punctuation, unify apostrophes and case; digits stay (see `has_digits`).

    >>> normalise("“Don’t go,” she said — twenty-one times!")
    "don't go she said twenty one times"
    """
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES)
    text = _JOINERS.sub(" ", text)
    text = "".join(character for character in text if character.isspace() or _is_kept(character))
    words = (_strip_quotes(word) for word in text.split())
    text = " ".join(word for word in words if word)
    return text if case == "keep" else text.upper() if case == "upper" else text.lower()


def has_digits(text: str) -> bool:
    """Whether a text has digits: how they were spoken is not known, so they must be written out by hand."""
    return any(character.isdigit() for character in text)


def _is_kept(character: str) -> bool:
    return character == "'" or unicodedata.category(character)[0] in "LMN"


def _strip_quotes(word: str) -> str:
    """Take off apostrophes that quote ('so' -> so), and leave those of a word ('tis, dogs', don't)."""
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == "'" else word.strip("'") and word
