"""Full-sum transducer loss, exact, with its gradient in closed form.

Source: Graves, "Sequence Transduction with Recurrent Neural Networks", 1211.3711, eqs. 16-20. At every (t, u) of the
lattice a blank moves to (t + 1, u). Label u + 1 moves to (t, u + 1) in the "regular" topology of that paper, where the
path ends by the blank of the last frame; in the "modified" one it moves to (t + 1, u + 1), so that a frame has at most
one label (Tripathi et al., "Monotonic Recurrent Neural Network Transducer and Decoding Strategies", 2019).
"""

import torch
from torch import Tensor

from asrkit.losses.lattice import lattice


def transducer_loss(
    logits: Tensor, targets: Tensor, logit_lens: Tensor, target_lens: Tensor, modified: bool = False
) -> Tensor:
    """Return -log P(targets | logits), summed over all alignments, of each utterance.

    Args:
        logits: (N, T, U + 1, V), not normalised; the blank has index 0.
        targets: (N, U) int64, padded with anything below V.
        logit_lens: (N,) frames, each 1 … T.
        target_lens: (N,) labels, each 0 … U.
        modified: at most one label a frame.

    Returns:
        (N,) float32, differentiable in the logits. An utterance with more labels than frames has no modified path: its
        loss is infinite and its gradient zero.

    Raises:
        ValueError: shapes or lengths do not fit each other.
    """
    n, frames, labels, _ = logits.shape
    if targets.shape != (n, labels - 1):
        raise ValueError(f"logits {tuple(logits.shape)} want targets {(n, labels - 1)}, not {tuple(targets.shape)}")
    if logit_lens.shape != (n,) or target_lens.shape != (n,):
        raise ValueError(f"lengths must have shape ({n},)")
    if logit_lens.min() < 1 or logit_lens.max() > frames or target_lens.min() < 0 or target_lens.max() >= labels:
        raise ValueError(f"lengths outside 1 … {frames} frames or 0 … {labels - 1} labels")
    return _TransducerLoss.apply(logits, targets, logit_lens, target_lens, modified)


class _TransducerLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, logits: Tensor, targets: Tensor, logit_lens: Tensor, target_lens: Tensor, modified: bool
    ) -> Tensor:
        # An utterance at a time, so that what is computed on the way stays in the cache.
        normaliser = torch.stack([x.float().logsumexp(dim=-1) for x in logits])  # (N, T, U + 1)
        blank = logits[..., 0] - normaliser  # (N, T, U + 1)
        index = targets[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        label = logits[:, :, :-1].gather(-1, index).squeeze(-1) - normaliser[:, :, :-1]  # (N, T, U)
        total, blank_occupation, label_occupation = lattice(blank, label, logit_lens, target_lens, modified)
        ctx.save_for_backward(logits, targets, normaliser, blank_occupation, label_occupation)
        return -total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        """d loss / d logit k at (t, u) = P(through (t, u)) softmax_k - P(leaving (t, u) by k)."""
        logits, targets, normaliser, blank, label = ctx.saved_tensors
        scale = grad_output[:, None, None]
        blank, label = blank * scale, label * scale
        through = blank.clone()
        through[:, :, :-1] += label
        grad = torch.empty_like(logits)
        for n, x in enumerate(logits):
            g = (x.float() - normaliser[n, ..., None]).exp_().mul_(through[n, ..., None])  # (T, U + 1, V)
            g[..., 0] -= blank[n]
            index = targets[n, None, :, None].expand(len(g), -1, 1)
            g[:, :-1].scatter_add_(-1, index, -label[n, ..., None])
            grad[n] = g
        return grad, None, None, None, None
