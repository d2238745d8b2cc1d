"""`asrkit speaker`: train speaker embeddings, and measure anyone's.

Usage:
    asrkit data prepare librispeech_speakers data/speakers
    asrkit speaker train --conf conf/train.yaml --train data/speakers/train.jsonl.gz \
        --valid data/speakers/dev.jsonl.gz --out exp/speaker --training.epochs 30
    asrkit speaker plda --model exp/speaker --cuts data/speakers/train.jsonl.gz --out exp/speaker/plda.npz
    asrkit speaker verify --model exp/speaker --plda exp/speaker/plda.npz --cuts data/speakers/test.jsonl.gz \
        --out exp/speaker/test

Where a model is asked for, it may be an experiment directory, an ONNX file, or the word resemblyzer.
"""

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
import torch

from asrkit.cli.main import command_line, run
from asrkit.cli.train import split_overrides
from asrkit.config import read_config, read_section, write_config
from asrkit.data.augmentation import AugmentationConfig, Augmenter
from asrkit.data.features import Fbank, FeatureConfig
from asrkit.data.manifests import load_cuts
from asrkit.data.speakers import SpeakerBatchingConfig, SpeakerLoader, by_speaker, random_part
from asrkit.diarisation.embedding import Embedder, OnnxEmbedder, ResemblyzerEmbedder
from asrkit.diarisation.plda import Plda, fit_plda, load_plda, speaker_evidence
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.models.speaker import SpeakerConfig, SpeakerNetwork
from asrkit.models.speaker import load_embedder as load_own
from asrkit.progress import progress
from asrkit.scoring.verification import equal_error_rate, minimum_cost
from asrkit.training.config import TrainingConfig
from asrkit.training.distributed import own_device, rank_and_world
from asrkit.training.loop import train as run_training

AROUND = 0.5  # seconds of the same speaker on either side of a window
MEETING = AugmentationConfig(speed=0.0, noise=1.0, snr=(10.0, 20.0), reverberation=1.0, warp=0.0)


@dataclass(frozen=True)
class SpeakerExperiment:
    """Everything that `config.yaml` of a speaker embedder holds."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    augmentation: AugmentationConfig = MEETING
    batching: SpeakerBatchingConfig = field(default_factory=SpeakerBatchingConfig)
    model: SpeakerConfig = field(default_factory=SpeakerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class WindowConfig:
    """The windows of speech that PLDA is trained on, or that are compared."""

    seconds: float = 1.6
    number: int = 20
    """Windows of each speaker."""
    clean: bool = False
    """Leave out room and noise."""
    rooms: str = ""
    """Folder of audio files, or manifest, of room responses; without it noise that decays exponentially."""
    noises: str = ""
    """The same of noises; without it white, pink, brown and babble-like noise."""
    snr: tuple[float, float] = MEETING.snr
    """Lowest and highest signal-to-noise ratio in dB."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seconds < 0.1 or self.number < 2:
            raise ValueError("seconds must be at least 0.1, number at least 2")


def main(argv: list[str]) -> None:
    options, overrides = split_overrides(argv) if argv[:1] == ["train"] else (argv, {})

    def train(*, conf: list[Path] = (), train: list[Path], valid: Path, out: Path) -> None:  # type: ignore[assignment]
        """Train an embedder into an experiment directory, or go on where an interrupted training was.

        Every key of the configuration is an option too, for instance `--model.dim 192`.

        Args:
            conf: YAML files; later ones win.
            train: manifests of the training speakers.
            valid: manifest of other speakers, to choose the best model by.
            out: experiment directory.
        """
        train_embedder(read_config(SpeakerExperiment, conf, overrides), train, valid, out)

    level = logging.INFO if rank_and_world()[0] == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run({"train": train, "plda": plda, "verify": verify, "_help": "train and measure speaker embeddings"}, options)


def train_embedder(config: SpeakerExperiment, train: list[Path], valid: Path, out: Path) -> None:
    """Train a speaker embedder, in one process or in those of torchrun."""
    rank, world = rank_and_world()
    place = {"seed": config.training.seed, "rank": rank, "world_size": world}
    cuts = list(chain.from_iterable(map(load_cuts, train)))
    train_data = SpeakerLoader(cuts, config.features, config.batching, config.augmentation, **place)
    valid_data = SpeakerLoader(load_cuts(valid), config.features, config.batching, **place)
    sizes = {"num_mel_bins": config.features.num_mel_bins, "speakers": train_data.speakers}
    config = replace(config, model=replace(config.model, **sizes))
    if (out / "model.pt").exists():
        for name, section in {"features": config.features, "model": config.model}.items():
            if read_section(out / "config.yaml", name, type(section)) != section:
                raise InputError(f"{out / 'config.yaml'}: begun with another '{name}' section; choose another --out")
    if rank == 0:
        write_config(config, out / "config.yaml")
    torch.manual_seed(config.training.seed)
    run_training(SpeakerNetwork(config.model).to(own_device()), train_data, valid_data, config.training, out)


