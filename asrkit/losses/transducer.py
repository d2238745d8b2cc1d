"""Full-sum transducer loss, exact, with its gradient in closed form.

Source: Graves, "Sequence Transduction with Recurrent Neural Networks", 1211.3711, eqs. 16-20. `asrkit.losses.lattice`
tells the topologies and sums over their paths; `asrkit.losses.nodes` tells the factored output. There are two forms:
`transducer_loss` takes the logits of every node, and the functions of the joint form take the two sides of the joiner,
see `asrkit.losses.joint`.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.errors import InputError
from asrkit.losses import nodes
from asrkit.losses.joint import Joint, Lattice, checked_lattice, chunk_size, joint_case
from asrkit.losses.lattice import Backend, Topology, need


def transducer_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lens: Tensor,
    target_lens: Tensor,
    topology: Topology = "regular",
    factored: bool = False,
    delay_penalty: float = 0.0,
    backend: Backend | Literal["torchaudio"] = "auto",
) -> Tensor:
    """Return -log P(targets | logits), summed over all alignments, of each utterance.

    Args:
        logits: (N, T, U + 1, V), not normalised; the blank has index 0.
        targets: (N, U) int64 labels 1 … V - 1, padded with anything.
        logit_lens: (N,) frames, each 1 … T.
        target_lens: (N,) labels, each 0 … U.
        topology, delay_penalty: see `asrkit.losses.lattice`.
        factored: the blank has a probability of its own, see `asrkit.losses.nodes`.
        backend: the engine, see `asrkit.losses.lattice`; or torchaudio's loss, of the plain regular topology.

    Returns:
        (N,), float64 for float64 logits, otherwise float32; differentiable in the logits. An utterance without a path,
        which is one with more labels than frames if a label takes a frame, has an infinite loss and no gradient; NaN
        among its logits makes the loss NaN, without a gradient and without harm to the other utterances.

    Raises:
        ValueError: shapes, lengths or labels do not fit each other.
        InputError: the backend cannot run here.
    """
    n, frames, columns, symbols = logits.shape
    if targets.shape != (n, columns - 1):
        raise ValueError(f"logits {tuple(logits.shape)} want targets {(n, columns - 1)}, not {tuple(targets.shape)}")
    if backend == "torchaudio":
        if topology != "regular" or factored or delay_penalty:
            raise InputError('backend "torchaudio" has the regular topology only, without factored or delay_penalty')
        rnnt_loss = need("torchaudio", "pip install torchaudio").functional.rnnt_loss
        targets, logit_lens, target_lens = (x.int().contiguous() for x in (targets, logit_lens, target_lens))
        return rnnt_loss(logits, targets, logit_lens, target_lens, blank=0, clamp=-1, reduction="none")
    options = topology, factored, delay_penalty, backend
    return _LogitsLoss.apply(logits, checked_lattice(targets, logit_lens, target_lens, frames, symbols, *options))


def joint_transducer_loss(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    frame_lens: Tensor,
    target_lens: Tensor,
    topology: Topology = "regular",
    factored: bool = False,
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Return the loss (N,) of `transducer_loss` for logits = weight @ tanh(encoder + predictor) + bias.

    Under autocast the products are in its type, and the sums over nodes in float32.

    Args:
        encoder: (N, T, J), projected to the joint space.
        predictor: (N, U + 1, J), likewise.
        weight, bias: (V, J) and (V,) of the output layer.
        targets: (N, U) int64 labels 1 … V - 1, padded with anything.
        frame_lens: (N,) frames, each 1 … T.
        target_lens: (N,) labels, each 0 … U.
        topology, factored, delay_penalty, backend: as for `transducer_loss`.

    Raises:
        ValueError: shapes, lengths or labels do not fit each other.
        InputError: the backend cannot run here.
    """
    utterance = torch.arange(len(encoder), device=encoder.device)
    options = topology, factored, delay_penalty, backend
    inputs = encoder, predictor, weight, bias, utterance
    return _JointLoss.apply(*joint_case(*inputs, targets, frame_lens, target_lens, *options), *inputs)


