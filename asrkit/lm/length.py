"""A reward for each label, against the preference of a transducer with a language model for short hypotheses."""

import torch
from torch import Tensor


class LengthScorer:
    """Counts labels; its weight is the reward for one."""

    name = "length"

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._ones = torch.ones(1, vocab_size, device=device)

    def start(self, n: int) -> list[Tensor]:
        return [self._ones.new_zeros(n)]  # nothing to remember, but the number of hypotheses

    def score(self, state: list[Tensor]) -> Tensor:
        return self._ones.expand(len(state[0]), -1)

    def advance(self, state: list[Tensor], tokens: Tensor) -> list[Tensor]:
        return state

    def finish(self, state: list[Tensor]) -> Tensor:
        return state[0]
