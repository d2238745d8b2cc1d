"""How well a language model predicts a text."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asrkit.lm.scorer import Scorer


@dataclass(frozen=True)
class Perplexity:
    """Of a text: natural log-probability, and what it is spread over."""

    log_prob: float
    words: int
    tokens: int
    ends: int
    """Ends of sentences that were predicted, each like a token; none by a model that knows no end."""
    unknown: int
    """Words that the model does not know; they count with its probability of the unknown."""

    @property
    def per_token(self) -> float:
        return math.exp(-self.log_prob / (self.tokens + self.ends))

    @property
    def per_word(self) -> float:
        """Comparable between models with different tokens."""
        return math.exp(-self.log_prob / (self.words + self.ends))

    def __add__(self, other: "Perplexity") -> "Perplexity":
        return Perplexity(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


@torch.inference_mode()
def sentence_log_probs(scorer: Scorer, sentences: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probability of N sentences of tokens, their ends included, (N,)."""
    tokens = pad_sequence([torch.tensor(s, dtype=torch.int64) for s in sentences], batch_first=True)  # (N, U)
    lens = torch.tensor([len(s) for s in sentences])
    order = lens.argsort(descending=True, stable=True)
    state = scorer.start(len(sentences))
    device = state[0].device
    tokens, lens, total = tokens[order].to(device), lens[order].to(device), torch.zeros(len(sentences), device=device)
    for u in range(tokens.shape[1] + 1):
        left = int((lens > u).sum())  # sentences that go on; the longest come first
        total[left : len(state[0])] += scorer.finish([s[left:] for s in state])
        if left == 0:
            break
        state = [s[:left] for s in state]
        labels = tokens[:left, u]
        total[:left] += scorer.score(state).gather(1, labels[:, None])[:, 0]
        state = scorer.advance(state, labels)
    return total[order.argsort()].cpu()
