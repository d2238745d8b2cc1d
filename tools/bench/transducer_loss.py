"""Transducer losses, forward and backward, against their peers: equal values and gradients, time, memory.

Usage:
    python tools/bench/transducer_loss.py --json transducer_loss.json
    python tools/bench/transducer_loss.py --quick

Runs on the GPU if torch sees one, otherwise on one thread of the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from common import Contestants, Row, duel, load_peers, one_thread, options, report
from torch import Tensor
from torch.nn.functional import linear

from asrkit.losses.pruned import pruned_loss, pruned_transducer_loss, simple_loss
from asrkit.losses.transducer import joint_transducer_loss, transducer_loss

BLANK = 0
WARPRNNT_LIMIT = 2_000_000  # logits; on a CPU warprnnt_numba takes a second for each half million
REFERENCE = "asrkit in torch"
LABELS_KEPT = 5  # a frame, by pruning
LM_ONLY_SCALE, AM_ONLY_SCALE = 0.25, 0.0
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}  # torchaudio's sums in float32 are off by some 1e-4


@dataclass(frozen=True)
class Shape:
    """N utterances, T frames, U labels, V vocabulary, D size of encoder and predictor, J of the joiner."""

    n: int
    t: int
    u: int
    v: int
    d: int
    j: int

    def __str__(self) -> str:
        return f"N={self.n} T={self.t} U={self.u} V={self.v} D={self.d}" + f" J={self.j}" * (self.j != self.d)


QUICK = [Shape(2, 20, 6, 30, 16, 8)]
CPU = [Shape(8, 200, 40, 500, 512, 512), Shape(4, 100, 20, 128, 512, 512), Shape(8, 100, 12, 500, 192, 128)]
CUDA = [Shape(32, 400, 80, 500, 512, 512), Shape(32, 400, 80, 5000, 512, 512)]


@dataclass(frozen=True)
class Labels:
    """targets (N, U), frame_lens (N,), target_lens (N,), and the topology of the paths."""

    targets: Tensor
    frame_lens: Tensor
    target_lens: Tensor
    topology: str = "regular"

    @classmethod
    def random(cls, shape: Shape, device: str) -> "Labels":
        """Labels of full length."""
        targets = torch.randint(1, shape.v, (shape.n, shape.u), device=device)
        return cls(targets, *(torch.full((shape.n,), length, device=device) for length in (shape.t, shape.u)))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.targets, self.frame_lens, self.target_lens))

    def in_k2(self) -> dict[str, Any]:
        """The arguments of k2's losses."""
        zero = torch.zeros_like(self.target_lens)
        boundary = torch.stack([zero, zero, self.target_lens, self.frame_lens], dim=1)
        common = {"termination_symbol": BLANK, "rnnt_type": self.topology, "reduction": "none"}
        return {"symbols": self.targets, "boundary": boundary, **common}


Loss = Callable[..., Tensor]  # of Labels and what gradients are asked for: losses (N,), or (2, N) to be added up


def main() -> None:
    arguments = options(__doc__).parse_args()
    one_thread()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = QUICK if arguments.quick else CUDA if device == "cuda" else CPU
    seconds = 0.1 if arguments.quick else 3.0
    on_cpu = ("k2", "fast_rnnt", "warprnnt_numba")  # as install_peers.sh builds them
    peers = load_peers("torchaudio", *(on_cpu if device == "cpu" else ()))
    rows = [row for shape in shapes for row in compare(shape, peers, seconds, device)]
    report("transducer_loss.py", rows, arguments)


