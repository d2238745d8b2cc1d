"""What the nodes of a transducer lattice compute: scores from logits, the gradient of the logits, the joiner's tanh.

Nodes come packed, in any order and from any utterance: R nodes have logits (R, V), a next label each (R,), and the
rows of the encoder and predictor outputs that meet there (R,). With `factored`, the logits are those of the hybrid
autoregressive transducer (Variani et al., 2003.07705): P(blank) = sigmoid(z_0), P(k) = (1 - P(blank)) softmax(z_1 …)_k.

The functions here are plain torch, for any device and type. Those of `asrkit.losses.nodes_numba` have the same names
and arguments, and are for the CPU; `engine` chooses.
"""

import sys
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def engine(x: Tensor, backend: str) -> ModuleType:
    """The module to compute the nodes of x with: numba's on the CPU, except in float64 or for the backend "torch"."""
    if x.device.type != "cpu" or x.dtype == torch.float64 or backend == "torch":
        return sys.modules[__name__]
    from asrkit.losses import nodes_numba  # numba takes a second to import

    return nodes_numba


def scores(logits: Tensor, labels: Tensor, factored: bool, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-normaliser, log P(blank) and log P(label), each (R,), in float32 at least.

    Args:
        logits: (R, V), or (M, V) with rows (R,), the row of each node.
        labels: (R,) int64.
    """
    z = logits if rows is None else logits[rows]
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    normaliser = z[:, int(factored) :].logsumexp(dim=1)
    label = z.gather(1, labels[:, None]).squeeze(1) - normaliser
    if factored:
        return normaliser, logsigmoid(z[:, 0]), label + logsigmoid(-z[:, 0])
    return normaliser, z[:, 0] - normaliser, label


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
    """Write d loss / d logits into out, which may be logits: P(through the node) P(k) - P(leaving it by k).

    Args:
        logits, labels, factored, rows: as for `scores`; out has the shape of logits.
        normaliser: (R,) as from `scores`.
        blank, label: (R,) weights of the node's blank and label, the posterior probability of each arc times the
            gradient of the utterance's loss.
    """
    z = logits if rows is None else logits[rows]
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    through = blank + label
    grad = (z - normaliser[:, None]).exp_().mul_((label if factored else through)[:, None])
    if factored:
        grad[:, 0] = through * z[:, 0].sigmoid()
    grad[:, 0] -= blank
    grad.scatter_add_(1, labels[:, None], -label[:, None])
    if rows is None:
        out.copy_(grad)
    else:
        out[rows] = grad.to(out.dtype)


def hidden(encoder: Tensor, predictor: Tensor, frames: Tensor, columns: Tensor) -> Tensor:
    """tanh(encoder (A, J)[frames (R,)] + predictor (B, J)[columns (R,)]), shape (R, J)."""
    return (encoder[frames] + predictor[columns]).tanh_()


def hidden_gradient(
    grad: Tensor, hidden: Tensor, frames: Tensor, columns: Tensor, grad_encoder: Tensor, grad_predictor: Tensor
) -> None:
    """Add the gradient (R, J) of hidden (R, J) to that of the rows of encoder and predictor; overwrites grad."""
    grad.mul_(1 - hidden * hidden)
    grad_encoder.index_add_(0, frames, grad)
    grad_predictor.index_add_(0, columns, grad)
