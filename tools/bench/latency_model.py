"""How well a latency table predicts whole networks that it was not made from.

Usage:
    asrkit compress latency-table --out latency.jsonl
    python tools/bench/latency_model.py --table latency.jsonl --json model.json --markdown model.md
    python tools/bench/latency_model.py --table latency.jsonl --quick

The networks are VGGs, ResNets, MobileNets and stacks of linear layers of random widths, their layers pruned by random
schemes and ratios. Each is compiled and measured; the ratio is predicted to measured time.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import Row, one_thread, options, report
from scipy.stats import spearmanr
from torch import Tensor, nn

from asrkit.compress.codegen import Network, compile_network, load_network
from asrkit.compress.latency import DENSE, Layer, layers_of, read_table
from asrkit.compress.mapping import LayerMapping, Mapping, candidates
from asrkit.compress.schemes import make_mask
from asrkit.compress.vision.networks import NetworkConfig, build_network

WIDTHS = {"vgg16": (0.25, 0.375, 0.5, 0.75), "resnet32": (0.5, 1.0, 1.5, 2.0), "mobilenet": (0.25, 0.5, 0.75, 1.0)}
KINDS = (*WIDTHS, "linear layers")
RATIOS = (0.0, 0.6, 0.75, 0.85, 0.9)  # of a network; those of its layers lie around
SPREAD, SPARSEST = 0.6, 0.97
LEAST_PATTERN_RATIO = 5 / 9
NETWORKS, FEWER = 20, 4
ROUNDS, REPEATS = 8, 20


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--table", type=Path, required=True, help="what `asrkit compress latency-table` made")
    arguments = parser.parse_args()
    one_thread()
    table = read_table(arguments.table)
    found = [random_network(seed) for seed in range(FEWER if arguments.quick else NETWORKS)]
    compiled = [compiled_network(network, inputs) for _, network, inputs, _, _ in found]
    rounds = [[network.seconds(REPEATS) for network in compiled] for _ in range(ROUNDS)]
    measured = np.min(rounds, axis=0)
    predicted = np.array([table.predict(layers, mapping) for *_, layers, mapping in found])
    rows = [
        Row(name, "measured", 1e3 * float(p), 1e3 * float(m), "ms", "predicted")
        for (name, *_), p, m in zip(found, predicted, measured, strict=True)
    ]
    errors = 100 * np.abs(predicted / measured - 1)
    notes = [
        f"mean absolute error {errors.mean():.1f} %, median {np.median(errors):.1f} %, largest {errors.max():.1f} %",
        f"rank correlation (Spearman) {spearmanr(predicted, measured).statistic:.4f}",
    ]
    report("latency_model.py", rows, arguments, notes)


def random_network(seed: int) -> tuple[str, nn.Module, Tensor, list[Layer], Mapping]:
    """Return name, pruned network, example input, layers and mapping."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kind = KINDS[seed % len(KINDS)]
    if kind in WIDTHS:
        width, size = float(random.choice(WIDTHS[kind])), int(random.choice((16, 32)))
        network: nn.Module = build_network(NetworkConfig(kind=kind, width=width, channels=3, size=size))
        inputs, name = torch.randn(1, 3, size, size), f"{kind} of width {width:g}, {size} x {size}"
    else:
        widths, rows = 4 * random.integers(16, 256, random.integers(3, 8)), int(random.choice((1, 4, 16, 32)))
        pairs = zip(widths, widths[1:], strict=False)
        network = nn.Sequential(*(layer for pair in pairs for layer in (nn.Linear(*map(int, pair)), nn.ReLU())))
        inputs, name = torch.randn(1, rows, int(widths[0])), f"{len(widths) - 1} linear layers, {rows} rows"
    network.eval()
    layers = layers_of(network, (inputs,))
    ratio = float(random.choice(RATIOS))
    mapping = {layer.path: random_pruning(random, layers, layer, ratio) for layer in layers}
    with torch.no_grad():
        for layer in layers:
            weight, chosen = network.get_submodule(layer.path).weight, mapping[layer.path]
            weight *= make_mask(weight, chosen.scheme, chosen.ratio, layer.groups)
    return f"{name}, about {100 * ratio:.0f} % pruned", network, inputs, layers, mapping


def random_pruning(random: np.random.Generator, layers: list[Layer], layer: Layer, ratio: float) -> LayerMapping:
    schemes = candidates(layers, layer)
    scheme = schemes[random.integers(len(schemes))]
    if ratio == 0 or scheme == DENSE:
        return LayerMapping(DENSE, 0.0)
    own = min(SPARSEST, max(0.3, 1 - (1 - ratio) * float(np.exp(random.uniform(-SPREAD, SPREAD)))))
    return LayerMapping(scheme, max(own, LEAST_PATTERN_RATIO) if scheme.kind == "pattern" else own)


def compiled_network(network: nn.Module, inputs: Tensor) -> Network:
    with tempfile.TemporaryDirectory() as folder:
        compile_network(network, (inputs,), Path(folder))
        return load_network(folder)


if __name__ == "__main__":
    main()