def compare(shape: Shape, peers: dict[str, ModuleType], seconds: float, device: str) -> Iterator[Row]:
    """Yield the rows of every work of a size."""
    torch.manual_seed(0)
    labels = Labels.random(shape, device)
    joiner = random_joiner(shape, device)
    heads = random_heads(shape, device)
    sums = full_sums(peers)
    if shape.n * shape.t * shape.u * shape.v > WARPRNNT_LIMIT:
        sums.pop("warprnnt_numba", None)
    joint_sums = {name: partial(all_logits, sums[name]) for name in (REFERENCE, "torchaudio", "k2") if name in sums}
    chains = {name: partial(after_heads, chain) for name, chain in pruned_chains(peers).items()}

    def rows(
        work: str,
        ours: Loss,
        theirs: dict[str, Loss],
        inputs: list[Tensor],
        dtype: torch.dtype = torch.float32,
        comparable: dict[str, Loss] | None = None,
    ) -> list[Row]:
        def runs(losses: dict[str, Loss]) -> Contestants:
            return {name: partial(with_gradients, loss, labels, inputs, dtype) for name, loss in losses.items()}

        contestants = runs({"asrkit": ours, **theirs})
        return duel(f"{work}, {shape}", contestants, TOLERANCE[dtype], seconds, device, runs(comparable or {}))

    yield from rows("full sum on logits", full_sum, sums, random_logits(shape, device))
    yield from rows("joiner and full sum", joint_sum, joint_sums, joiner)
    yield from rows("joiner and full sum in bf16", joint_sum, joint_sums, joiner, torch.bfloat16)
    chain = partial(after_heads, pruned_chain)
    same = {name: partial(after_heads, partial(chain_on_ranges_of, peers[name])) for name in chains if name in peers}
    yield from rows("pruned chain", chain, chains, heads + joiner, comparable=same)
    yield from rows("pruned chain in bf16", chain, chains, heads + joiner, torch.bfloat16, comparable=same)


def random_logits(shape: Shape, device: str) -> list[Tensor]:
    return [torch.randn(shape.n, shape.t, shape.u + 1, shape.v, device=device, requires_grad=True)]


def random_joiner(shape: Shape, device: str) -> list[Tensor]:
    """Return encoder (N, T, J), predictor (N, U + 1, J), weight (V, J) and bias (V,)."""
    n, t, u, v, j = shape.n, shape.t, shape.u, shape.v, shape.j
    sizes = [(n, t, j), (n, u + 1, j), (v, j), (v,)]
    scales = [1.0, 1.0, j**-0.5, 0.1]
    return [(torch.randn(s, device=device) * x).requires_grad_() for s, x in zip(sizes, scales, strict=True)]


def random_heads(shape: Shape, device: str) -> list[Tensor]:
    """Return encoder_out (N, T, D), predictor_out (N, U + 1, D) and the weights (V, D) of their own logits."""
    n, t, u, v, d = shape.n, shape.t, shape.u, shape.v, shape.d
    sizes = [(n, t, d), (n, u + 1, d), (v, d), (v, d)]
    scales = [1.0, 1.0, d**-0.5, d**-0.5]
    return [(torch.randn(s, device=device) * x).requires_grad_() for s, x in zip(sizes, scales, strict=True)]


