"""Pruned layers beside dense engines, which gain nothing from zeros, and beside sparse matrix products.

Usage:
    python tools/bench/sparse_kernels.py --json kernels.json --markdown kernels.md
    python tools/bench/sparse_kernels.py --schemes "punched 8x1" "block 16x16" --ratios 0.8
    python tools/bench/sparse_kernels.py --quick

Weights are random and pruned by magnitude: these are speeds, no accuracy stands behind them. A dense engine computes
the layer before it is pruned. The sparse products of torch and scipy have the scheme and the layout that suit them
best, and no bias to add.

Layers stand in a row of twelve, as in a network, and the time is that of one: where an engine has a layout of its own,
entering and leaving it costs a single layer as much as its work. Those "alone" tell how much.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import scipy.sparse
import torch
from common import Row, one_thread, options, report
from engines import BEST, REFERENCE, Entry, Key, Prepared, contest, keep_stdout
from torch import Tensor, nn

from asrkit.compress.schemes import Scheme, make_mask

SCHEMES = [Scheme("punched", (4, 1)), Scheme("punched", (16, 1)), Scheme("pattern"), Scheme("unstructured")]
RATIOS = (0.5, 0.75, 0.8, 0.9)
IN_A_ROW, ALONE = 12, 1
LEAST_OF_PATTERNS = 5 / 9
SPARSE_RATIOS = (0.8, 0.9)  # with fewer zeros the sparse products are slower than dense ones


@dataclass(frozen=True)
class Layers:
    """Equal layers in a row, without anything between them, and what they are given."""

    name: str
    module: nn.Sequential
    x: Tensor


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--schemes", nargs="+", type=Scheme.parse, default=SCHEMES, metavar="SCHEME")
    parser.add_argument("--ratios", nargs="+", type=float, metavar="RATIO", help="parts of the weights that are zero")
    arguments = parser.parse_args()
    arguments.ratios = arguments.ratios or (RATIOS[-1:] if arguments.quick else RATIOS)
    keep_stdout()
    one_thread()
    torch.manual_seed(0)
    rows = [row for some in layers(arguments.quick) for row in measured(some, arguments)]
    report("sparse_kernels.py", rows, arguments, summary(rows))


def layers(quick: bool) -> Iterator[Layers]:
    """Yield layers of a Conformer, whole and streaming, of VGG-16 and of a network for super-resolution."""
    if quick:
        yield linear(64, 32, 16)
        yield convolution(16, 3, 8, 8)
        return
    shapes = (256, 256), (512, 2048), (144, 576)
    for frames in (200, 16, 1):
        for inputs, outputs in shapes:
            yield linear(inputs, outputs, frames)
    yield convolution(256, 1, 32, 32)
    yield convolution(64, 3, 32, 32)
    yield convolution(64, 3, 56, 56)
    yield convolution(256, 3, 8, 8)
    yield convolution(32, 3, 180, 320)
    for inputs, outputs in shapes:
        yield linear(inputs, outputs, 200, ALONE)
    yield convolution(64, 3, 32, 32, ALONE)


def linear(inputs: int, outputs: int, frames: int, number: int = IN_A_ROW) -> Layers:
    """Return linear layers from one size to the other and back."""
    sizes = [(inputs, outputs), (outputs, inputs)]
    module = nn.Sequential(*(nn.Linear(*sizes[i % 2]) for i in range(number)))
    return Layers(f"{prefix(number)}linear {inputs} to {outputs}, T={frames}", module, torch.randn(frames, inputs))


def convolution(channels: int, kernel: int, height: int, width: int, number: int = IN_A_ROW) -> Layers:
    module = nn.Sequential(*(nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for _ in range(number)))
    name = f"{prefix(number)}{kernel}x{kernel} {channels} to {channels}, {height}x{width}"
    return Layers(name, module, torch.randn(1, channels, height, width))


def prefix(number: int) -> str:
    return "alone: " if number == ALONE else ""


def measured(layers: Layers, arguments: argparse.Namespace) -> list[Row]:
    """Return dense layers against every engine, pruned ones against the best of them and the sparse products."""
    modules = {"dense": layers.module}
    for scheme, ratio in works(layers, arguments):
        modules[f"{scheme} {ratio:.0%}"] = pruned(layers.module, scheme, ratio)
    others = dict(sparse_products(layers, arguments)) if layers.x.ndim == 2 else {}
    return contest(layers.name, modules, [layers.x], others, len(layers.module))


def works(layers: Layers, arguments: argparse.Namespace) -> Iterator[tuple[Scheme, float]]:
    """Yield schemes and ratios; only 3x3 convolutions are pruned by other schemes than blocks."""
    square = layers.module[0].weight.shape[2:] == (3, 3)
    for scheme in arguments.schemes:
        if square or scheme.has_block:
            for ratio in arguments.ratios:
                if scheme.kind != "pattern" or ratio >= LEAST_OF_PATTERNS:
                    yield scheme, ratio


def pruned(module: nn.Sequential, scheme: Scheme, ratio: float) -> nn.Sequential:
    """Return a copy in which a part of the weights of each layer is zero."""
    module = copy.deepcopy(module)
    for layer in module:
        layer.weight.data *= make_mask(layer.weight, scheme, ratio)
    return module


def sparse_products(layers: Layers, arguments: argparse.Namespace) -> Iterator[tuple[Key, Entry]]:
    """Yield the contestants that multiply sparse matrices (O, I) by x transposed, (I, T), beside the first scheme."""
    for scheme, ratio in works(layers, arguments):
        if scheme == arguments.schemes[0] and ratio in SPARSE_RATIOS:
            for name, (suitable, sparse) in SPARSE_MATRICES.items():
                module = pruned(layers.module, suitable, ratio)
                for layer in module:
                    layer.bias = None
                matrices = [sparse(layer.weight.detach()) for layer in module]
                x = layers.x.T.contiguous()
                run = partial(product, matrices, x.numpy() if name.startswith("scipy") else x)
                ready = Prepared(run, lambda run=run: [torch.as_tensor(run()).T])
                yield (f"{scheme} {ratio:.0%}", name), Entry(ready, module)


def product(matrices: Sequence[Any], x: Any) -> Any:
    for matrix in matrices:
        x = matrix @ x
    return x


SPARSE_MATRICES = {  # name: the scheme that suits it, what makes it of a weight
    "torch CSR": (Scheme("unstructured"), Tensor.to_sparse_csr),
    "torch BSR": (Scheme("punched", (16, 16)), partial(Tensor.to_sparse_bsr, blocksize=(16, 16))),
    "scipy CSR": (Scheme("unstructured"), lambda weight: scipy.sparse.csr_array(weight.numpy())),
}


def summary(rows: Sequence[Row]) -> list[str]:
    """Return how many times as long the dense engines take, for each sparsity over all layers of a kind."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        name, _, sparsity = row.work.rpartition(", ")
        peer = row.peer.partition(",")[0]
        if sparsity != "dense" and peer in (REFERENCE, BEST) and not name.startswith("alone"):
            ratios.setdefault(f"{name.split()[0]}, {sparsity}", {}).setdefault(peer, []).append(row.ratio)
    return [
        f"{kind}: {peer} takes {min(found):.1f} to {max(found):.1f} times as long"
        for kind, peers in ratios.items()
        for peer, found in peers.items()
    ]


if __name__ == "__main__":
    main()
