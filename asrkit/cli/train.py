"""`asrkit train`: train a model into an experiment directory.

Usage:
    asrkit train --conf conf/model/tiny.yaml conf/train.yaml --train data/mini/train.jsonl.gz \
        --valid data/mini/dev.jsonl.gz --lang data/lang --out exp/asr --training.epochs 3

On several processes or machines: `torchrun --nproc-per-node 2 -m asrkit.cli.main train …`. Called again after an
interruption, it goes on where it was.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lhotse import CutSet

from asrkit.cli.main import run
from asrkit.config import read_config, read_section, write_config
from asrkit.data.alignment import collect_frame_labels
from asrkit.data.augmentation import AugmentationConfig
from asrkit.data.batching import BatchingConfig, BatchLoader
from asrkit.data.features import FeatureConfig
from asrkit.data.manifests import load_cuts
from asrkit.data.memory import probe, worst_batches
from asrkit.errors import InputError
from asrkit.models.transducer import Transducer, TransducerConfig
from asrkit.text.tokenizer import Tokenizer, copy_tokenizer, load_tokenizer
from asrkit.training.config import TrainingConfig
from asrkit.training.distributed import own_device, rank_and_world
from asrkit.training.loop import train as run_training


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that `config.yaml` of an experiment holds, one section a room."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    model: TransducerConfig = field(default_factory=TransducerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def main(argv: list[str]) -> None:
    options, overrides = split_overrides(argv)

    def train(*, conf: list[Path], train: Path, valid: Path, lang: Path, out: Path) -> None:
        """Train a model, or go on where an interrupted training was.

        Every key of the configuration is an option too, for instance `--training.epochs 3`.

        Args:
            conf: YAML files; later ones win.
            train: manifest of the training data.
            valid: manifest of the validation data.
            lang: lang directory, copied into the experiment.
            out: experiment directory.
        """
        train_experiment(read_config(ExperimentConfig, conf, overrides), train, valid, lang, out)

    level = logging.INFO if rank_and_world()[0] == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run(train, options)


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Separate `--section.key value` from the other arguments.

    Raises:
        InputError: such an option has no value.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(word)
            continue
        if not equals and (value := next(words, None)) is None:
            raise InputError(f"{name}: expected a value")
        overrides[name.removeprefix("--")] = value
    return rest, overrides


def train_experiment(config: ExperimentConfig, train: Path, valid: Path, lang: Path, out: Path) -> None:
    """Make the experiment directory and train in it, in one process or in those of torchrun."""
    tokenizer = load_tokenizer(lang)
    train_data, valid_data = loaders(config, tokenizer, train, valid)
    sizes = {"vocab_size": tokenizer.vocab_size, "num_mel_bins": config.features.num_mel_bins}
    if train_data.frame_labels:
        sizes["frame_units"] = len(train_data.frame_labels.symbols)
    config = replace(config, model=replace(config.model, **sizes))
    if (out / "model.pt").exists():
        _refuse_another_model(config, tokenizer, out)
    if rank_and_world()[0] == 0:
        copy_tokenizer(lang, out / "lang")
        write_config(config, out / "config.yaml")
    torch.manual_seed(config.training.seed)
    model = Transducer(config.model).to(own_device())
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.training.bf16):
        probe(model, worst_batches(train_data))
    run_training(model, train_data, valid_data, config.training, out)


def loaders(
    config: ExperimentConfig, tokenizer: Tokenizer, train: Path, valid: Path
) -> tuple[BatchLoader, BatchLoader]:
    """Return the batches of a training and of a validation manifest, this process's part of them."""
    rank, world = rank_and_world()
    train_cuts, frame_labels = load_cuts(train), None
    if config.model.frame_weight:
        frame_labels = collect_frame_labels(train_cuts, config.model.frame_tier)

    def loader(cuts: CutSet | Path, augmentation: AugmentationConfig | None) -> BatchLoader:
        return BatchLoader(
            cuts,
            config.features,
            config.batching,
            tokenizer.encode,
            augmentation,
            frame_labels,
            seed=config.training.seed,
            rank=rank,
            world_size=world,
            shuffle=augmentation is not None,
        )

    return loader(train_cuts, config.augmentation), loader(valid, None)


def _refuse_another_model(config: ExperimentConfig, tokenizer: Tokenizer, out: Path) -> None:
    """Raise InputError unless what was trained in `out` has this model: its description must stay that of its weights.

    The training may change: it can be made longer, for instance.
    """
    for name, section in {"features": config.features, "model": config.model}.items():
        if read_section(out / "config.yaml", name, type(section)) != section:
            raise InputError(f"{out / 'config.yaml'}: begun with another '{name}' section; choose another --out")
    if load_tokenizer(out / "lang").symbols != tokenizer.symbols:
        raise InputError(f"{out / 'lang'}: begun with other tokens; choose another --out")
