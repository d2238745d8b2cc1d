"""The loss of a transducer's internal language model.

The internal language model is the predictor and the joiner without the encoder (`Joiner.internal_lm`). Training it
on the transcripts beside the transducer loss (Meng et al., "Internal Language Model Training for Domain-Adaptive
End-to-End Speech Recognition", 2102.01380) makes what is later subtracted, or adapted by text, a language model.
"""

import torch
from torch import Tensor


def internal_lm_loss(log_probs: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
    """Return -log P(targets) under a language model, of each sentence.

    Args:
        log_probs: (N, U, V) or (N, U + 1, V) of the label after each prefix; what follows the last label is ignored,
            as a transducer has no end of the sentence.
        targets: (N, U) int64, padded with anything below V.
        target_lens: (N,) labels.

    Returns:
        (N,), differentiable in the log-probabilities; minus it is the sequences' total log-probability.

    Raises:
        ValueError: shapes or lengths do not fit each other.
    """
    labels = targets.shape[1]
    if log_probs.shape[0] != len(targets) or log_probs.shape[1] not in (labels, labels + 1):
        raise ValueError(f"log_probs {tuple(log_probs.shape)} do not fit targets {tuple(targets.shape)}")
    if len(target_lens) and (target_lens.min() < 0 or target_lens.max() > labels):
        raise ValueError(f"target_lens outside 0 … {labels}")
    scores = log_probs[:, :labels].gather(-1, targets[..., None]).squeeze(-1)  # (N, U)
    inside = torch.arange(labels, device=targets.device) < target_lens[:, None]
    return -torch.where(inside, scores, 0.0).sum(dim=1)
