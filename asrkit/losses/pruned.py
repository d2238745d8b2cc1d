"""Pruned transducer loss: a cheap sum over the whole lattice finds the few labels that matter at each frame.

Source: Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", 2206.13236. Three steps, or one call of
`pruned_transducer_loss`: the smoothed loss of a joiner that only adds logits (`simple_loss`), the R labels a frame that
carry the most of its probability (`pruning_ranges`), and the loss of the real joiner on these alone (`pruned_loss`).
A model that has a CTC output anyway can ask it where the labels are (`ctc_occupations`): that costs no loss of its own,
and its ranges hold more of the real joiner's paths.

The values are those of k2 (rnnt_loss_smoothed, get_rnnt_prune_ranges, rnnt_loss_pruned). `asrkit.losses.lattice` tells
the topologies and the delay penalty, `asrkit.losses.nodes` the factored blank.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from asrkit.losses.joint import NEGLIGIBLE, JointLoss, Lattice, LogitsLoss, checked_lattice, joint_case, rounded
from asrkit.losses.lattice import LOG_ZERO, Backend, Topology

# A trained CTC output leaves next to nothing to the labels beside those of its best alignment, so that chance would
# choose among them. Flattened by this power, it tells which of them come next.
CTC_POWER = 0.7


def pruned_transducer_loss(
    encoder_logits: Tensor,
    predictor_logits: Tensor,
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    frame_lens: Tensor,
    target_lens: Tensor,
    size: int = 5,
    topology: Topology = "regular",
    factored: bool = False,
    lm_only_scale: float = 0.25,
    am_only_scale: float = 0.0,
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the simple and the pruned loss, (N,) each, of a joiner `weight @ tanh(encoder + predictor) + bias`.

    Args:
        encoder_logits: (N, T, V), and predictor_logits: (N, U + 1, V), the two halves of the simple joiner.
        encoder: (N, T, J), predictor: (N, U + 1, J), weight: (V, J), and bias: (V,), the parts of the real one.
        targets: (N, U) int64 labels 1 … V - 1, padded with anything.
        frame_lens, target_lens: (N,).
        size: R of `pruning_ranges`.
        topology, factored, lm_only_scale, am_only_scale, delay_penalty, backend: as for `simple_loss`, `pruned_loss`.

    Raises:
        ValueError: shapes, lengths or labels do not fit each other, or the topology is unknown.
        InputError: the backend cannot run here.
    """
    smooth = {"lm_only_scale": lm_only_scale, "am_only_scale": am_only_scale}
    common = {"topology": topology, "delay_penalty": delay_penalty, "backend": backend}
    lens = (frame_lens, target_lens)
    simple, *arcs = simple_loss(encoder_logits, predictor_logits, targets, *lens, **smooth, **common)
    ranges = pruning_ranges(*arcs, *lens, size, topology)
    pruned = pruned_loss(encoder, predictor, weight, bias, ranges, targets, *lens, factored=factored, **common)
    return simple, pruned


