"""Batches of sentences for language models, with the interface of asrkit.data.batching.BatchLoader."""

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet, MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asrkit.data.batching import LABEL_STEP, even_out
from asrkit.data.manifests import read_numbered_texts
from asrkit.errors import InputError

WORDS_AN_HOUR = 9000  # of speech, 150 a minute: schedules and logs of the training count hours

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentenceBatchingConfig:
    """How sentences are put together for training."""

    max_tokens: int = 4096
    """Tokens in a batch, padding included."""
    max_length: int = 250
    """Longer sentences (tokens) are left out."""

    def __post_init__(self) -> None:
        if not 0 < self.max_length <= self.max_tokens:
            raise ValueError(f"max_length {self.max_length} must be from 1 to max_tokens {self.max_tokens}")


@dataclass(frozen=True)
class SentenceBatch:
    """N sentences: tokens (N, U) padded with 0, token_lens (N,), their numbers, and the time to say them."""

    tokens: Tensor
    token_lens: Tensor
    sentences: Sequence[int]
    hours: float

    @property
    def cuts(self) -> CutSet:
        """Names of the sentences as cuts without audio, for the training's report of a bad batch."""
        return CutSet.from_cuts(MonoCut(f"sentence-{number}", 0.0, 1.0, 0) for number in self.sentences)

    def to(self, device: torch.device | str) -> "SentenceBatch":
        return replace(self, tokens=self.tokens.to(device), token_lens=self.token_lens.to(device))


def read_sentences(files: Sequence[Path], encode: Callable[[str], list[int]]) -> Iterator[tuple[str, list[int]]]:
    """Yield each sentence of text files (one a line) or manifests, with its tokens.

    Sentences that `encode` cannot spell are left out; their number is logged, and the first is named.

    Raises:
        InputError: a file cannot be read, or nothing is left.
    """
    kept = left_out = 0
    first = ""
    for file in files:
        for number, text in read_numbered_texts(file):
            try:
                tokens = encode(text)
            except InputError as error:
                left_out += 1
                first = first or f"{file}: line {number}: {error}"
                continue
            kept += 1
            yield text, tokens
    if not kept:
        raise InputError(first or f"{', '.join(map(str, files))}: no text")
    if left_out:
        log.warning("%d of %d sentences are left out; the first is %s", left_out, left_out + kept, first)


class SentenceLoader:
    """Makes the batches of an epoch from text files or manifests.

    Batches hold sentences of about the same length, drawn and ordered anew in each epoch by `seed` if `shuffle`.
    Process `rank` of `world_size` gets batches rank, rank + world_size, … of the epoch's list, and all get equally
    many. `hours` is what the text would take to say.

    Raises:
        InputError: a file cannot be read, or there are fewer sentences than processes.
    """

    def __init__(
        self,
        files: Sequence[Path],
        encode: Callable[[str], list[int]],
        batching: SentenceBatchingConfig,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ):
        tokens, ends, words = array("i"), array("q", [0]), array("i")  # four bytes a token, for texts of any size
        for text, sentence in read_sentences(files, encode):
            if len(sentence) <= batching.max_length:
                tokens.extend(sentence)
                ends.append(len(tokens))
                words.append(len(text.split()))
        if not words:
            raise InputError(f"{', '.join(map(str, files))}: no sentence of at most {batching.max_length} tokens")
        if len(words) < world_size:
            raise InputError(f"{len(words)} sentences are too few for {world_size} processes")
        self._tokens = torch.frombuffer(tokens, dtype=torch.int32)
        self._ends, self._words = np.array(ends), np.array(words)
        self._batching, self._seed, self._shuffle = batching, seed, shuffle
        self._rank, self._world_size = rank, world_size

    @property
    def hours(self) -> float:
        """Hours that an epoch would take to say, all processes together."""
        return self._words.sum() / WORDS_AN_HOUR

    def epoch(self, number: int, skip: int = 0) -> Iterator[SentenceBatch]:
        """Yield this process's batches of an epoch but for the first `skip`."""
        for indices in self.plan(number)[self._rank :: self._world_size][skip:]:
            yield self._batch(indices)

    def plan(self, number: int) -> list[np.ndarray]:
        """Return the batches of an epoch, of all processes, as numbers of sentences."""
        rng = np.random.default_rng((self._seed, number))
        lengths = np.diff(self._ends)
        lengths = np.maximum(-(-lengths // LABEL_STEP), 1) * LABEL_STEP  # as they will be padded
        order = rng.permutation(len(lengths)) if self._shuffle else np.arange(len(lengths))
        batches: list[np.ndarray] = []
        for length in np.unique(lengths):
            same = order[lengths[order] == length]
            size = max(1, self._batching.max_tokens // int(length))
            batches += np.split(same, range(size, len(same), size))
        if self._shuffle:
            batches = [batches[index] for index in rng.permutation(len(batches))]
        return even_out(batches, self._world_size)

    def _batch(self, indices: np.ndarray) -> SentenceBatch:
        sentences = [self._tokens[self._ends[i] : self._ends[i + 1]].long() for i in indices]
        padded = pad_sequence(sentences, batch_first=True)
        return SentenceBatch(
            tokens=torch.nn.functional.pad(padded, (0, -padded.shape[1] % LABEL_STEP)),
            token_lens=torch.tensor([len(sentence) for sentence in sentences]),
            sentences=indices.tolist(),
            hours=self._words[indices].sum() / WORDS_AN_HOUR,
        )
