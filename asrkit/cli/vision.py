"""`asrkit vision`: train and measure image classifiers, to be compressed.

Usage:
    asrkit vision train --images digits --out exp/dense --network.kind vgg16 --network.width 0.25 --training.epochs 10
    asrkit vision test --model exp/dense

Digits are those of scikit-learn; for `--images mnist` and `--images cifar10`, --images-dir or $ASRKIT_IMAGES says
where they are. An image counts as one second of what the options of training call hours.
"""

import json
import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from asrkit.cli.main import command_line, run
from asrkit.cli.train import split_overrides
from asrkit.compress.vision.images import ImageConfig, ImageLoader, Images, read_images
from asrkit.compress.vision.networks import Classifier, NetworkConfig, count_right, load_classifier
from asrkit.config import read_config, read_section, write_config
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.scoring.provenance import git_version, machine
from asrkit.training.config import TrainingConfig
from asrkit.training.distributed import own_device, rank_and_world
from asrkit.training.loop import train as run_training

NORMAL_95 = 1.959964  # quantile of the normal distribution for an interval of 95%


@dataclass(frozen=True)
class VisionExperiment:
    """Everything that `config.yaml` of an image classifier holds."""

    images: ImageConfig = field(default_factory=ImageConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def main(argv: list[str]) -> None:
    options, overrides = split_overrides(argv)

    def train(
        *, out: Path, conf: list[Path] | None = None, images: str | None = None, images_dir: Path | None = None
    ) -> None:
        """Train a classifier, or go on where an interrupted training was.

        Every key of the configuration is an option too, for instance `--network.kind resnet32`.

        Args:
            out: experiment directory.
            conf: YAML files; later ones win.
            images: digits, mnist or cifar10.
            images_dir: folder of the images; else $ASRKIT_IMAGES.
        """
        named = {"images.name": images} if images else {}
        train_classifier(read_config(VisionExperiment, conf or [], named | overrides), images_dir, out)

    level = logging.INFO if rank_and_world()[0] == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run({"train": train, "test": test, "_help": "train and measure image classifiers, to be compressed"}, options)


def train_classifier(config: VisionExperiment, images_dir: Path | None, out: Path) -> None:
    """Train an image classifier, in one process or in those of torchrun."""
    train_data, valid_data = loaders(config.images, images_dir, config.training.seed)
    config = replace(config, network=replace(config.network, **sizes_of(train_data.images)))
    if (out / "model.pt").exists() and read_section(out / "config.yaml", "network", NetworkConfig) != config.network:
        raise InputError(f"{out / 'config.yaml'}: begun with another 'network' section; choose another --out")
    if rank_and_world()[0] == 0:
        write_config(config, out / "config.yaml")
    torch.manual_seed(config.training.seed)
    run_training(Classifier(config.network).to(own_device()), train_data, valid_data, config.training, out)


def test(*, model: Path, images_dir: Path | None = None) -> None:
    """Measure the accuracy of a classifier on the test images, into `score.json` of its experiment directory.

    Args:
        model: experiment directory.
        images_dir: folder of the images; else $ASRKIT_IMAGES.
    """
    config = read_section(model / "config.yaml", "images", ImageConfig)
    data = ImageLoader(read_images(config, "test", images_dir), config)
    right, total = count_right(load_classifier(model).to(own_device()), data)
    low, high = interval(right, total)
    percent = 100 * right / total
    print(f"accuracy {percent:.2f}% (95% interval {low:.2f} to {high:.2f}, {total} images)")
    report = {"images": config.name, "right": right, "total": total, "accuracy": percent, "interval": [low, high]}
    provenance = {"command": command_line(), "git": git_version(Path(__file__).parent), "machine": machine()}
    with atomic_write(model / "score.json") as file:
        json.dump(report | provenance, file, indent=1)


def loaders(config: ImageConfig, images_dir: Path | None, seed: int) -> tuple[ImageLoader, ImageLoader]:
    """Return the training and the validation images, this process's part of them."""
    rank, world = rank_and_world()
    place = {"seed": seed, "rank": rank, "world_size": world}
    train, valid = (read_images(config, split, images_dir) for split in ("train", "valid"))
    return ImageLoader(train, config, training=True, **place), ImageLoader(valid, config, **place)


# Details


def sizes_of(data: Images) -> dict[str, int]:
    """Return what the network has to know of its images."""
    return {"channels": data.images.shape[1], "classes": int(data.labels.max()) + 1, "size": data.images.shape[-1]}


def interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95% interval of right / total in percent (Wilson, "Probable inference", JASA 1927)."""
    share, spread = right / total, NORMAL_95**2 / total
    centre = share + spread / 2
    around = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return 100 * (centre - around) / (1 + spread), 100 * (centre + around) / (1 + spread)