def with_gradients(loss: Loss, labels: Labels, inputs: list[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Return losses and gradients, under autocast unless the type is float32."""
    with torch.autocast(labels.targets.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = loss(labels, *inputs)
    return [value.detach(), *torch.autograd.grad(value.sum(), inputs)]


# The full sum on logits (N, T, U + 1, V)


def full_sum(labels: Labels, logits: Tensor, backend: str = "auto") -> Tensor:
    return transducer_loss(logits, *labels, topology=labels.topology, backend=backend)


def torchaudio_full_sum(torchaudio: ModuleType, labels: Labels, logits: Tensor) -> Tensor:
    return torchaudio.functional.rnnt_loss(logits, *(x.int() for x in labels), blank=BLANK, reduction="none")


def k2_full_sum(k2: ModuleType, labels: Labels, logits: Tensor) -> Tensor:
    return k2.rnnt_loss(logits, **labels.in_k2())


def warprnnt_full_sum(warprnnt_numba: ModuleType, labels: Labels, logits: Tensor) -> Tensor:
    loss = warprnnt_numba.RNNTLossNumba(blank=BLANK, reduction="none")
    return loss(logits, *(x.int() for x in labels))


def full_sums(peers: dict[str, ModuleType]) -> dict[str, Loss]:
    """Return the losses to compare ours with; our own reference is always there."""
    functions = {
        "torchaudio": torchaudio_full_sum,
        "k2": k2_full_sum,
        "fast_rnnt": k2_full_sum,  # the same functions as in k2
        "warprnnt_numba": warprnnt_full_sum,
    }
    theirs = {name: partial(functions[name], peer) for name, peer in peers.items()}
    return {REFERENCE: partial(full_sum, backend="torch"), **theirs}


# The joiner and the full sum


def joint_sum(labels: Labels, *joiner: Tensor) -> Tensor:
    return joint_transducer_loss(*joiner, *labels, topology=labels.topology)


def all_logits(loss: Loss, labels: Labels, encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What goes before a loss that wants logits."""
    logits = linear(torch.tanh(encoder[:, :, None] + predictor[:, None]), weight, bias)
    with torch.autocast(logits.device.type, enabled=False):
        return loss(labels, logits.float())


# The pruned chain: simple loss, ranges, joiner and pruned loss


def after_heads(
    chain: Loss,
    labels: Labels,
    encoder_out: Tensor,
    predictor_out: Tensor,
    w_encoder: Tensor,
    w_predictor: Tensor,
    *joiner: Tensor,
) -> Tensor:
    return chain(labels, linear(encoder_out, w_encoder), linear(predictor_out, w_predictor), *joiner)


def pruned_chain(labels: Labels, *logits_and_joiner: Tensor, backend: str = "auto") -> Tensor:
    losses = pruned_transducer_loss(
        *logits_and_joiner,
        *labels,
        size=LABELS_KEPT,
        topology=labels.topology,
        lm_only_scale=LM_ONLY_SCALE,
        am_only_scale=AM_ONLY_SCALE,
        backend=backend,
    )
    return torch.stack(losses)


def pruned_chains(peers: dict[str, ModuleType]) -> dict[str, Loss]:
    theirs = {name: partial(k2_pruned_chain, peers[name]) for name in ("k2", "fast_rnnt") if name in peers}
    return {REFERENCE: partial(pruned_chain, backend="torch"), **theirs}


def k2_pruned_chain(
    k2: ModuleType, labels: Labels, encoder_logits: Tensor, predictor_logits: Tensor, *joiner: Tensor
) -> Tensor:
    """As in k2's recipes: under autocast, too, the losses are in float32."""
    simple, ranges = k2_simple_loss(k2, labels, encoder_logits, predictor_logits)
    encoder, predictor, weight, bias = joiner
    encoder, predictor = k2.do_rnnt_pruning(encoder, predictor, ranges)
    logits = linear(torch.tanh(encoder + predictor), weight, bias)
    with torch.autocast(encoder.device.type, enabled=False):
        pruned = k2.rnnt_loss_pruned(logits.float(), ranges=ranges, **labels.in_k2())
    return torch.stack([simple, pruned])


def k2_simple_loss(
    k2: ModuleType, labels: Labels, encoder_logits: Tensor, predictor_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the losses (N,) and the ranges (N, T, R)."""
    arguments = labels.in_k2()
    with torch.autocast(encoder_logits.device.type, enabled=False):
        simple, gradients = k2.rnnt_loss_smoothed(
            predictor_logits.float(),
            encoder_logits.float(),
            lm_only_scale=LM_ONLY_SCALE,
            am_only_scale=AM_ONLY_SCALE,
            return_grad=True,
            **arguments,
        )
    return simple, k2.get_rnnt_prune_ranges(*gradients, arguments["boundary"], LABELS_KEPT)


def chain_on_ranges_of(
    k2: ModuleType, labels: Labels, encoder_logits: Tensor, predictor_logits: Tensor, *joiner: Tensor
) -> Tensor:
    """Our chain on k2's ranges, to compare its results with.

    Both choose by the same rule, but of two ranges that are equally probable to float32 not always the same one, and
    one such frame of a thousand changes its own gradients altogether.
    """
    _, ranges = k2_simple_loss(k2, labels, encoder_logits.detach(), predictor_logits.detach())
    scales = {"lm_only_scale": LM_ONLY_SCALE, "am_only_scale": AM_ONLY_SCALE}
    simple, *_ = simple_loss(encoder_logits, predictor_logits, *labels, topology=labels.topology, **scales)
    pruned = pruned_loss(*joiner, ranges, *labels, topology=labels.topology)
    return torch.stack([simple, pruned])


if __name__ == "__main__":
    main()
