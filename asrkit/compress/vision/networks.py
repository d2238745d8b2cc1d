"""Image classifiers in the forms that are usual for images of 32 x 32: VGG-16, ResNet-32, a MobileNet.

Sources: Simonyan and Zisserman, "Very deep convolutional networks", 1409.1556, with batch norm and one linear layer;
He et al., "Deep residual learning", 1512.03385, section 4.2; Howard et al., "MobileNets", 1704.04861.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from asrkit.compress.vision.images import ImageBatch, ImageLoader
from asrkit.config import read_section
from asrkit.errors import InputError
from asrkit.models.checkpoint import load_weights

POOL = 0  # in VGG, a pooling instead of a convolution
VGG16 = (64, 64, POOL, 128, 128, POOL, *3 * (256,), POOL, *3 * (512,), POOL, *3 * (512,), POOL)
RESNET_STAGES, RESNET_BLOCKS = (16, 32, 64), 5
MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *4 * ((512, 1),))  # outputs, stride
MOBILENET_FIRST = 32
CHANNEL_STEP = 8  # widths are multiples of it, as vector units like them


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a classifier."""

    kind: Literal["vgg16", "resnet32", "mobilenet"] = "vgg16"
    width: float = 1.0
    """Factor of all channels, which are then rounded to multiples of 8."""
    channels: int = 1
    """Channels of an image C: 1 grey, 3 colour."""
    classes: int = 10
    size: int = 32
    """Height and width of an image."""

    def __post_init__(self) -> None:
        if min(self.channels, self.classes, self.size) < 1 or self.width <= 0:
            raise ValueError("width, channels, classes and size must be above 0")


class Classifier(nn.Module):
    """A network with the loss that trains it. `network`, (N, C, H, W) to (N, classes), is what is compressed."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.network = build_network(config)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: ImageBatch, hours: float = math.inf) -> dict[str, Tensor]:
        """Return the cross entropy of a batch and how many images are classified right, sums, and their number."""
        logits = self.logits(batch.images)
        loss = nn.functional.cross_entropy(logits.float(), batch.labels, reduction="sum")
        right = (logits.argmax(dim=1) == batch.labels).sum()
        return {"loss": loss, "accuracy": right, "weight": torch.tensor(len(batch.labels))}

    def logits(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W), from -1 to 1, to (N, classes)."""
        return self.network(images)


def build_network(config: NetworkConfig) -> nn.Sequential:
    """Return the bare network, (N, C, H, W) to (N, classes), with new weights."""
    network = {"vgg16": _vgg16, "resnet32": _resnet32, "mobilenet": _mobilenet}[config.kind](config)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def load_classifier(folder: Path | str) -> Classifier:
    """Load the classifier of an experiment directory, in evaluation mode.

    Raises:
        InputError: a file is missing, damaged or does not belong to this model; names it.
    """
    folder = Path(folder)
    model = Classifier(read_section(folder / "config.yaml", "network", NetworkConfig))
    load_weights(model, folder / "model.pt")
    return model.eval()


@torch.inference_mode()
def count_right(model: Classifier, data: ImageLoader) -> tuple[int, int]:
    """Return how many images of `data` the model, put into evaluation mode, classifies right, and their number.

    Raises:
        InputError: there are no images.
    """
    model.eval()
    right = total = 0
    for batch in data.epoch(0):
        batch = batch.to(model.device)
        right += int((model.logits(batch.images).argmax(dim=1) == batch.labels).sum())
        total += len(batch.labels)
    if not total:
        raise InputError("no images to classify")
    return right, total


def accuracy(model: Classifier, data: ImageLoader) -> float:
    """Return the fraction of images that are classified right."""
    right, total = count_right(model, data)
    return right / total


# Details


def _vgg16(config: NetworkConfig) -> nn.Sequential:
    """Thirteen convolutions and a linear layer; poolings that would leave nothing of a small image are left out."""
    layers: list[nn.Module] = []
    channels, size = config.channels, config.size
    for outputs in VGG16:
        if outputs != POOL:
            layers += _convolution(channels, channels := _width(config, outputs), 3)
        elif size > 1:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size**2, config.classes))


def _resnet32(config: NetworkConfig) -> nn.Sequential:
    """Fifteen residual blocks of two convolutions; where the shape changes, the shortcut is a 1x1 convolution."""
    channels = _width(config, RESNET_STAGES[0])
    layers = _convolution(config.channels, channels, 3)
    for stage, outputs in enumerate(RESNET_STAGES):
        for block in range(RESNET_BLOCKS):
            stride = 2 if stage and not block else 1
            layers.append(ResidualBlock(channels, channels := _width(config, outputs), stride))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, config.classes))


def _mobilenet(config: NetworkConfig) -> nn.Sequential:
    """Pairs of a depthwise 3x3 and a 1x1 convolution, at full resolution first, as images are small."""
    channels = _width(config, MOBILENET_FIRST)
    layers = _convolution(config.channels, channels, 3)
    for outputs, stride in MOBILENET:
        layers += _convolution(channels, channels, 3, stride, groups=channels)
        layers += _convolution(channels, channels := _width(config, outputs), 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, config.classes))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_convolution(channels, outputs, 3, stride))
        self.second = nn.Sequential(*_convolution(outputs, outputs, 3)[:-1])
        same = channels == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(channels, outputs, 1, stride)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, outputs, H / stride, W / stride)."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def _convolution(channels: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution, its batch norm and its ReLU."""
    convolution = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _width(config: NetworkConfig, channels: int) -> int:
    return max(CHANNEL_STEP, round(config.width * channels / CHANNEL_STEP) * CHANNEL_STEP)