def plda(
    *,
    model: str,
    cuts: list[Path],
    out: Path,
    dim: int = 64,
    windows: WindowConfig = WindowConfig(),  # noqa: B008
) -> None:
    """Fit PLDA to the embeddings of windows of many speakers, heard in random rooms and noises.

    Args:
        model: experiment directory, ONNX file, or the word resemblyzer.
        cuts: manifests of the speakers.
        out: file to write, such as plda.npz.
        dim: most dimensions of the space of the PLDA.
        windows: the windows.
    """
    fitted = fit_plda(*embed_windows(load_embedder(model), cuts, windows), dim)
    fitted.save(out)
    print(f"{out}: {len(fitted.between)} dimensions")


def verify(
    *,
    model: str,
    cuts: list[Path],
    out: Path,
    plda: Path | None = None,
    windows: WindowConfig = WindowConfig(),  # noqa: B008
) -> None:
    """Measure how well all pairs of windows of held-out speakers are told apart.

    Prints the equal error rate and the least detection cost (prior 0.05) of cosines and, where given, of PLDA, and
    writes them to `out/score.json`.

    Args:
        model: experiment directory, ONNX file, or the word resemblyzer.
        cuts: manifests of the speakers.
        out: folder of score.json.
        plda: file of `asrkit speaker plda`.
        windows: the windows.
    """
    embeddings, speakers = embed_windows(load_embedder(model), cuts, windows)
    pairs = np.triu_indices(len(speakers), k=1)
    same = (speakers[:, None] == speakers)[pairs]
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = {"cosine": (unit @ unit.T)[pairs]}
    if plda:
        scores["plda"] = plda_scores(load_plda(plda), embeddings)[pairs]
    report = {
        name: {"eer": 100 * equal_error_rate(s, same), "cost": minimum_cost(s, same)} for name, s in scores.items()
    }
    for name, figures in report.items():
        print(f"{name}: equal error rate {figures['eer']:.2f}%, detection cost {figures['cost']:.3f}")
    counts = {"speakers": len(set(speakers)), "same": int(same.sum()), "different": int((~same).sum())}
    with atomic_write(out / "score.json") as file:
        json.dump({**report, **counts, "windows": asdict(windows), "command": command_line()}, file, indent=1)


def load_embedder(model: str) -> Embedder:
    """Load the embedder of an experiment directory, of an ONNX file, or resemblyzer's.

    Raises:
        InputError: it is not there, damaged, or needs a package that is not installed.
    """
    if model == "resemblyzer":
        return ResemblyzerEmbedder()
    if model.endswith(".onnx"):
        fbank = Fbank(FeatureConfig())
        return OnnxEmbedder(model, lambda samples: fbank(torch.from_numpy(samples)).numpy())
    return load_own(model)


# Details


def embed_windows(embedder: Embedder, manifests: list[Path], windows: WindowConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (N, D) of random windows of the speakers of manifests, and the speakers' names (N,)."""
    distortion = replace(MEETING, rooms=windows.rooms, noises=windows.noises, snr=windows.snr)
    if windows.clean:
        distortion = replace(distortion, noise=0.0, reverberation=0.0)
    rate = embedder.sampling_rate
    augmenter = Augmenter(distortion, FeatureConfig(sampling_rate=rate))
    embeddings, names = [], []
    for speaker, cuts in progress(by_speaker(chain.from_iterable(map(load_cuts, manifests))).items(), "embed windows"):
        rng = Random(f"{windows.seed} {speaker}")
        for _ in range(windows.number):
            _, samples = random_part(cuts, windows.seconds + 2 * AROUND, rate, rng)
            samples = augmenter.distort(samples, rng).numpy()
            start = max(0.0, (len(samples) / rate - windows.seconds) / 2)
            embeddings.append(embedder(samples, np.array([start]), np.array([start + windows.seconds])))
            names.append(speaker)
    return np.concatenate(embeddings), np.array(names)


def plda_scores(plda: Plda, embeddings: np.ndarray) -> np.ndarray:
    """Return (N, N) log likelihood ratios that two embeddings (N, D) are of one speaker."""
    projected = plda.project(embeddings)
    alone = speaker_evidence(np.ones(len(projected)), projected, plda.between)
    together = [speaker_evidence(np.full(len(projected), 2.0), one + projected, plda.between) for one in projected]
    return np.stack(together) - alone[:, None] - alone
