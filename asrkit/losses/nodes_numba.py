"""The nodes of a transducer lattice on the CPU, compiled; see `asrkit.losses.nodes`, whose functions these stand for.

What counts is the number of passes over the logits: one to read them for the scores, one to read them and write the
gradient. The compiler makes vector instructions of loops with the exponential here, not of those with the library's.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

ONE = np.float32(1)
LOG_2, LOG2_E = np.float32(np.log(2)), np.float32(1 / np.log(2))
ROUND = np.float32(1.5 * 2.0**23)  # added to a float32, it leaves the nearest integer in the low bits
ROUND_BITS, EXPONENT_OF_ONE, MANTISSA = ROUND.view(np.int32), np.int32(127), np.int32(23)
# Of the polynomial 1 + r + C2 r² + … that is nearest to exp(r) for |r| <= log(2) / 2: within 1.1e-7 of it.
C2, C3, C4, C5 = (np.float32(c) for c in (0.49999232, 0.16667114, 0.04189011, 0.00831253))
LOWEST, HIGHEST = np.float32(-87), np.float32(88)
TINY, HUGE = np.float32(1e-20), np.float32(1e30)


@njit(fastmath={"contract"}, error_model="numpy")
def exp(x):
    """Exponential of a float32 between -87 and 88, to 4e-7 of it; of those beyond as of these. NaN stays."""
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    shifted = x * LOG2_E + ROUND
    power = shifted - ROUND
    r = x - power * LOG_2  # in one instruction, hence exact but for 2e-9 of the constant; |r| <= log(2) / 2
    p = ((((C5 * r + C4) * r + C3) * r + C2) * r + ONE) * r + ONE
    exponent = np.float32(shifted).view(np.int32) - ROUND_BITS + EXPONENT_OF_ONE
    return p * np.int32(np.int32(exponent) << MANTISSA).view(np.float32)


@njit(fastmath={"contract", "reassoc"}, error_model="numpy")
def far_log_sum_exp(x):
    top = x.max()
    total = np.float32(0)
    for k in range(len(x)):
        total += exp(x[k] - top)
    return top + np.log(total)


# What is called once a node is inlined: to hand over a row of an array costs as much as 40 exponentials.
@njit(inline="always")
def log_sum_exp(x):
    total = np.float32(0)
    for k in range(len(x)):
        total += exp(x[k])
    # The rare case: logits so large or small that their exponentials leave the range of float32.
    return np.log(total) if TINY < total < HUGE else far_log_sum_exp(x)


@njit(error_model="numpy")
def log_sigmoid(x):
    return min(x, np.float32(0)) - np.log1p(np.exp(-abs(x)))


@njit(inline="always")
def node_scores(z, label, factored):
    normaliser = log_sum_exp(z[1 if factored else 0 :])
    blank_score = log_sigmoid(z[0]) if factored else z[0] - normaliser
    return normaliser, blank_score, z[label] - normaliser + (log_sigmoid(-z[0]) if factored else np.float32(0))


@njit(inline="always")
def node_gradient(z, label, factored, normaliser, blank_weight, label_weight, grad):
    through = blank_weight + label_weight
    grad_blank = through * exp(log_sigmoid(z[0]) if factored else z[0] - normaliser) - blank_weight
    weight = label_weight if factored else through
    for k in range(len(z)):
        grad[k] = weight * exp(z[k] - normaliser)
    grad[0] = grad_blank
    grad[label] -= label_weight


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _scores(logits, rows, labels, factored, normaliser, blank, label):
    for i in range(len(labels)):
        z = logits[i if rows is None else rows[i]]
        normaliser[i], blank[i], label[i] = node_scores(z, labels[i], factored)


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _gradient(logits, rows, labels, factored, normaliser, blank, label, out):
    for i in range(len(labels)):
        row = i if rows is None else rows[i]
        grad = logits[row] if out is None else out[row]
        node_gradient(logits[row], labels[i], factored, normaliser[i], blank[i], label[i], grad)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _lattice_scores(logits, labels, frame_lens, label_lens, factored, normaliser, blank, label):
    for n in range(len(labels)):
        for t in range(frame_lens[n]):
            for u in range(label_lens[n] + 1):
                scores = node_scores(logits[n, t, u], labels[n, u], factored)
                normaliser[n, t, u], blank[n, t, u], label[n, t, u] = scores


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _lattice_gradient(logits, labels, factored, normaliser, blank, label, negligible, grad_loss, out):
    for n in range(len(labels)):
        for t in range(logits.shape[1]):
            for u in range(logits.shape[2]):
                if blank[n, t, u] + label[n, t, u] > negligible:
                    z, grad = logits[n, t, u], out[n, t, u]
                    x, y = blank[n, t, u] * grad_loss[n], label[n, t, u] * grad_loss[n]
                    node_gradient(z, labels[n, u], factored, normaliser[n, t, u], x, y, grad)


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


def lattice_scores(
    logits: Tensor, labels: Tensor, frame_lens: Tensor, label_lens: Tensor, factored: bool, planes: Tensor
) -> None:
    """Write the scores of the nodes inside of their sequences into planes (3, B, T, U + 1).

    Args:
        logits: (B, T, U + 1, V).
        labels: (B, U + 1) the next label of each column.
        frame_lens, label_lens: (B,).
    """
    _lattice_scores(*_arrays(logits, labels, frame_lens, label_lens), factored, *_arrays(*planes))


def lattice_gradient(
    logits: Tensor, labels: Tensor, factored: bool, planes: Tensor, negligible: float, grad_loss: Tensor, out: Tensor
) -> None:
    """Write the gradient of all nodes that more than `negligible` of the paths go through into out, like logits.

    Args:
        planes: (3, B, T, U + 1) normaliser, and posterior probabilities of blank and label.
        grad_loss: (B,).
    """
    _lattice_gradient(*_arrays(logits, labels), factored, *_arrays(*planes), negligible, *_arrays(grad_loss, out))


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