def sequence_log_probs(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    hyps: Tensor,
    frame_lens: Tensor,
    hyp_lens: Tensor,
    utterance: Tensor,
    topology: Topology = "regular",
    factored: bool = False,
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Return log P(hypothesis | its utterance) of B hypotheses of N utterances, differentiable.

    The encoder is not copied for the hypotheses. Minimum word error rate training asks for these.

    Args:
        encoder: (N, T, J), projected to the joint space.
        predictor: (B, U + 1, J), likewise, of each hypothesis.
        weight, bias: (V, J) and (V,) of the output layer.
        hyps: (B, U) int64 labels 1 … V - 1, padded with anything.
        frame_lens: (N,) frames, each 1 … T.
        hyp_lens: (B,) labels, each 0 … U.
        utterance: (B,) int64, the utterance of each hypothesis, 0 … N - 1.
        topology, factored, delay_penalty, backend: as for `transducer_loss`.

    Returns:
        (B,); -inf and NaN without a gradient where the loss of `transducer_loss` is infinite or NaN.

    Raises:
        ValueError: shapes, lengths or labels do not fit each other.
        InputError: the backend cannot run here.
    """
    options = topology, factored, delay_penalty, backend
    inputs = encoder, predictor, weight, bias, utterance
    return -_JointLoss.apply(*joint_case(*inputs, hyps, frame_lens, hyp_lens, *options), *inputs)


@torch.no_grad()
def emission_posteriors(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    frame_lens: Tensor,
    target_lens: Tensor,
    topology: Topology = "regular",
    factored: bool = False,
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Return when the labels of an utterance are emitted, given that they are: for time stamps and confidence.

    Args: as for `joint_transducer_loss`.

    Returns:
        blank: (N, T, U + 1) the probability that the path leaves node (t, u) by a blank.
        label: (N, T, U) the probability that label u + 1 is emitted in frame t; its sum over frames is 1. Both are 0 in
            the padding, and for an utterance whose loss is not finite.
    """
    utterance = torch.arange(len(encoder), device=encoder.device)
    options = topology, factored, delay_penalty, backend
    inputs = encoder, predictor, weight, bias, utterance
    case = joint_case(*inputs, targets, frame_lens, target_lens, *options)
    with torch.autocast(encoder.device.type, enabled=False):
        _, (_, blank, label) = Joint.of(*case, *inputs).sums()
    return blank, label[:, :, :-1]


def _untouched_zeros(x: Tensor) -> Tensor:
    """Zeros like x. On the CPU they cost neither time nor memory before something is written."""
    if x.device.type != "cpu":
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    memory = np.zeros(x.numel() * x.element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(x.dtype).view(x.shape)


class _LogitsLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, lattice: Lattice) -> Tensor:
        flat = logits.detach().reshape(-1, logits.shape[-1])
        engine = nodes.engine(flat, lattice.backend)
        packed, size = lattice.nodes(), chunk_size(flat.device, flat.shape[1])
        scores = [
            engine.scores(flat, labels, lattice.factored, rows=chunk)
            for chunk, labels in zip(packed.split(size), lattice.labels_of(packed).split(size), strict=True)
        ]
        total, planes = lattice.sums(packed, scores)
        ctx.lattice = lattice
        ctx.save_for_backward(logits, planes)
        return -total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        logits, planes = ctx.saved_tensors
        lattice, size = ctx.lattice, chunk_size(logits.device, logits.shape[-1])
        flat, grad = logits.reshape(-1, logits.shape[-1]), _untouched_zeros(logits)
        engine = nodes.engine(flat, lattice.backend)
        packed, weights = lattice.weighted(planes, grad_loss)
        pieces = packed.split(size), lattice.labels_of(packed).split(size), weights.split(size, dim=1)
        for chunk, labels, weight in zip(*pieces, strict=True):
            engine.gradient(flat, labels, lattice.factored, *weight, out=grad.view_as(flat), rows=chunk)
        return grad, None


class _JointLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lattice: Lattice, product_type: torch.dtype, *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            total, planes = Joint.of(lattice, product_type, *inputs).sums()
        ctx.lattice, ctx.product_type = lattice, product_type
        ctx.save_for_backward(planes, *inputs)
        return -total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        planes, *inputs = ctx.saved_tensors
        with torch.autocast(inputs[0].device.type, enabled=False):
            gradients = Joint.of(ctx.lattice, ctx.product_type, *inputs).gradients(planes, grad_loss)
        like = zip(gradients, inputs, strict=False)  # the last input has no gradient
        return None, None, *(gradient.view_as(x).to(x.dtype) for gradient, x in like), None
