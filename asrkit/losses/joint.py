"""What the full-sum and the pruned transducer loss share: lattices of label sequences, and the joiner at their nodes.

The joiner is logits (t, u) = weight @ tanh(encoder (t) + predictor (u)) + bias. It works through packed nodes by the
chunk and never holds more than a chunk's logits: the forward keeps three numbers a node, and the backward computes the
logits again, at the nodes that matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from asrkit.losses import nodes
from asrkit.losses.lattice import LOG_ZERO, Topology, occupations

# Nodes that a smaller part of the paths goes through are left out of the gradient. All of them together would change it
# by less than the rounding of float32; in a trained model, they are most of the lattice.
NEGLIGIBLE = 1e-9

# The joiner's nodes are rounded up to a multiple of this: kernels for its products are compiled for each shape.
ROUNDED = 64

# Numbers held at once for the nodes of a chunk: on the CPU as many as stay in its cache.
CPU_CHUNK, DEVICE_CHUNK = 2**19, 2**26


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

    def sums(self, nodes: Tensor, scores: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Sum over the paths, from pieces of (normaliser, blank's score, label's score) of the nodes.

        Returns:
            log-probability (B,), and what its gradient takes of each node (3, B, T, U + 1): the normaliser, and the
            posterior probabilities of the blank and of the label.
        """
        normaliser, blank, label = (self._unpacked(nodes, torch.cat(x)) for x in zip(*scores, strict=True))
        total, blank, label = self.occupations(blank, label[:, :, :-1])
        return total, torch.stack([normaliser, blank, torch.nn.functional.pad(label, (0, 1))])

    def occupations(self, blank: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As asrkit.losses.lattice.occupations."""
        options = self.topology, self.delay_penalty, self.backend
        return occupations(blank, label, self.frame_lens, self.label_lens, *options)

    def _unpacked(self, nodes: Tensor, values: Tensor) -> Tensor:
        return values.new_full(self.shape, LOG_ZERO).flatten().index_copy_(0, nodes, values).view(self.shape)

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
    if frame_lens.min() < 1 or frame_lens.max() > frames or label_lens.min() < 0 or label_lens.max() > labels:
        raise ValueError(
            f"lengths outside 1 … {frames} frames or 0 … {labels} labels: {frame_lens.tolist()}, {label_lens.tolist()}"
        )
    padding = torch.arange(labels, device=targets.device) >= label_lens[:, None]
    if ((targets < 1) | (targets >= symbols)).masked_fill(padding, False).any():
        raise ValueError(f"targets have labels outside 1 … {symbols - 1}")
    column_labels = torch.nn.functional.pad(targets.long().masked_fill(padding, 0), (0, 1))
    return Lattice(column_labels, frame_lens, label_lens, frames, *options)


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

    def chunks(self, *packed: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(x.split(chunk_size(x.device, sum(self.weight.shape)), dim=-1) for x in packed), strict=True)

    @property
    def engine(self) -> ModuleType:
        return nodes.engine(self.encoder, self.lattice.backend)

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

    def sums(self) -> tuple[Tensor, Tensor]:
        """As `Lattice.sums`."""
        lattice, packed = self.lattice, rounded(self.lattice.nodes())
        # Filled piece by piece: small results kept between the large buffers of the chunks would fragment the heap.
        scores = self.encoder.new_empty(3, len(packed))
        for chunk, piece in self.chunks(packed, scores):
            logits = self.logits(self.hidden(self.rows(chunk)))
            torch.stack(self.engine.scores(logits, lattice.labels_of(chunk), lattice.factored), out=piece)
        return lattice.sums(packed, [tuple(scores)])

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
        for chunk, arcs in self.chunks(rounded(packed), weights):
            rows = self.rows(chunk)
            hidden = self.hidden(rows)
            if kept is None:
                grad = self.logits(hidden)
            else:
                grad = kept[1].index_select(0, torch.searchsorted(kept[0], chunk))
            self.engine.gradient(grad, self.lattice.labels_of(chunk), self.lattice.factored, *arcs, out=grad)
            if grad.dtype == dtype:
                weight.addmm_(grad.T, hidden)
            else:
                weight += grad.T @ hidden.to(grad.dtype)
            bias += grad.sum(dim=0, dtype=dtype)
            self.engine.hidden_gradient((grad @ self.weight).to(dtype), hidden, *rows, encoder, predictor)
        return encoder, predictor, weight, bias
