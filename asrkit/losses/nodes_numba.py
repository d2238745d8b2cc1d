"""The nodes of a transducer lattice on the CPU, compiled; see `asrkit.losses.nodes`, whose functions these stand for.

What counts is the number of passes over the logits: one to read them for the scores, one to read them and write the
gradient. The compiler makes vector instructions of loops with the exponential here, not of those with the library's.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

ONE = np.float32(1)
LOG_2_HIGH, LOG_2_LOW = np.float32(0.693359375), np.float32(np.log(2) - 0.693359375)  # the former has few bits
LOG2_E = np.float32(1 / np.log(2))
ROUND = np.float32(1.5 * 2.0**23)  # added to a float32, it leaves the nearest integer in the low bits
ROUND_BITS, EXPONENT_OF_ONE, MANTISSA = ROUND.view(np.int32), np.int32(127), np.int32(23)
C2, C3, C4, C5, C6 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720))
LOWEST, HIGHEST = np.float32(-87), np.float32(88)
TINY, HUGE = np.float32(1e-20), np.float32(1e30)


@njit(fastmath={"contract"}, error_model="numpy")
def exp(x):
    """Exponential of a float32 between -87 and 88, to 2.5e-7 of it; of those beyond as of these. NaN stays."""
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    shifted = x * LOG2_E + ROUND
    power = shifted - ROUND
    r = (x - power * LOG_2_HIGH) - power * LOG_2_LOW  # |r| <= log(2) / 2
    p = (((((C6 * r + C5) * r + C4) * r + C3) * r + C2) * r + ONE) * r + ONE
    exponent = np.float32(shifted).view(np.int32) - ROUND_BITS + EXPONENT_OF_ONE
    return p * np.int32(np.int32(exponent) << MANTISSA).view(np.float32)


@njit(fastmath={"contract", "reassoc"}, error_model="numpy")
def log_sum_exp(x):
    total = np.float32(0)
    for k in range(len(x)):
        total += exp(x[k])
    if TINY < total < HUGE:
        return np.log(total)
    top = x.max()  # the rare case: logits so large or small that their exponentials leave the range of float32
    total = np.float32(0)
    for k in range(len(x)):
        total += exp(x[k] - top)
    return top + np.log(total)


@njit(error_model="numpy")
def log_sigmoid(x):
    return min(x, np.float32(0)) - np.log1p(np.exp(-abs(x)))


@njit(cache=True, nogil=True, error_model="numpy")
def _scores(logits, rows, labels, factored, normaliser, blank, label):
    for i in range(len(labels)):
        z = logits[i if rows is None else rows[i]]
        normaliser[i] = log_sum_exp(z[1 if factored else 0 :])
        blank[i] = log_sigmoid(z[0]) if factored else z[0] - normaliser[i]
        label[i] = z[labels[i]] - normaliser[i] + (log_sigmoid(-z[0]) if factored else np.float32(0))


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _gradient(logits, rows, labels, factored, normaliser, blank, label, out):
    for i in range(len(labels)):
        z = logits[i if rows is None else rows[i]]
        grad = z if out is None else out[i if rows is None else rows[i]]
        through = blank[i] + label[i]
        grad_blank = through * exp(log_sigmoid(z[0]) if factored else z[0] - normaliser[i]) - blank[i]
        weight = label[i] if factored else through
        for k in range(len(z)):
            grad[k] = weight * exp(z[k] - normaliser[i])
        grad[0] = grad_blank
        grad[labels[i]] -= label[i]


@njit(fastmath={"contract"}, error_model="numpy")
def tanh(x):
    return ONE - (ONE + ONE) / (exp(x + x) + ONE)


@njit(cache=True, nogil=True, error_model="numpy")
def _hidden(encoder, predictor, frames, columns, out):
    for i in range(len(frames)):
        x, y, z = encoder[frames[i]], predictor[columns[i]], out[i]
        for k in range(len(z)):
            z[k] = tanh(x[k] + y[k])


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _hidden_gradient(grad, hidden, frames, columns, grad_encoder, grad_predictor):
    for i in range(len(frames)):
        g, h, x, y = grad[i], hidden[i], grad_encoder[frames[i]], grad_predictor[columns[i]]
        for k in range(len(g)):
            g[k] *= ONE - h[k] * h[k]
        for k in range(len(g)):
            x[k] += g[k]
        for k in range(len(g)):
            y[k] += g[k]


def scores(logits: Tensor, labels: Tensor, factored: bool, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    if logits.dtype != torch.float32:
        logits, rows = (logits if rows is None else logits[rows]).float(), None
    results = [torch.empty(len(labels)) for _ in range(3)]
    _scores(*_arrays(logits, rows, labels), factored, *_arrays(*results))
    return tuple(results)


def gradient(
    logits: Tensor,
    labels: Tensor,
    factored: bool,
    normaliser: Tensor,
    blank: Tensor,
    label: Tensor,
    out: Tensor,
    rows: Tensor | None = None,
) -> None:
    if logits.dtype == torch.float32:
        target = None if out is logits else out
        _gradient(*_arrays(logits, rows, labels), factored, *_arrays(normaliser, blank, label, target))
        return
    grad = (logits if rows is None else logits[rows]).float()
    _gradient(*_arrays(grad, None, labels), factored, *_arrays(normaliser, blank, label, None))
    if rows is None:
        out.copy_(grad)
    else:
        out[rows] = grad.to(out.dtype)


def hidden(encoder: Tensor, predictor: Tensor, frames: Tensor, columns: Tensor) -> Tensor:
    out = torch.empty(len(frames), encoder.shape[1])
    _hidden(*_arrays(encoder, predictor, frames, columns, out))
    return out


def hidden_gradient(
    grad: Tensor, hidden: Tensor, frames: Tensor, columns: Tensor, grad_encoder: Tensor, grad_predictor: Tensor
) -> None:
    _hidden_gradient(*_arrays(grad, hidden, frames, columns, grad_encoder, grad_predictor))


def _arrays(*tensors: Tensor | None) -> list[np.ndarray | None]:
    return [None if x is None else x.detach().numpy() for x in tensors]
