"""N-gram language models by kenlm, over tokens or over words.

An ARPA file or a binary of kenlm (Heafield, "KenLM: Faster and Smaller Language Model Queries", WMT 2011). The words of
a token-level model are the symbols of the tokenizer.
"""

import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable
from itertools import takewhile
from pathlib import Path
from typing import Literal

import kenlm
import torch
from torch import Tensor

from asrkit.errors import InputError
from asrkit.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

LN_10 = math.log(10)  # kenlm's logarithms are to base 10
END, UNKNOWN = "</s>", "<unk>"
BINARY_START = b"mmap lm http://kheafield.com/code"
CACHED_SCORES = 1 << 24  # at most so many floats
MOST_FOREIGN = 0.1  # a model of which a larger part of the words are no tokens is of another vocabulary


def load_ngram(
    file: Path, tokenizer: Tokenizer, unit: Literal["token", "word"] = "token", name: str = "lm", device="cpu"
) -> "TokenNgram | WordNgram":
    """Load an n-gram model as a scorer of the tokenizer's tokens.

    Raises:
        InputError: the file is missing, broken (names the line of an ARPA file), neither an ARPA file nor a binary of
            kenlm, or its vocabulary is another one.
    """
    model = read_kenlm(file)
    if unit == "token":
        _check_tokens(file, model, tokenizer)
        return TokenNgram(model, tokenizer, name, device)
    if not any(tokenizer.decode([token]) in model for token in range(2, tokenizer.vocab_size)):
        raise InputError(f"{file}: of another vocabulary: no word that one token spells is in it (upper case, maybe?)")
    return WordNgram(model, tokenizer, name, device)


def read_kenlm(file: Path) -> kenlm.Model:
    """Read an ARPA file or a binary of kenlm. Raises InputError as `load_ngram` does."""
    arpa = _is_arpa(file)
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(str(file), config)
    except (OSError, RuntimeError) as error:  # its message has C++ names, and the byte where it gave up
        reason = (arpa and _broken_line(file)) or "damaged: " + re.split(r"threw \w+\. ", str(error))[-1].rstrip(")")
        raise InputError(f"{file}: {reason}") from error


