"""What the full-sum and the pruned transducer loss share: lattices of label sequences, and the joiner at their nodes.

The joiner is logits (t, u) = weight @ tanh(encoder (t) + predictor (u)) + bias. It works through packed nodes by the
chunk. Unless they are to be kept it never holds more than a chunk's logits: the forward keeps three numbers a node, and
the backward computes the logits again, at the nodes that matter.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.losses import nodes
from asrkit.losses.lattice import LOG_ZERO, Topology, occupations

# Nodes that a smaller part of the paths goes through are left out of the gradient. All of them together would change it
# by less than the rounding of float32; in a trained model, they are most of the lattice.
NEGLIGIBLE = 1e-9

# The joiner's nodes are rounded up to a multiple of this: kernels for its products are compiled for each shape.
ROUNDED = 64

# Numbers held at once for the nodes of a chunk: on the CPU as many as stay in its cache, or less if that would be much
# of what all nodes take.
CPU_CHUNK, DEVICE_CHUNK = 2**19, 2**26
CHUNKS, FEW_NODES = 32, 256


@dataclass(frozen=True)
class Lattice:
    """The nodes of B label sequences. Packed ones are indices (R,) into their flattened shape (B, T, U + 1)."""

    labels: Tensor  # (B, U + 1) the label that may leave each column, 0 where there is none
    frame_lens: Tensor  # (B,)
    label_lens: Tensor  # (B,)
    frames: int  # T
    topology: Topology
    factored: bool
    delay_penalty: float
    backend: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.labels), self.frames, self.labels.shape[1]

    def nodes(self) -> Tensor:
        """All nodes inside of their sequences."""
        t, u = (torch.arange(size, device=self.labels.device) for size in self.shape[1:])
        inside = (t < self.frame_lens[:, None])[:, :, None] & (u <= self.label_lens[:, None])[:, None, :]
        return inside.flatten().nonzero().squeeze(1)

    @cached_property
    def _labels(self) -> Tensor:
        return self.labels[:, None].expand(self.shape).flatten()

    def labels_of(self, nodes: Tensor) -> Tensor:
        return self._labels[nodes]

    def planes(self, nodes: Tensor, scores: Tensor) -> Tensor:
        """Lay out the scores (3, R) of the nodes as `sums` wants them."""
        planes = scores.new_full((3, math.prod(self.shape)), LOG_ZERO)
        return planes.index_copy_(1, nodes, scores).unflatten(1, self.shape)

    def sums(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over the paths, from each node's normaliser, score of the blank and score of the label, (3, B, T, U + 1).

        Returns:
            log-probability (B,), and what its gradient takes of each node (3, B, T, U + 1): the normaliser, and the
            posterior probabilities of the blank and of the label.
        """
        normaliser, blank, label = planes
        total, blank, label = self.occupations(blank, label[:, :, :-1])
        return total, torch.stack([normaliser, blank, torch.nn.functional.pad(label, (0, 1))])

    def occupations(self, blank: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As asrkit.losses.lattice.occupations."""
        options = self.topology, self.delay_penalty, self.backend
        return occupations(blank, label, self.frame_lens, self.label_lens, *options)

    def weighted(self, planes: Tensor, grad_loss: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the nodes (R,) that matter to the gradient of the losses (B,).

        Returns:
            the nodes, and their normaliser and weights of blank and label, (3, R), from the planes of `sums`.
        """
        _, blank, label = planes
        matters = (blank + label > NEGLIGIBLE) & (grad_loss != 0)[:, None, None]
        nodes = matters.flatten().nonzero().squeeze(1)
        chosen = planes.flatten(1)[:, nodes]
        chosen[1:] *= grad_loss[nodes // matters[0].numel()]
        return nodes, chosen


def checked_lattice(
    targets: Tensor, frame_lens: Tensor, label_lens: Tensor, frames: int, symbols: int, *options: Any
) -> Lattice:
    """Check the lengths (B,) and the labels (B, U)."""
    b, labels = targets.shape
    if frame_lens.shape != (b,) or label_lens.shape != (b,):
        raise ValueError(f"lengths must have shape ({b},)")
    t, u = frame_lens.tolist(), label_lens.tolist()
    if not (all(1 <= length <= frames for length in t) and all(0 <= length <= labels for length in u)):
        raise ValueError(f"lengths outside 1 … {frames} frames or 0 … {labels} labels: {t}, {u}")
    real = torch.arange(labels, device=targets.device) < label_lens[:, None]
    column_labels = targets.long() * real
    if not torch.equal(column_labels, column_labels.clamp(1, symbols - 1) * real):
        raise ValueError(f"targets have labels outside 1 … {symbols - 1}")
    column_labels = torch.nn.functional.pad(column_labels, (0, 1))
    return Lattice(column_labels, frame_lens.long(), label_lens.long(), frames, *options)


def joint_case(
    encoder: Tensor,
    predictor: Tensor,
    weight: Tensor,
    bias: Tensor,
    utterance: Tensor,
    labels: Tensor,
    frame_lens: Tensor,
    label_lens: Tensor,
    *options: Any,
) -> tuple[Lattice, torch.dtype]:
    """Check the arguments; return the lattice of the label sequences and the type of the joiner's products."""
    n, frames, size = encoder.shape
    b, columns = labels.shape[0], labels.shape[1] + 1
    symbols = len(weight)
    if predictor.shape != (b, columns, size) or weight.shape != (symbols, size) or bias.shape != (symbols,):
        raise ValueError(
            f"encoder {(n, frames, size)} and labels {tuple(labels.shape)} want predictor {(b, columns, size)}, "
            f"weight (V, {size}), bias (V,), not {tuple(predictor.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    if frame_lens.shape != (n,):
        raise ValueError(f"frame_lens must have shape ({n},)")
    if utterance.shape != (b,) or b and (utterance.min() < 0 or utterance.max() >= n):
        raise ValueError(f"utterance must be ({b},) indices below {n}")
    kind = encoder.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    lattice = checked_lattice(labels, frame_lens[utterance], label_lens, frames, symbols, *options)
    return lattice, low or torch.promote_types(encoder.dtype, torch.float32)


def rounded(x: Tensor) -> Tensor:
    """Repeat the last of x (…, R) until R is a multiple of `ROUNDED`."""
    return torch.cat([x, x[..., -1:].expand(*x.shape[:-1], -x.shape[-1] % ROUNDED)], dim=-1)


def chunk_size(device: torch.device, numbers: int) -> int:
    """How many nodes of so many numbers each are computed at once."""
    return max(1, (CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK) // numbers)


@dataclass(frozen=True)
class Joint:
    """The joiner at packed nodes."""

    lattice: Lattice
    encoder: Tensor  # (N * T, J)
    predictor: Tensor  # (B * (U + 1), J)
    weight: Tensor  # (V, J), in the type of the products, as is bias
    bias: Tensor  # (V,)
    utterance: Tensor  # (B,)

    @staticmethod
    def of(
        lattice: Lattice,
        product_type: torch.dtype,
        encoder: Tensor,
        predictor: Tensor,
        weight: Tensor,
        bias: Tensor,
        utterance: Tensor,
    ) -> "Joint":
        dtype = torch.promote_types(encoder.dtype, torch.float32)
        sides = (x.detach().to(dtype).flatten(0, 1).contiguous() for x in (encoder, predictor))
        return Joint(lattice, *sides, weight.detach().to(product_type), bias.detach().to(product_type), utterance)

    @property
    def chunk_size(self) -> int:
        """Of a multiple of `ROUNDED` nodes, so that the last chunk has one of a few shapes."""
        size = chunk_size(self.weight.device, sum(self.weight.shape))
        if self.weight.device.type == "cpu" and self.weight.dtype == torch.float32:  # others are slow by the piece
            size = min(size, max(FEW_NODES, math.prod(self.lattice.shape) // CHUNKS))
        return max(ROUNDED, size // ROUNDED * ROUNDED)

    @property
    def engine(self) -> ModuleType:
        return nodes.engine(self.encoder, self.lattice.backend)

    @property
    def labels(self) -> Tensor:
        """The label that may follow each row of the predictor."""
        return self.lattice.labels.flatten()

    def rows(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of encoder and predictor (R,) that meet at each node."""
        _, frames, columns = self.lattice.shape
        sequence, t = packed // (frames * columns), packed // columns % frames
        return self.utterance[sequence] * frames + t, sequence * columns + packed % columns

    def hidden(self, rows: tuple[Tensor, Tensor]) -> Tensor:
        """Hidden values (R, J)."""
        return self.engine.hidden(self.encoder, self.predictor, *rows)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits (R, V)."""
        return torch.addmm(self.bias, hidden.to(self.weight.dtype), self.weight.T, out=out)

    def sums(self, packed: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Lattice.sums`, over paths through the nodes (R,); their logits are left in `kept` (R, V), if given."""
        lattice, size = self.lattice, self.chunk_size
        # Filled piece by piece: small results kept between the large buffers of the chunks would fragment the heap.
        scores = self.encoder.new_empty(3, len(packed))
        outs = repeat(None) if kept is None else kept.split(size)
        for chunk, piece, out in zip(packed.split(size), scores.split(size, dim=1), outs, strict=False):
            rows = self.rows(chunk)
            logits = self.logits(self.hidden(rows), out=out)
            torch.stack(self.engine.scores(logits, self.labels[rows[1]], lattice.factored), out=piece)
        return lattice.sums(lattice.planes(packed, scores))

    def gradients(
        self, planes: Tensor, grad_loss: Tensor, kept: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of encoder, predictor, weight and bias, summed in float32 at least.

        Args:
            kept: nodes (R,) in ascending order and their logits (R, V), if these are not to be computed again.
        """
        dtype = self.encoder.dtype
        encoder, predictor = torch.zeros_like(self.encoder), torch.zeros_like(self.predictor)
        weight, bias = torch.zeros_like(self.weight, dtype=dtype), torch.zeros_like(self.bias, dtype=dtype)
        packed, weights = self.lattice.weighted(planes, grad_loss)
        real, weights = len(packed), rounded(weights)
        weights[1:, real:] = 0.0
        size = self.chunk_size
        for chunk, arcs in zip(rounded(packed).split(size), weights.split(size, dim=1), strict=True):
            rows = self.rows(chunk)
            hidden = self.hidden(rows)
            if kept is None:
                grad = self.logits(hidden)
            else:
                grad = kept[1].index_select(0, torch.searchsorted(kept[0], chunk))
            self.engine.gradient(grad, self.labels[rows[1]], self.lattice.factored, *arcs, out=grad)
            if grad.dtype == dtype:
                weight.addmm_(grad.T, hidden)
            else:
                weight += grad.T @ hidden.to(grad.dtype)
            bias += grad.sum(dim=0, dtype=dtype)
            self.engine.hidden_gradient((grad @ self.weight).to(dtype), hidden, *rows, encoder, predictor)
        return encoder, predictor, weight, bias


class LogitsLoss(torch.autograd.Function):
    """Loss (B,) of the paths through packed nodes (R,), whose logits are the rows (R,) of given logits (…, V).

    Without `rows`, those of a node are at its own index: the logits are of all nodes.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, lattice: Lattice, packed: Tensor, rows: Tensor | None) -> Tensor:
        flat = logits.detach().reshape(-1, logits.shape[-1])
        engine, size = nodes.engine(flat, lattice.backend), chunk_size(flat.device, flat.shape[1])
        at = packed if rows is None else rows
        scores = [
            torch.stack(engine.scores(flat, labels, lattice.factored, rows=row))
            for row, labels in zip(at.split(size), lattice.labels_of(packed).split(size), strict=True)
        ]
        total, planes = lattice.sums(lattice.planes(packed, torch.cat(scores, dim=1)))
        ctx.lattice = lattice
        ctx.save_for_backward(logits, planes, packed, rows)
        return -total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        logits, planes, packed, rows = ctx.saved_tensors
        lattice, size = ctx.lattice, chunk_size(logits.device, logits.shape[-1])
        flat, grad = logits.reshape(-1, logits.shape[-1]), _untouched_zeros(logits)
        engine = nodes.engine(flat, lattice.backend)
        chosen, weights = lattice.weighted(planes, grad_loss)
        at = chosen if rows is None else rows[torch.searchsorted(packed, chosen)]
        pieces = at.split(size), lattice.labels_of(chosen).split(size), weights.split(size, dim=1)
        for row, labels, weight in zip(*pieces, strict=True):
            engine.gradient(flat, labels, lattice.factored, *weight, out=grad.view_as(flat), rows=row)
        return grad, None, None, None


class CompiledLoss(torch.autograd.Function):
    """As LogitsLoss, of float32 logits (B, T, U + 1, V) of all nodes on the CPU: nothing is packed."""

    @staticmethod
    def forward(ctx, logits: Tensor, lattice: Lattice) -> Tensor:
        logits = logits.detach().contiguous()
        planes = logits.new_full((3, *lattice.shape), LOG_ZERO)
        lens = lattice.frame_lens, lattice.label_lens
        engine = nodes.engine(logits, lattice.backend)
        engine.lattice_scores(logits, lattice.labels, *lens, lattice.factored, planes)
        total, planes = lattice.sums(planes)
        ctx.lattice = lattice
        ctx.save_for_backward(logits, planes)
        return -total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        logits, planes = ctx.saved_tensors
        lattice, grad = ctx.lattice, _untouched_zeros(logits)
        engine, weights = nodes.engine(logits, lattice.backend), (planes, NEGLIGIBLE, grad_loss.contiguous())
        engine.lattice_gradient(logits, lattice.labels, lattice.factored, *weights, grad)
        return grad, None


class JointLoss(torch.autograd.Function):
    """Loss (B,) of the paths through packed nodes (R,) of a joiner; their logits are kept for the backward, or not."""

    @staticmethod
    def forward(
        ctx, lattice: Lattice, product_type: torch.dtype, packed: Tensor, keep: bool, *inputs: Tensor
    ) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            joint = Joint.of(lattice, product_type, *inputs)
            logits = joint.bias.new_empty(len(packed), len(joint.bias)) if keep else None
            total, planes = joint.sums(packed, logits)
        ctx.lattice, ctx.product_type = lattice, product_type
        ctx.save_for_backward(planes, packed if keep else None, logits, *inputs)
        return -total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        planes, packed, logits, *inputs = ctx.saved_tensors
        with torch.autocast(inputs[0].device.type, enabled=False):
            joint = Joint.of(ctx.lattice, ctx.product_type, *inputs)
            gradients = joint.gradients(planes, grad_loss, None if logits is None else (packed, logits))
        like = zip(gradients, inputs, strict=False)  # the last input has no gradient
        return None, None, None, None, *(gradient.view_as(x).to(x.dtype) for gradient, x in like), None


def _untouched_zeros(x: Tensor) -> Tensor:
    """Zeros like x. On the CPU they cost neither time nor memory before something is written."""
    if x.device.type != "cpu":
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    memory = np.zeros(x.numel() * x.element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(x.dtype).view(x.shape)
