"""Full-sum transducer loss, exact, with its gradient in closed form.

Source: Graves, "Sequence Transduction with Recurrent Neural Networks", 1211.3711, eqs. 16-20. At every (t, u) of the
lattice a blank moves to (t + 1, u). Label u + 1 moves to (t, u + 1) in the "regular" topology of that paper, where the
path ends by the blank of the last frame; in the "modified" one it moves to (t + 1, u + 1), so that a frame has at most
one label (Tripathi et al., "Monotonic Recurrent Neural Network Transducer and Decoding Strategies", 2019).
"""

import torch
from torch import Tensor

# Probability zero. Finite, because the difference of two infinities is no number.
LOG_ZERO = -1e30


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


def lattice(
    blank: Tensor, label: Tensor, frame_lens: Tensor, label_lens: Tensor, modified: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over all paths of the transducer lattice.

    Columns of equal u are solved by one cumulative log-sum over time each, so U + 1 steps do, in float64.

    Args:
        blank: (N, T, U + 1) log-probability of the blank at each node.
        label: (N, T, U) log-probability of the next label at each node.
        frame_lens, label_lens: (N,).
        modified: labels take a frame, as blanks do.

    Returns:
        total (N,) float32, and the posterior probability that a path leaves each node by its blank (N, T, U + 1) and by
        its label (N, T, U), float32, zero outside the utterance.
    """
    n, frames, columns = blank.shape
    outside_time = torch.arange(frames, device=blank.device) >= frame_lens[:, None]  # (N, T)
    outside_label = torch.arange(columns - 1, device=blank.device) >= label_lens[:, None]  # (N, U)
    # After its last frame an utterance goes on by blanks of probability one, so that all end together at (T, U_n).
    blank_sum = blank.double().masked_fill(outside_time[:, :, None], 0.0)
    label = label.double().masked_fill(outside_time[:, :, None] | outside_label[:, None, :], LOG_ZERO)
    blank_sum = torch.cat([blank_sum.new_zeros(n, 1, columns), blank_sum.cumsum(dim=1)], dim=1)  # (N, T + 1, U + 1)
    before, after = blank_sum[:, :-1], blank_sum[:, -1:] - blank_sum[:, :-1]

    def later(x: Tensor) -> Tensor:
        """Scores (N, T) of the labels' frames as scores of the frames that they lead to."""
        return torch.nn.functional.pad(x[:, :-1], (1, 0), value=LOG_ZERO) if modified else x

    def earlier(x: Tensor, last: Tensor) -> Tensor:
        """Scores (N, T) of frames, and (N,) of the end, as scores of the labels' frames that lead to them."""
        return torch.cat([x[:, 1:], last[:, None]], dim=1) if modified else x

    forward = [before[:, :, 0]]
    for u in range(1, columns):
        entering = later(forward[-1] + label[:, :, u - 1]) - before[:, :, u]
        forward.append(entering.logcumsumexp(dim=1) + before[:, :, u])

    end = torch.where(
        torch.arange(columns, device=blank.device) == label_lens[:, None], 0.0, LOG_ZERO
    ).double()  # (N, U + 1)
    backward = [after[:, :, -1] + end[:, -1:]]
    for u in range(columns - 2, -1, -1):
        leaving = label[:, :, u] + earlier(backward[-1], end[:, u + 1]) - after[:, :, u]
        leaving = leaving.flip(1).logcumsumexp(dim=1).flip(1)
        backward.append(torch.logaddexp(leaving, end[:, u : u + 1]) + after[:, :, u])

    alpha = torch.stack(forward, dim=2)  # (N, T, U + 1)
    beta = torch.stack(backward[::-1], dim=2)  # (N, T, U + 1)
    total = beta[:, 0, 0]
    beta_next = torch.cat([beta[:, 1:], end[:, None, :]], dim=1)
    step = blank_sum[:, 1:] - blank_sum[:, :-1]
    blank_occupation = (alpha + step + beta_next - total[:, None, None]).exp()
    blank_occupation = blank_occupation.masked_fill(outside_time[:, :, None], 0.0)
    beta_after_label = (beta_next if modified else beta)[:, :, 1:]
    label_occupation = (alpha[:, :, :-1] + label + beta_after_label - total[:, None, None]).exp()
    impossible = total < LOG_ZERO / 2
    total = total.masked_fill(impossible, -torch.inf)
    blank_occupation, label_occupation = (
        x.masked_fill(impossible[:, None, None], 0.0).float() for x in (blank_occupation, label_occupation)
    )
    return total.float(), blank_occupation, label_occupation