def _is_arpa(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            start = stream.read(4096).lstrip()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    if not start.startswith((BINARY_START, b"\\data\\")):
        raise InputError(f"{file}: neither an ARPA file nor a kenlm binary")
    return not start.startswith(BINARY_START)


def _check_tokens(file: Path, model: kenlm.Model, tokenizer: Tokenizer) -> None:
    """Raise InputError if the words of a model are not tokens; of a binary they can only be asked for."""
    tokens = set(tokenizer.symbols)
    unseen = sum(symbol not in model for symbol in tokens)
    if 2 * unseen > len(tokens):
        log.warning("%s: %d of the recogniser's %d tokens are not in it", file, unseen, len(tokens))
    hint = "is it a model of words? then its unit is 'word'"
    if _is_arpa(file):
        words = _unigrams(file) - {"<s>", END, UNKNOWN}
        if len(words - tokens) > MOST_FOREIGN * len(words):
            foreign = min(words - tokens)
            raise InputError(
                f"{file}: of another vocabulary: {len(words - tokens)} of its {len(words)} words are no tokens of the "
                f"recogniser, '{foreign}' for instance ({hint})"
            )
    elif not any(symbol in model for symbol in tokens - {UNKNOWN}):
        raise InputError(f"{file}: of another vocabulary: no token of the recogniser is in it ({hint})")


def _unigrams(file: Path) -> set[str]:
    """Return the words of an ARPA file."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        lines = takewhile(lambda line: not line.startswith("\\2-grams:"), stream)
        return {fields[1] for line in lines if len(fields := line.split()) > 1 and fields[0] != "ngram"}


def _broken_line(file: Path) -> str | None:
    """Return the first line of an ARPA file that is wrong, by its number, and what is wrong with it."""
    counts: dict[int, int] = {}  # order -> n-grams, by the head
    words: set[str] = set()
    order = left = number = 0
    with file.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            fields, problem = line.split(), ""
            if line.startswith("\\"):
                heading = re.match(r"\\(\d+)-grams:|\\(?:data|end)\\", line)
                if left > 0:
                    problem = f"the {order}-grams are {left} fewer than the head of the file says"
                elif not heading or (heading[1] and int(heading[1]) != order + 1):
                    problem = f"unexpected {fields[0]}"
                elif heading[1]:
                    order += 1
                    left = counts.get(order, 0)
                elif fields[0] == "\\end\\":
                    return None
            elif order and fields:
                problem = _wrong_gram(fields, order, words)
                left -= 1
                if not problem and left < 0:
                    problem = f"more {order}-grams than the head of the file says"
            elif fields:
                count = re.match(r"ngram (\d+) *= *(\d+)\s*$", line)
                problem = "" if count else f"expected 'ngram <order>=<count>', found '{line.strip()}'"
                counts |= {int(count[1]): int(count[2])} if count else {}
            if problem:
                return f"line {number}: {problem}"
    return f"line {number + 1}: the file ends before \\end\\"


def _wrong_gram(fields: list[str], order: int, words: set[str]) -> str:
    """Say what is wrong with a line "log10-probability word … [back-off]"; collects the words of unigrams."""
    if len(fields) not in (order + 1, order + 2):
        return f"expected a number, {order} words and perhaps another number, found {len(fields)} fields"
    gram = fields[1 : order + 1]
    if order == 1:
        words.add(gram[0])
    elif unknown := [word for word in gram if word not in words and word != UNKNOWN]:
        return f"'{unknown[0]}' is not among the unigrams"
    for text in (fields[0], *fields[order + 1 :]):
        try:
            if not math.isfinite(float(text)):
                return f"'{text}' is not finite"
        except ValueError:
            return f"'{text}' is not a number"
    return f"the log-probability {fields[0]} is above 0" if float(fields[0]) > 0 else ""


class _TabledScorer(ABC):
    """Scores by what a hypothesis ends in, kept in a table; the state is its number there (B,).

    So kenlm is asked once for each context that is met, and the search moves nothing but integers. The rows of scores
    are a cache that is emptied when it is full.
    """

    def __init__(self, vocab_size: int, first: Hashable, name: str, device: torch.device | str) -> None:
        self.name = name
        self._entries = [first]
        self._numbers = {first: 0}
        self._next: dict[tuple[int, int], int] = {}  # number, token -> number
        self._rows = torch.empty(max(1, CACHED_SCORES // vocab_size), vocab_size, device=device)
        self._places: dict[int, int] = {}  # number -> row

    def start(self, n: int) -> list[Tensor]:
        return [torch.zeros(n, dtype=torch.int64, device=self._rows.device)]

    def score(self, state: list[Tensor]) -> Tensor:
        numbers = state[0].tolist()
        new = set(numbers) - self._places.keys()
        if len(self._places) + len(new) > len(self._rows):
            self._places.clear()
            new = set(numbers)
            if len(new) > len(self._rows):
                self._rows = self._rows.new_empty(len(new), self._rows.shape[1])
        if new:
            first = len(self._places)
            self._places.update((number, first + i) for i, number in enumerate(new))
            self._rows[first : first + len(new)] = torch.tensor([self._scores(self._entries[n]) for n in new])
        return self._rows[[self._places[number] for number in numbers]]

    def advance(self, state: list[Tensor], tokens: Tensor) -> list[Tensor]:
        pairs = zip(state[0].tolist(), tokens.tolist(), strict=True)
        numbers = [self._next[pair] if pair in self._next else self._step(pair) for pair in pairs]
        return [state[0].new_tensor(numbers)]

    def finish(self, state: list[Tensor]) -> Tensor:
        return self._rows.new_tensor([self._end(self._entries[number]) for number in state[0].tolist()])

    def _step(self, pair: tuple[int, int]) -> int:
        entry = self._after(self._entries[pair[0]], pair[1])
        number = self._numbers.setdefault(entry, len(self._entries))
        if number == len(self._entries):
            self._entries.append(entry)
        self._next[pair] = number
        return number

    @abstractmethod
    def _scores(self, entry) -> list[float]:
        """Log-probabilities (V) of each next token after an entry."""

    @abstractmethod
    def _after(self, entry, token: int):
        """The entry that follows by a token."""

    @abstractmethod
    def _end(self, entry) -> float:
        """Log-probability of the end of the sentence."""


class TokenNgram(_TabledScorer):
    """An n-gram over tokens; an entry is a state of kenlm."""

    def __init__(self, model: kenlm.Model, tokenizer: Tokenizer, name: str = "lm", device="cpu") -> None:
        super().__init__(tokenizer.vocab_size, _sentence_start(model), name, device)
        self._model, self._symbols = model, tokenizer.symbols

    def _scores(self, entry: kenlm.State) -> list[float]:
        score, after = self._model.BaseScore, kenlm.State()
        return [LN_10 * score(entry, symbol, after) for symbol in self._symbols]

    def _after(self, entry: kenlm.State, token: int) -> kenlm.State:
        after = kenlm.State()
        self._model.BaseScore(entry, self._symbols[token], after)
        return after

    def _end(self, entry: kenlm.State) -> float:
        return LN_10 * self._model.BaseScore(entry, END, kenlm.State())


class WordNgram(_TabledScorer):
    """An n-gram over words; an entry is a state of kenlm before a word and the tokens that spell its beginning.

    A word is scored when it is complete: with the token that starts the next one, or with the end of the sentence. One
    that the model does not know is its `<unk>`.
    """

    def __init__(self, model: kenlm.Model, tokenizer: Tokenizer, name: str = "lm", device="cpu") -> None:
        super().__init__(tokenizer.vocab_size, (_sentence_start(model), ()), name, device)
        self._model, self._tokenizer = model, tokenizer

    def knows(self, word: str) -> bool:
        return word in self._model

    def _scores(self, entry: tuple[kenlm.State, tuple[int, ...]]) -> list[float]:
        score, _ = self._word(entry)
        return [score * starts for starts in self._tokenizer.word_starts]

    def _after(self, entry: tuple[kenlm.State, tuple[int, ...]], token: int) -> tuple[kenlm.State, tuple[int, ...]]:
        if self._tokenizer.word_starts[token]:
            return self._word(entry)[1], (token,)
        return entry[0], (*entry[1], token)

    def _end(self, entry: tuple[kenlm.State, tuple[int, ...]]) -> float:
        score, state = self._word(entry)
        return score + LN_10 * self._model.BaseScore(state, END, kenlm.State())

    def _word(self, entry: tuple[kenlm.State, tuple[int, ...]]) -> tuple[float, kenlm.State]:
        """Return the log-probability of the word that an entry spells, and the state after it."""
        before, tokens = entry
        word = self._tokenizer.decode(tokens)
        if not word:
            return 0.0, before
        after = kenlm.State()
        return LN_10 * self._model.BaseScore(before, word, after), after


def _sentence_start(model: kenlm.Model) -> kenlm.State:
    state = kenlm.State()
    model.BeginSentenceWrite(state)
    return state
