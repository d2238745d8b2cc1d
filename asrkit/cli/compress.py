"""`asrkit compress`: make a trained network smaller and faster: an image classifier, or the encoder of a recogniser.

Usage:
    asrkit compress latency-table --out tables/avx512.jsonl
    asrkit compress map --model exp/dense --table tables/avx512.jsonl --speed-up 4 --out exp/mapping.yaml
    asrkit compress map --model exp/dense --scheme "punched 4x1" --out exp/punched.yaml
    asrkit compress prune --model exp/dense --mapping exp/mapping.yaml --conf conf/prune.yaml --pruning.ratio 0.9 \
        --out exp/pruned
    asrkit compress finetune --model exp/pruned --conf conf/finetune.yaml --out exp/finetuned
    asrkit compress report exp/dense exp/finetuned --out exp/report

Each experiment that comes out is one like that of `asrkit vision train` or `asrkit train`, with plain zeros in its
weights and `mapping.yaml` beside them. For a recogniser, whatever trains needs `--train` and `--valid`.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from asrkit.cli.main import command_line, run
from asrkit.cli.subject import Subject, load_subject
from asrkit.cli.train import split_overrides
from asrkit.cli.vision import VisionExperiment
from asrkit.compress.codegen import TARGETS, native_target
from asrkit.compress.latency import read_table
from asrkit.compress.mapping import (
    Mapping,
    MappingHeader,
    at_ratio,
    map_by_rule,
    map_to_scheme,
    read_mapping,
    write_mapping,
)
from asrkit.compress.mapping_search import SearchConfig, map_by_search
from asrkit.compress.measuring import measure_table
from asrkit.compress.pruning import PruningConfig, finetune_network, prune_network, quick_accuracy
from asrkit.compress.report import accuracy_pictures, figures, layers_picture, measure_networks
from asrkit.compress.schemes import Scheme
from asrkit.compress.shrink import silent_channels
from asrkit.compress.sparsity import add_masks
from asrkit.config import read_config, write_config
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.scoring.pictures import save_picture
from asrkit.scoring.provenance import git_version, machine
from asrkit.training.config import TrainingConfig
from asrkit.training.distributed import own_device, rank_and_world

HELP = "make networks smaller and faster: pruning schemes, mapped to layers, trained, compiled, measured"


@dataclass(frozen=True)
class PruneOptions:
    """What `conf` of `prune` may hold; `training` is that with the penalty."""

    pruning: PruningConfig = field(default_factory=PruningConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class FinetuneOptions:
    """What `conf` of `finetune` may hold."""

    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class SearchOptions:
    """What `conf` of `map` may hold: the search, and the moment of training after each quick pruning."""

    search: SearchConfig = field(default_factory=SearchConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


Overrides = dict[str, str]


def main(argv: list[str]) -> None:
    options, overrides = split_overrides(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    commands = {
        "map": mapper(overrides),
        "prune": pruner(overrides),
        "finetune": finetuner(overrides),
        "latency-table": latency_table,
        "report": report,
        "_help": HELP,
    }
    run(commands, options)


def mapper(overrides: Overrides) -> Callable[..., None]:
    def map(
        *,
        model: Path,
        out: Path,
        table: Path | None = None,
        milliseconds: float | None = None,
        speed_up: float | None = None,
        scheme: str | None = None,
        search: bool = False,
        conf: list[Path] = (),  # type: ignore[assignment]
        images_dir: Path | None = None,
        train: Path | None = None,
        valid: Path | None = None,
    ) -> None:
        """Choose a pruning scheme and a block size for each layer, by rule, by search, or one for all.

        Args:
            model: experiment directory of the trained network.
            out: mapping file to write; one can edit it.
            table: latency table of the target; not needed for --scheme.
            milliseconds: latency to reach.
            speed_up: the same as a factor of the dense network's, as predicted.
            scheme: this one for every layer that can take it, as "punched 4x1" or "pattern".
            search: by policy gradient, each mapping tried by quick pruning, instead of by rule.
            conf: YAML files with options of the search.
            images_dir: folder of the images; else $ASRKIT_IMAGES.
            train: manifest of the training speech.
            valid: manifest of the validation speech.
        """
        subject = load_subject(model)
        if scheme is not None:
            return write_mapping(map_to_scheme(subject.layers, Scheme.parse(scheme)), out, MappingHeader(str(model)))
        if table is None or (milliseconds is None) == (speed_up is None):
            raise InputError("map: give --scheme, or --table with one of --milliseconds and --speed-up")
        if (milliseconds or speed_up or 0) <= 0:
            raise InputError("map: --milliseconds and --speed-up must be above 0")
        latencies = read_table(table)
        seconds = milliseconds / 1e3 if milliseconds else latencies.predict(subject.layers, {}) / speed_up
        if search:
            found, ratio, trials = _search(subject, latencies, seconds, (images_dir, train, valid), conf, overrides)
            with atomic_write(out.with_suffix(".trials.json")) as file:
                json.dump(
                    [{name: getattr(t, name) for name in ("accuracy", "seconds", "reward")} for t in trials], file
                )
        else:
            found, ratio = map_by_rule(subject.layers, latencies, seconds)
        predicted = latencies.predict(subject.layers, at_ratio(found, ratio))
        write_mapping(found, out, MappingHeader(str(model), latencies.target, predicted, ratio))
        print(f"{out}: {1e3 * predicted:.3f} ms predicted at a ratio of {ratio:.3f}")

    return map


def pruner(overrides: Overrides) -> Callable[..., None]:
    def prune(
        *,
        model: Path,
        mapping: Path,
        out: Path,
        conf: list[Path] = (),  # type: ignore[assignment]
        images_dir: Path | None = None,
        train: Path | None = None,
        valid: Path | None = None,
    ) -> None:
        """Train a network to sparsity, and set to zero what that has made small.

        Every key of the configuration is an option too, for instance `--pruning.ratio 0.9`.

        Args:
            model: experiment directory of the trained network.
            mapping: file with the scheme of each layer.
            out: experiment directory to write.
            conf: YAML files with the sections pruning and training; later ones win.
            images_dir: folder of the images; else $ASRKIT_IMAGES.
            train: manifest of the training speech.
            valid: manifest of the validation speech.
        """
        config, subject = read_config(PruneOptions, conf, overrides), load_subject(model)
        weights = {layer.path: layer.weights for layer in subject.layers}
        schemes = read_mapping(mapping, weights)
        subject.model.to(own_device())
        data, _ = subject.data(images_dir, train, valid)
        _copy_description(subject, out)
        write_config(config, out / "pruning.yaml")
        reached = prune_network(subject.model, data, schemes, config.pruning, config.training, out, subject.part)
        removed = sum(entry.ratio * weights[path] for path, entry in reached.items())
        print(f"{out}: {100 * removed / sum(weights.values()):.1f}% of the weights are zero")

    return prune


def finetuner(overrides: Overrides) -> Callable[..., None]:
    def finetune(
        *,
        model: Path,
        out: Path,
        conf: list[Path] = (),  # type: ignore[assignment]
        images_dir: Path | None = None,
        train: Path | None = None,
        valid: Path | None = None,
    ) -> None:
        """Train a pruned network, whose zeros stay zero.

        Args:
            model: experiment directory of the pruned network.
            out: experiment directory to write.
            conf: YAML files with the section training; later ones win.
            images_dir: folder of the images; else $ASRKIT_IMAGES.
            train: manifest of the training speech.
            valid: manifest of the validation speech.
        """
        config, subject = read_config(FinetuneOptions, conf, overrides), load_subject(model)
        subject.model.to(own_device())
        ours, theirs = out / "mapping.yaml", model / "mapping.yaml"
        if ours.exists() and theirs.exists() and ours.read_text() != theirs.read_text():
            raise InputError(f"{ours}: begun with another mapping; choose another --out")
        _copy_description(subject, out)
        if theirs.exists() and rank_and_world()[0] == 0:
            shutil.copy(theirs, ours)
        if isinstance(subject.config, VisionExperiment):  # where filters went, so do what their batch norms give
            add_masks(subject.network, silent_channels(subject.network, subject.inputs))
        finetune_network(subject.model, *subject.data(images_dir, train, valid), config.training, out)

    return finetune


def latency_table(*, out: Path, target: Literal["avx512", "avx2", "neon", "portable"] | None = None) -> None:
    """Measure how long layers take here, pruned in each way; called again, it goes on where it was.

    Args:
        out: file to write.
        target: kind of processor to compile for, which has to be this machine's; its best by default.
    """
    table = measure_table(out, TARGETS[target] if target else native_target())
    print(f"{out}: {len(table.measured)} layers")


def report(models: list[Path], *, out: Path) -> None:
    """Compile networks and measure them side by side: `compress.json` in each, and pictures.

    Args:
        models: experiment directories, the dense one first; what is in their score.json goes into the picture.
        out: folder of trade_off.png, layers.png, which shows the second one, and block_sizes.png if several have the
            same scheme in all layers.
    """
    subjects = [load_subject(model) for model in models]
    measured, engines = measure_networks([(subject.smallest, subject.inputs, subject.states) for subject in subjects])
    provenance = {"command": command_line(), "git": git_version(Path(__file__).parent), "machine": machine()}
    reports = []
    for folder, subject, found in zip(models, subjects, measured, strict=True):
        mapping = read_mapping(folder / "mapping.yaml") if (folder / "mapping.yaml").exists() else {}
        reports.append(figures(subject.network, subject.inputs, found, measured[0], engines, mapping))
        with atomic_write(folder / "compress.json") as file:
            json.dump(reports[-1] | provenance, file, indent=1)
        print(
            f"{folder}: {reports[-1]['milliseconds']:.3f} ms, {reports[-1]['over_best_engine']:.2f} times as fast "
            "as the dense network in the best engine"
        )
    scores = [_score(folder) for folder in models]
    if all(score is not None for score in scores):
        for name, picture in accuracy_pictures([folder.name for folder in models], scores, reports).items():
            save_picture(picture, out / f"{name}.png")
    save_picture(layers_picture(reports[0], reports[min(1, len(reports) - 1)]), out / "layers.png")


def _score(folder: Path) -> tuple[str, float] | None:
    """Return what was measured of an experiment, by its name, or None."""
    for file in (folder / "score.json", *sorted(folder.glob("*/score.json"))):
        if file.exists():
            score = json.loads(file.read_text())
            return next(((name, score[name]) for name in ("accuracy", "wer") if name in score), None)
    return None


def _copy_description(subject: Subject, out: Path) -> None:
    """Write what an experiment directory holds beside its weights."""
    if rank_and_world()[0] == 0:
        write_config(subject.config, out / "config.yaml")
        if (subject.folder / "lang").is_dir():
            shutil.copytree(subject.folder / "lang", out / "lang", dirs_exist_ok=True)


def _search(subject: Subject, table, seconds: float, places: tuple, conf: list[Path], overrides: dict[str, str]):
    """Search for a mapping; accuracy is that of a copy pruned at once and trained for a moment."""
    config = read_config(SearchOptions, conf, overrides)
    train_data, valid_data = subject.data(*places)

    def proxy(mapping: Mapping) -> float:
        measure = subject.accuracy(valid_data, config.training.bf16)
        return quick_accuracy(subject.model, train_data, measure, mapping, config.training, subject.part)

    return map_by_search(subject.layers, table, seconds, proxy, config.search)
