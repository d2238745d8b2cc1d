"""The transducer lattice on CUDA: one program an utterance, forward and then backward, a row of nodes at a time.

The rows are those of the reference in `asrkit.losses.lattice`. A row reads the one before from memory, after a barrier,
because the lane of a node needs its neighbour's sum as well. NaN falls through every comparison here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG_ZERO = tl.constexpr(-1e30)


@triton.jit
def _log_add(x, y):
    return tl.where(x > y, x, y) + tl.log(1.0 + tl.exp(-tl.abs(x - y)))


@triton.jit
def _load(scores, index, mask):
    x = tl.load(scores + index, mask=mask, other=LOG_ZERO).to(tl.float64)
    return tl.where(x < LOG_ZERO, LOG_ZERO, x)


@triton.jit
def _forward_backward(
    blank,  # (N, T, U + 1)
    label,  # (N, T, U)
    frame_lens,  # (N,)
    label_lens,  # (N,)
    alpha,  # (N, T + 1, U + 1) float64; the end of utterance n is its node (T_n, U_n)
    beta,  # (N, T + 1, U + 1) float64
    total,  # (N,) float64
    blank_occupation,  # (N, T, U + 1), zero
    label_occupation,  # (N, T, U), zero
    frames,
    columns,
    SLANT: tl.constexpr,  # of a row: 1 for diagonals, 0 for frames
    WIDTH: tl.constexpr,  # a power of two, U + 1 at least
):
    n = tl.program_id(0).to(tl.int64)
    t_end, u_end = tl.load(frame_lens + n), tl.load(label_lens + n)
    blank += n * frames * columns
    blank_occupation += n * frames * columns
    label += n * frames * (columns - 1)
    label_occupation += n * frames * (columns - 1)
    alpha += n * (frames + 1) * columns
    beta += n * (frames + 1) * columns
    rows = t_end + SLANT * u_end
    u = tl.arange(0, WIDTH)

    for d in range(0, rows + 1):
        t = d - SLANT * u
        inside = (t >= 0) & (t <= t_end) & (u <= u_end)
        by_blank = inside & (t > 0)
        stay = _load(alpha, (t - 1) * columns + u, by_blank) + _load(blank, (t - 1) * columns + u, by_blank)
        s = t + SLANT - 1  # the frame of the label that leads here
        by_label = inside & (s >= 0) & (s < t_end) & (u > 0)
        enter = _load(alpha, s * columns + u - 1, by_label) + _load(label, s * (columns - 1) + u - 1, by_label)
        x = tl.where((t == 0) & (u == 0), 0.0, _log_add(stay, enter))
        tl.store(alpha + t * columns + u, x, mask=inside)
        tl.debug_barrier()

    whole = tl.load(alpha + t_end * columns + u_end)
    tl.store(total + n, whole)
    if whole > LOG_ZERO / 2:
        for back in range(0, rows + 1):
            t = rows - back - SLANT * u
            inside = (t >= 0) & (t <= t_end) & (u <= u_end)
            by_blank = inside & (t < t_end)
            stay = _load(beta, (t + 1) * columns + u, by_blank) + _load(blank, t * columns + u, by_blank)
            by_label = by_blank & (u < u_end)
            leave = _load(beta, (t + 1 - SLANT) * columns + u + 1, by_label)
            leave += _load(label, t * (columns - 1) + u, by_label)
            x = tl.where(t == t_end, tl.where(u == u_end, 0.0, LOG_ZERO), _log_add(stay, leave))
            tl.store(beta + t * columns + u, x, mask=inside)
            before = _load(alpha, t * columns + u, by_blank) - whole
            tl.store(blank_occupation + t * columns + u, tl.exp(before + stay), mask=by_blank)
            tl.store(label_occupation + t * (columns - 1) + u, tl.exp(before + leave), mask=by_label)
            tl.debug_barrier()


def lattice(
    blank: Tensor, label: Tensor, frame_lens: Tensor, label_lens: Tensor, modified: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `asrkit.losses.lattice.lattice`, for contiguous scores on one CUDA device."""
    n, frames, columns = blank.shape
    alpha, beta = blank.new_empty((2, n, frames + 1, columns), dtype=torch.float64)
    total = blank.new_empty(n, dtype=torch.float64)
    blank_occupation, label_occupation = torch.zeros_like(blank), torch.zeros_like(label)
    with torch.device(blank.device):
        _forward_backward[(n,)](
            blank,
            label,
            frame_lens,
            label_lens,
            alpha,
            beta,
            total,
            blank_occupation,
            label_occupation,
            frames,
            columns,
            SLANT=0 if modified else 1,
            WIDTH=triton.next_power_of_2(columns),
        )
    total = torch.where(total < LOG_ZERO.value / 2, -torch.inf, total)
    return total.to(blank.dtype), blank_occupation, label_occupation
