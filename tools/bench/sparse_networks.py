"""Whole pruned networks, one input at a time, beside dense engines.

Usage:
    python tools/bench/sparse_networks.py --json networks.json --markdown networks.md
    python tools/bench/sparse_networks.py --classifiers exp/vgg16_pruned --speech-models exp/asr_pruned
    python tools/bench/sparse_networks.py --quick

Networks of an experiment are computed by all as they are, zeros included, from which dense engines gain nothing.
Without experiments the networks have random weights, pruned by magnitude, and dense engines compute them unpruned. Of
a speech model it is the encoder, one chunk of one stream.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from common import one_thread, options, report
from engines import contest, keep_stdout
from torch import Tensor, nn

from asrkit.compress.schemes import Scheme, make_mask
from asrkit.compress.sparsity import conv_groups, prunable_layers
from asrkit.compress.vision.networks import NetworkConfig, build_network, load_classifier
from asrkit.data.features import SUBSAMPLING
from asrkit.nn.encoders import Conformer, EncoderConfig
from asrkit.search.recogniser import load

RATIOS = (0.5, 0.8, 0.9)
CHUNK = 16  # frames of an encoder that names no size
HEARD = 1000.0  # frames before the chunk: more than are remembered
LEAST_CHANNELS = 8  # of a layer that is pruned: not the first one of images, nor depthwise ones

Network = tuple[str, dict[str, nn.Module], list[Tensor]]  # name, sparsity -> module, inputs


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--classifiers", nargs="+", type=Path, default=[], metavar="FOLDER", help="of images")
    parser.add_argument("--speech-models", nargs="+", type=Path, default=[], metavar="FOLDER")
    parser.add_argument("--scheme", type=Scheme.parse, default=Scheme("punched", (4, 1)), help="of random networks")
    parser.add_argument("--ratios", nargs="+", type=float, metavar="RATIO", help="of random networks")
    arguments = parser.parse_args()
    arguments.ratios = arguments.ratios or (RATIOS[-1:] if arguments.quick else RATIOS)
    keep_stdout()
    one_thread()
    torch.manual_seed(0)
    found = list(experiments(arguments)) or random_networks(arguments)
    rows = [row for network in found for row in contest(*network)]
    report("sparse_networks.py", rows, arguments)


def experiments(arguments: argparse.Namespace) -> Iterator[Network]:
    """Yield the networks of experiment directories."""
    for folder in arguments.classifiers:
        model = load_classifier(folder)
        yield str(folder), {"as trained": model.network}, [images(model.config)]
    for folder in arguments.speech_models:
        model = load(folder).model
        yield str(folder), {"as trained": EncoderChunk(model.encoder)}, chunk(model.encoder, model.config.num_mel_bins)


def random_networks(arguments: argparse.Namespace) -> Iterator[Network]:
    """Yield networks with random weights, dense and pruned."""
    for kind in ("resnet32",) if arguments.quick else ("vgg16", "resnet32", "mobilenet"):
        config = NetworkConfig(kind, channels=3, width=0.25 if arguments.quick else 1.0)
        yield kind, sparsities(with_statistics(build_network(config), config), arguments), [images(config)]
    shapes = [(144, 1, 576)] if arguments.quick else [(144, 4, 576), (256, 12, 1024)]
    for dim, layers, feedforward_dim in shapes:
        encoder = Conformer(
            EncoderConfig(dim=dim, layers=layers, feedforward_dim=feedforward_dim), num_mel_bins=80
        ).eval()
        name = f"conformer of {layers} x {dim}"
        yield name, sparsities(EncoderChunk(encoder), arguments), chunk(encoder, 80)


def with_statistics(network: nn.Module, config: NetworkConfig) -> nn.Module:
    """Give batch norms the statistics of noise: without any, signals die away, and all outputs are the last bias."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    network.train()(images(config, 8))
    return network.eval()


def sparsities(network: nn.Module, arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """Return a network as it is and pruned by each of the ratios."""
    pruned = {f"{arguments.scheme} {ratio:.0%}": prune(network, arguments.scheme, ratio) for ratio in arguments.ratios}
    return {"dense": network, **pruned}


def prune(network: nn.Module, scheme: Scheme, ratio: float) -> nn.Module:
    """Return a copy in which a part of the weights of each layer is zero."""
    network = copy.deepcopy(network)
    for layer in prunable_layers(network).values():
        if min(layer.weight.shape[:2]) >= LEAST_CHANNELS:
            layer.weight.data *= make_mask(layer.weight, scheme, ratio, conv_groups(layer))
    return network


class EncoderChunk(nn.Module):
    """One chunk of one stream through an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Map features (1, 4c, F) and the state to encoder_out (1, c, D) and the next state."""
        out, state = self.encoder.step(features, list(state))
        return out, *(part.contiguous() for part in state)


def images(config: NetworkConfig, n: int = 1) -> Tensor:
    return torch.randn(n, config.channels, config.size, config.size)


def chunk(encoder: nn.Module, bins: int) -> list[Tensor]:
    """Return features and a state in the middle of a stream, all float32, which every engine takes."""
    frames = SUBSAMPLING * (encoder.config.chunk_sizes[-1] or CHUNK)
    state = [torch.randn(part.shape) if part.is_floating_point() else part + HEARD for part in encoder.start(1)]
    return [4 * torch.randn(1, frames, bins) - 8, *state]


if __name__ == "__main__":
    main()
