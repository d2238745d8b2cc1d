"""What `asrkit compress`, `export` and `bench` work on: an image classifier, or the encoder of a recogniser."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from asrkit.cli.train import ExperimentConfig, loaders
from asrkit.cli.vision import VisionExperiment
from asrkit.cli.vision import loaders as image_loaders
from asrkit.compress.engines import smallest
from asrkit.compress.latency import Layer, layers_of
from asrkit.compress.sparsity import prunable_layers
from asrkit.compress.vision.networks import Classifier, load_classifier
from asrkit.config import read_config, read_yaml
from asrkit.errors import InputError
from asrkit.export.onnx import Chunk
from asrkit.export.programs import programs
from asrkit.models.transducer import Transducer
from asrkit.search.recogniser import load
from asrkit.text.tokenizer import load_tokenizer
from asrkit.training.loop import Loader

STREAMED = 16  # encoder frames in a chunk, where the model does not say


@dataclass(frozen=True)
class Subject:
    """A trained model and the network in it that is to become smaller and faster."""

    model: nn.Module
    """As the training loop wants it."""
    network: nn.Module
    """What is compiled; its layers are those of `model.get_submodule(part)`, under the same paths."""
    part: str
    inputs: tuple[Tensor, ...]
    """Examples of one image, or of one chunk and the state before it."""
    states: tuple[tuple[int, int], ...]
    """Inputs of `network` and the outputs that come back in their place."""
    config: VisionExperiment | ExperimentConfig
    folder: Path

    @property
    def layers(self) -> list[Layer]:
        """The layers that may be pruned, in the order in which they run."""
        paths = prunable_layers(self.model.get_submodule(self.part))
        return [layer for layer in layers_of(self.network, self.inputs) if layer.path in paths]

    @property
    def smallest(self) -> nn.Module:
        """`network` without filters of zeros, which only image classifiers can do without."""
        return smallest(self.network, self.inputs) if isinstance(self.config, VisionExperiment) else self.network

    def data(self, images_dir: Path | None, train: Path | None, valid: Path | None) -> tuple[Loader, Loader]:
        """Return training and validation data: images, or the speech of two manifests.

        Raises:
            InputError: the manifests of speech are not given, or data cannot be read.
        """
        if isinstance(self.config, VisionExperiment):
            return image_loaders(self.config.images, images_dir, self.config.training.seed)
        if train is None or valid is None:
            raise InputError(f"{self.folder}: a recogniser: its training needs --train and --valid")
        return loaders(self.config, load_tokenizer(self.folder / "lang"), train, valid)

    def accuracy(self, data: Loader, bf16: bool = False) -> Callable[[nn.Module], float]:
        """Return what measures a model on validation data: of images the part that is classified right, of speech the
        mean probability of a label."""
        return partial(_accuracy, data=data, by_label=isinstance(self.config, VisionExperiment), bf16=bf16)


@torch.inference_mode()
def _accuracy(model: nn.Module, data: Loader, by_label: bool, bf16: bool) -> float:
    model.eval()
    sums = Counter()
    for batch in data.epoch(0):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            losses = model(batch.to(model.device))
        sums.update({name: float(value) for name, value in losses.items()})
    return sums["accuracy"] / sums["weight"] if by_label else math.exp(-sums["loss"] / sums["weight"])


def load_subject(folder: Path) -> Subject:
    """Load the model of an experiment directory.

    Raises:
        InputError: a file is missing or damaged, or the model is of another kind.
    """
    sections = read_yaml(folder / "config.yaml")
    if "network" in sections:
        config = read_config(VisionExperiment, [folder / "config.yaml"])
        model: Classifier | Transducer = load_classifier(folder)
        size = model.config.size
        image = torch.rand(1, model.config.channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return Subject(model, model.network, "network", (image,), (), config, folder)
    if "features" in sections and "encoder" in (sections.get("model") or {}):
        config = read_config(ExperimentConfig, [folder / "config.yaml"])
        model = load(folder).model
        frames = max(model.config.encoder.chunk_sizes) or STREAMED
        encoder, *_ = programs(model, Chunk(frames, lookahead=0))
        return Subject(model, encoder.module, "", encoder.inputs, encoder.states, config, folder)
    raise InputError(f"{folder / 'config.yaml'}: neither an image classifier nor a recogniser")
