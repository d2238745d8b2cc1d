"""The transducer lattice on the CPU: forward and backward in one compiled kernel, an utterance at a time.

The nodes are visited in the rows of the reference in `asrkit.losses.lattice`, so that one row is a loop over labels
without dependencies, which the compiler turns into vector instructions; hence the polynomials in place of the library's
exponential and logarithm, which it cannot. NaN falls through every comparison here.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

LOG_ZERO = -1e30
LOG_2 = np.log(2.0)
ROUND = 1.5 * 2.0**52  # added to a float64, it leaves the nearest integer in the low bits
EXPONENT_OF_ONE = np.int64(1023)
VECTOR = 16  # a row is filled up to this many columns: no vector instruction is left with a part
ROUND_BITS = np.float64(ROUND).view(np.int64)


@njit(fastmath={"contract"}, error_model="numpy")
def exp(x: float) -> float:
    """Exponential of a number up to 700, to 1e-11 of it; below -700 as at -700, which is next to nothing."""
    x = -700.0 if x < -700.0 else x
    shifted = x * (1 / LOG_2) + ROUND
    r = x - (shifted - ROUND) * LOG_2  # |r| <= log(2) / 2, where ten terms of the series do
    p = (((1 / 362880 * r + 1 / 40320) * r + 1 / 5040) * r + 1 / 720) * r + 1 / 120
    p = ((((p * r + 1 / 24) * r + 1 / 6) * r + 1 / 2) * r + 1.0) * r + 1.0
    exponent = np.float64(shifted).view(np.int64) - ROUND_BITS + EXPONENT_OF_ONE
    return p * np.int64(exponent << 52).view(np.float64)


@njit(fastmath={"contract"}, error_model="numpy")
def log_add(x: float, y: float) -> float:
    """log(exp(x) + exp(y)) to 1e-10."""
    difference = x - y
    e = exp(-abs(difference))
    s = e / (2.0 + e)
    q = s * s  # log(1 + e) = 2 atanh(s) = 2 s (1 + q / 3 + q² / 5 + …), q <= 1 / 9
    p = (((1 / 17 * q + 1 / 15) * q + 1 / 13) * q + 1 / 11) * q + 1 / 9
    p = (((p * q + 1 / 7) * q + 1 / 5) * q + 1 / 3) * q + 1.0
    return (x if difference > 0.0 else y) + 2.0 * s * p


@njit(fastmath={"contract"}, error_model="numpy")
def in_rows(scores, rows, width, slant, shift):
    """Lay out scores (T, columns) of arcs as (rows, width), that of node (t, u) at [row, u + shift]."""
    laid_out = np.full((rows, width), LOG_ZERO)
    for t in range(scores.shape[0]):
        for u in range(scores.shape[1]):
            x = scores[t, u]
            laid_out[t + slant * u, u + shift] = LOG_ZERO if x < LOG_ZERO else x
    return laid_out


@njit(fastmath={"contract"}, error_model="numpy")
def forward_backward(blank, label, slant, blank_occupation, label_occupation):
    """Return the total of one utterance, and fill its occupations; arrays (T, U + 1) and (T, U)."""
    frames, columns = blank.shape
    rows = frames + slant * (columns - 1)
    width = (columns + VECTOR - 1) // VECTOR * VECTOR
    stay = in_rows(blank, rows, width, slant, 0)
    enter = in_rows(label, rows, width + 1, slant, 1)  # by the column that the label leads to
    alpha = np.full((rows + 1, width + 1), LOG_ZERO)  # column u at u + 1: before the first there is nothing
    alpha[0, 1] = 0.0
    for d in range(rows):
        for u in range(width):
            alpha[d + 1, u + 1] = log_add(alpha[d, u + 1] + stay[d, u], alpha[d, u] + enter[d, u])

    total = alpha[rows, columns]
    if not total > LOG_ZERO / 2:
        return -np.inf if total <= LOG_ZERO / 2 else total
    beta = np.full(width + 1, LOG_ZERO)
    beta[columns - 1] = 0.0
    for d in range(rows - 1, -1, -1):
        for u in range(width):  # from here on, stay and enter are the occupations of the arcs of row d
            x, y = stay[d, u] + beta[u], enter[d, u + 1] + beta[u + 1]
            before = alpha[d, u + 1] - total
            stay[d, u], enter[d, u + 1] = exp(before + x), exp(before + y)
            beta[u] = log_add(x, y)
    for t in range(frames):
        for u in range(columns):
            blank_occupation[t, u] = stay[t + slant * u, u]
        for u in range(columns - 1):
            label_occupation[t, u] = enter[t + slant * u, u + 1]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def forward_backward_batch(blank, label, frame_lens, label_lens, slant, total, blank_occupation, label_occupation):
    for n in range(len(blank)):
        t, u = frame_lens[n], label_lens[n]
        total[n] = forward_backward(
            blank[n, :t, : u + 1],
            label[n, :t, :u],
            slant,
            blank_occupation[n, :t, : u + 1],
            label_occupation[n, :t, :u],
        )


def lattice(
    blank: Tensor, label: Tensor, frame_lens: Tensor, label_lens: Tensor, modified: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `asrkit.losses.lattice.lattice`, for contiguous scores on the CPU."""
    total, blank_occupation, label_occupation = (torch.zeros_like(x) for x in (blank[:, 0, 0], blank, label))
    scores = [x.numpy() for x in (blank, label, frame_lens, label_lens)]
    results = [x.numpy() for x in (total, blank_occupation, label_occupation)]
    forward_backward_batch(*scores, 0 if modified else 1, *results)
    return total, blank_occupation, label_occupation