def simple_loss(
    encoder_logits: Tensor,
    predictor_logits: Tensor,
    targets: Tensor,
    frame_lens: Tensor,
    target_lens: Tensor,
    topology: Topology = "regular",
    lm_only_scale: float = 0.25,
    am_only_scale: float = 0.0,
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the smoothed loss of the joiner `encoder_logits[:, t] + predictor_logits[:, u]`, and where its paths go.

    Log-probabilities are the weighted sum of the joiner's, of the predictor's alone (`lm_only_scale`) and of the
    encoder's on top of the average predictor's (`am_only_scale`). That average is over all positions of the batch, so
    with it the loss of an utterance depends on the others, by definition.

    Args:
        encoder_logits: (N, T, V), predictor_logits: (N, U + 1, V); computed in float32 at least, under autocast too.
        targets: (N, U) int64 labels 1 … V - 1, padded with anything.
        frame_lens: (N,) frames, each 1 … T.
        target_lens: (N,) labels, each 0 … U.
        lm_only_scale, am_only_scale: the weights of the two other log-probabilities.
        topology, delay_penalty, backend: see `asrkit.losses.lattice`.

    Returns:
        the loss (N,), differentiable, and the posterior probabilities that a path leaves a node by its blank
        (N, T, U + 1) and by its label (N, T, U), not differentiable. An utterance without a path has an infinite loss
        and no gradient; one with NaN among its logits has the loss NaN, no gradient, and no influence on the others.

    Raises:
        ValueError: shapes, lengths or labels do not fit each other, or the topology is unknown.
        InputError: the backend cannot run here.
    """
    n, frames, symbols = encoder_logits.shape
    if predictor_logits.shape != (n, targets.shape[1] + 1, symbols):
        raise ValueError(
            f"encoder {(n, frames, symbols)} and targets {tuple(targets.shape)} want predictor "
            f"{(n, targets.shape[1] + 1, symbols)}, not {tuple(predictor_logits.shape)}"
        )
    options = topology, False, delay_penalty, backend
    lattice = checked_lattice(targets, frame_lens, target_lens, frames, symbols, *options)
    return _SimpleLoss.apply(encoder_logits, predictor_logits, lattice, lm_only_scale, am_only_scale)


@torch.no_grad()
def ctc_occupations(
    log_probs: Tensor,
    targets: Tensor,
    frame_lens: Tensor,
    target_lens: Tensor,
    topology: Topology = "regular",
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Return where the alignments of a CTC output go, as `simple_loss` tells it of the paths of its joiner.

    An alignment leaves a frame by the label that begins there, or stays, by the blank or by the label that goes on. The
    blank that CTC wants between two equal labels is not asked for.

    Args:
        log_probs: (N, T, V), normalised.
        targets, frame_lens, target_lens, backend: as for `simple_loss`.
        topology, delay_penalty: of the loss that is to be pruned.

    Returns:
        the probabilities of leaving a node by its blank (N, T, U + 1) and by its label (N, T, U).

    Raises:
        ValueError: shapes, lengths or labels do not fit each other.
        InputError: the backend cannot run here.
    """
    _, frames, symbols = log_probs.shape
    options = "modified", False, delay_penalty, backend
    lattice = checked_lattice(targets, frame_lens, target_lens, frames, symbols, *options)
    scores = CTC_POWER * log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    label = scores.gather(2, lattice.labels[:, None, :-1].expand(-1, frames, -1))  # (N, T, U)
    stay = torch.logaddexp(scores[:, :, :1], pad(label, (1, 0), value=LOG_ZERO))  # (N, T, U + 1)
    _, stay, label = lattice.occupations(stay, label)
    if topology != "modified":  # there a frame is left by a blank even when a label came
        stay[:, :, 1:] += label
    return stay, label


def pruning_ranges(
    blank_occupation: Tensor,
    label_occupation: Tensor,
    frame_lens: Tensor,
    target_lens: Tensor,
    size: int,
    topology: Topology = "regular",
) -> Tensor:
    """Return the labels to keep, (N, T, R) int64: at each frame R numbers of labels emitted so far, in a row.

    The first of them never falls; it rises by less than R a frame (by at most one if a frame has at most one label)
    from 0 to where the last frame reaches the last label, so that a path remains. Section 3.2 of the paper.

    Args:
        blank_occupation: (N, T, U + 1), label_occupation: (N, T, U), of `simple_loss` or `ctc_occupations`.
        frame_lens, target_lens: (N,).
        size: R; less if the batch has fewer than R - 1 labels, more if no regular path would fit into R.
        topology: the one of the occupations.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"pruning keeps at least one label a frame, not {size}")
    n, frames, columns = blank_occupation.shape
    if topology == "regular":  # a frame has room for R - 1 labels
        size = max(size, int((-(-target_lens // frame_lens)).max()) + 1)
    size = min(size, columns)
    starts = columns - size + 1
    if topology == "constrained":  # the blanks after labels belong to the labels' arcs
        blank_occupation = blank_occupation - pad(label_occupation, (1, 0))
    # Paths that leave the frame by a blank of the window, less those that come by a label from the column before it.
    # Summed in this order as k2 does, because the choice may be between floats that are nearly equal.
    inside = sum(blank_occupation[:, :, r : r + starts] for r in range(size))
    inside[:, :, 1:] -= label_occupation[:, :, : starts - 1]
    start = inside.argmax(dim=2)  # (N, T)
    time = torch.arange(frames, device=start.device)
    last = (target_lens - size + 1).clamp(min=0)
    start = torch.where(time < frame_lens[:, None] - 1, start, last[:, None])
    rise = (size - 1 if topology == "regular" else 1) * time
    start = rise - _suffix_minimum(rise - _suffix_minimum(start)).clamp(min=0)
    return start[:, :, None] + torch.arange(size, device=start.device)


def pruned_loss(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    ranges: Tensor,
    targets: Tensor,
    frame_lens: Tensor,
    target_lens: Tensor,
    topology: Topology = "regular",
    factored: bool = False,
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Return -log P(targets) of each utterance, (N,), over the paths inside of the ranges.

    The logits are `weight @ tanh(encoder[:, t] + predictor[:, u]) + bias`, computed only inside of the ranges and
    utterances, and kept for the backward. Under autocast the products are in its type, and the sums over nodes in
    float32.

    Args:
        encoder: (N, T, J), predictor: (N, U + 1, J), weight: (V, J), bias: (V,).
        ranges: (N, T, R) int64, of `pruning_ranges`: consecutive numbers in each row.
        targets, frame_lens, target_lens, topology, delay_penalty, backend: as for `simple_loss`.
        factored: the blank has a probability of its own, see `asrkit.losses.nodes`.

    Returns:
        the loss, infinite without a gradient if the ranges let no path through; NaN as for `simple_loss`.

    Raises:
        ValueError: shapes, lengths, labels or ranges do not fit each other, or the topology is unknown.
        InputError: the backend cannot run here.
    """
    utterance = torch.arange(len(encoder), device=encoder.device)
    options = topology, factored, delay_penalty, backend
    inputs = encoder, predictor, weight, bias, utterance
    lattice, product_type = joint_case(*inputs, targets, frame_lens, target_lens, *options)
    packed = rounded(_inside(ranges, lattice)[0])
    return JointLoss.apply(lattice, product_type, packed, True, *inputs)


def pruned_logits_loss(
    logits: Tensor,
    ranges: Tensor,
    targets: Tensor,
    frame_lens: Tensor,
    target_lens: Tensor,
    topology: Topology = "regular",
    factored: bool = False,
    delay_penalty: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Return the loss (N,) of `pruned_loss` for logits (N, T, R, V) that any joiner has computed on the ranges."""
    n, frames, size, symbols = logits.shape
    if ranges.shape != (n, frames, size):
        raise ValueError(f"logits {tuple(logits.shape)} want ranges {(n, frames, size)}, not {tuple(ranges.shape)}")
    options = topology, factored, delay_penalty, backend
    lattice = checked_lattice(targets, frame_lens, target_lens, frames, symbols, *options)
    return LogitsLoss.apply(logits, lattice, *_inside(ranges, lattice))


class _SimpleLoss(torch.autograd.Function):
    """Loss of the scores c (a + p - Z) + l (p - Zp) + m (a + q - Za).

    a and p are encoder and predictor logits, l and m the predictor's and encoder's own weights, c = 1 - l - m; q is the
    log-probability of the average predictor, Z, Zp and Za are the normalisers of a + p, p and a + q.
    """

    @staticmethod
    def forward(ctx, encoder: Tensor, predictor: Tensor, lattice: Lattice, own: float, average_only: float):
        joint = 1 - own - average_only
        a, p = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (encoder, predictor))
        a_max, p_max = a.amax(dim=2, keepdim=True), p.amax(dim=2, keepdim=True)
        # NaN stays in the maxima, so that the loss of its utterance is NaN and those of the others are not.
        a_exp, p_exp = (a - a_max).exp_().nan_to_num_(0.0), (p - p_max).exp_().nan_to_num_(0.0)
        tiny = torch.finfo(a.dtype).tiny
        p_sum = p_exp.sum(dim=2, keepdim=True) + tiny  # (N, U + 1, 1)
        real = torch.arange(p.shape[1], device=p.device) <= lattice.label_lens[:, None]  # (N, U + 1)
        share = real[:, :, None] / (p_sum * real.sum())  # (N, U + 1, 1): of each softmax in the average
        average = (p_exp * share).sum(dim=(0, 1)) + tiny  # (V,)
        # The average predictor is one more column.
        p_exp = torch.cat([p_exp, average.expand(len(p), 1, -1)], dim=1)  # (N, U + 2, V)
        product = _matmul(a_exp, p_exp.transpose(1, 2)) + tiny  # (N, T, U + 2)
        log_product = product.log() + a_max
        normaliser = joint * (log_product[:, :, :-1] + p_max.transpose(1, 2))
        normaliser += own * (p_sum.log() + p_max).transpose(1, 2) + average_only * log_product[:, :, -1:]

        p = (1 - average_only) * p + average_only * average.log()
        blank = (1 - own) * a[:, :, :1] + p[:, None, :, 0] - normaliser  # (N, T, U + 1)
        targets = lattice.labels[:, :-1]
        p_label = p[:, :-1].gather(2, targets[:, :, None])  # (N, U, 1)
        a_label = a.gather(2, targets[:, None].expand(-1, a.shape[1], -1))  # (N, T, U)
        label = (1 - own) * a_label + p_label.transpose(1, 2) - normaliser[:, :, :-1]  # (N, T, U)
        total, *arcs = lattice.occupations(blank, label)
        ctx.save_for_backward(targets, a_exp, p_exp, p_sum, share, product, *arcs)
        ctx.own, ctx.average_only, ctx.types = own, average_only, (encoder.dtype, predictor.dtype)
        ctx.mark_non_differentiable(*arcs)
        return -total, *arcs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor, *_):
        targets, a_exp, p_exp, p_sum, share, product, *arcs = ctx.saved_tensors
        own, average_only = ctx.own, ctx.average_only
        joint = 1 - own - average_only
        # What is nearly zero would make the products below slow, being denormal.
        blank, label = (torch.where(x > NEGLIGIBLE, x, 0.0) * grad_loss[:, None, None] for x in arcs)
        through = blank.clone()
        through[:, :, :-1] += label
        by_frame = through.sum(dim=2, keepdim=True)  # (N, T, 1)
        by_column = through.sum(dim=1)[:, :, None]  # (N, U + 1, 1)

        ratio = torch.cat([joint * through, average_only * by_frame], dim=2) / product  # (N, T, U + 2)
        a_grad = _matmul(ratio, p_exp).mul_(a_exp)  # (N, T, V)
        a_grad[:, :, 0] -= (1 - own) * blank.sum(dim=2)
        a_grad.scatter_add_(2, targets[:, None].expand(-1, a_grad.shape[1], -1), (own - 1) * label)

        emitted = torch.zeros_like(p_exp[:, :-1])  # (N, U + 1, V)
        emitted[:, :, 0] = blank.sum(dim=1)
        emitted[:, :-1].scatter_add_(2, targets[:, :, None], label.sum(dim=1)[:, :, None])
        exp_grad = _matmul(ratio.transpose(1, 2), a_exp)  # (N, U + 2, V)
        average_grad = exp_grad[:, -1].sum(dim=0) - average_only * emitted.sum(dim=(0, 1)) / p_exp[0, -1]  # (V,)
        p_exp = p_exp[:, :-1]
        p_grad = exp_grad[:, :-1].mul_(p_exp) - (1 - average_only) * emitted
        inner = (p_exp * average_grad).sum(dim=2, keepdim=True) / p_sum  # (N, U + 1, 1)
        p_grad += p_exp * (own * by_column / p_sum + share * (average_grad - inner))
        return a_grad.to(ctx.types[0]), p_grad.to(ctx.types[1]), None, None, None


def _inside(ranges: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """The nodes (K,) of ranges (N, T, R) that belong to an utterance and not to its padding, and their rows (K,)."""
    n, frames, columns = lattice.shape
    if ranges.ndim != 3 or ranges.shape[:2] != (n, frames):
        raise ValueError(f"ranges must be ({n}, {frames}, R), not {tuple(ranges.shape)}")
    if ranges.min() < 0 or (ranges.diff(dim=2) != 1).any():
        raise ValueError("ranges must be rows of consecutive numbers from 0 on")
    frame = torch.arange(n * frames, device=ranges.device).view(n, frames, 1)
    inside = (frame % frames < lattice.frame_lens[:, None, None]) & (ranges <= lattice.label_lens[:, None, None])
    return (frame * columns + ranges)[inside], inside.flatten().nonzero().squeeze(1)


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    """Batched product that autocast leaves alone: what is multiplied here spans too many orders of magnitude."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ y


def _suffix_minimum(x: Tensor) -> Tensor:
    """Return min(x[i:]) at each i of the last dimension."""
    return x.flip(-1).cummin(dim=-1).values.flip(-1)
