"""The best next labels of hypotheses from the joiner's logits: the inner loop of a beam search.

`best_labels` is plain torch, for any device; that of `asrkit.search.labels_numba` takes a single pass on the CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from asrkit.models.transducer import BLANK


@dataclass(frozen=True)
class Labels:
    """What may come next after B hypotheses."""

    blank: Tensor  # (B,) its log-probability
    tokens: Tensor  # (B, K) the best labels, best first
    acoustic: Tensor  # (B, K) their log-probabilities
    fused: Tensor  # (B, K) the same and what other models add, by which they are ranked
    all_fused: Tensor  # (B,) log of the sum of exp(fused) over all labels, not only the best

    @staticmethod
    def best(logits: Tensor, added: Tensor | None, factored: bool, k: int) -> "Labels":
        """Choose the best k labels from logits (B, V) and what other models add to log-probabilities (B, V).

        With `factored` the blank has a probability of its own, see `asrkit.nn.decoders.Joiner`.
        """
        k, logits = min(k, logits.shape[1] - 1), logits.float()
        added = None if added is None else added.float()
        if logits.device.type == "cpu":
            from asrkit.search.labels_numba import best_labels as compiled  # numba takes a second to import

            return Labels(*compiled(logits, added, factored, k))
        return Labels(*best_labels(logits, added, factored, k))


def best_labels(
    logits: Tensor, added: Tensor | None, factored: bool, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    blank, labels = logits[:, BLANK], logits[:, BLANK + 1 :]
    everything = labels.logsumexp(dim=1)
    shift = logsigmoid(-blank) - everything if factored else -torch.logaddexp(everything, blank)
    ranked = labels if added is None else labels + added[:, BLANK + 1 :]
    best, index = ranked.topk(k, dim=1)
    return (
        logsigmoid(blank) if factored else blank + shift,
        index + BLANK + 1,
        labels.gather(1, index) + shift[:, None],
        best + shift[:, None],
        (everything if added is None else ranked.logsumexp(dim=1)) + shift,
    )
