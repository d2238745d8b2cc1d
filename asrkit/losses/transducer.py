"""Full-sum transducer loss, exact, with its gradient in closed form.

Source: Graves, "Sequence Transduction with Recurrent Neural Networks", 1211.3711, eqs. 16-20. `asrkit.losses.lattice`
tells the topologies and sums over their paths; `asrkit.losses.nodes` tells the factored output. There are two forms:
`transducer_loss` takes the logits of every node, and the functions of the joint form take the two sides of the joiner,
see `asrkit.losses.joint`.
"""

from typing import Literal

import torch
from torch import Tensor

from asrkit.errors import InputError
from asrkit.losses.joint import CompiledLoss, Joint, JointLoss, LogitsLoss, checked_lattice, joint_case, rounded
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
    lattice = checked_lattice(targets, logit_lens, target_lens, frames, symbols, *options)
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and backend != "torch":
        return CompiledLoss.apply(logits, lattice)
    return LogitsLoss.apply(logits, lattice, lattice.nodes(), None)


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
    lattice, product_type = joint_case(*inputs, targets, frame_lens, target_lens, *options)
    return JointLoss.apply(lattice, product_type, rounded(lattice.nodes()), False, *inputs)


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
    lattice, product_type = joint_case(*inputs, hyps, frame_lens, hyp_lens, *options)
    return -JointLoss.apply(lattice, product_type, rounded(lattice.nodes()), False, *inputs)


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
    lattice, product_type = joint_case(*inputs, targets, frame_lens, target_lens, *options)
    with torch.autocast(encoder.device.type, enabled=False):
        _, (_, blank, label) = Joint.of(lattice, product_type, *inputs).sums(rounded(lattice.nodes()))
    return blank, label[:, :, :-1]
