"""What the beam search asks of anything that scores labels beside the transducer."""

from typing import Protocol

from torch import Tensor


class Scorer(Protocol):
    """Scores the next label of many hypotheses at once.

    A state is a list of tensors with the hypothesis in dimension 0 and of one shape for every hypothesis; the search
    selects, reorders and overwrites rows by indexing.
    `name` is the key of this scorer's own sum in the scores of a hypothesis.
    """

    name: str

    def start(self, n: int) -> list[Tensor]:
        """Return the state of `n` empty hypotheses."""

    def score(self, state: list[Tensor]) -> Tensor:
        """Return log-probabilities (B, V) of each next label; the blank's column is ignored."""

    def advance(self, state: list[Tensor], tokens: Tensor) -> list[Tensor]:
        """Return the state after appending tokens (B,) to the hypotheses of `state`."""

    def finish(self, state: list[Tensor]) -> Tensor:
        """Return the log-probability (B,) of the end of the sentence; zeros from a scorer that knows no end."""
