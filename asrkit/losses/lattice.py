"""The sum over all paths of a transducer lattice, with the posterior probability of every arc."""

import torch
from torch import Tensor

# Probability zero. Finite, because the difference of two infinities is no number.
LOG_ZERO = -1e30


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
