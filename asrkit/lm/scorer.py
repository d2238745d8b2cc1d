"""What the beam search asks of anything that scores labels beside the transducer."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Scorer(Protocol):
    """Scores the next label of many hypotheses at once.

    A state is a list of tensors with the hypothesis in dimension 0; the search selects and reorders by indexing.
    `name` is the key of this scorer's own sum in the scores of a hypothesis.
    """

    name: str

    def start(self, n: int) -> list[Tensor]:
        """Return the state of `n` empty hypotheses."""

    def score(self, state: list[Tensor]) -> Tensor:
        """Return log-probabilities (B, V) of each next label; the blank's column is ignored."""

    def advance(self, state: list[Tensor], tokens: Tensor) -> list[Tensor]:
        """Return the state after appending tokens (B,) to the hypotheses of `state`."""


@dataclass(frozen=True)
class LengthScorer:
    """One for each label: with a positive weight, a bonus against deletions."""

    vocab_size: int
    name: str = "length"

    def start(self, n: int) -> list[Tensor]:
        return [torch.ones(n, 1)]

    def score(self, state: list[Tensor]) -> Tensor:
        return state[0].expand(-1, self.vocab_size)

    def advance(self, state: list[Tensor], tokens: Tensor) -> list[Tensor]:
        return state
