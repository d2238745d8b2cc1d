"""Batches of padded features and tokens, the same for any number of workers, sharded over processes."""

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from asrkit.data.alignment import UNLABELLED, FrameLabels
from asrkit.data.audio import read_cut
from asrkit.data.augmentation import AugmentationConfig, Augmenter
from asrkit.data.features import FRAME_SHIFT, SILENCE, SUBSAMPLING, Fbank, FeatureConfig, num_frames, pad_features
from asrkit.data.manifests import load_cuts
from asrkit.errors import InputError

# Shapes are rounded up to few different ones: kernels are compiled for a shape (by oneDNN on the CPU, which would take
# a quarter of each step; by cuDNN's search on a GPU) and found again when it comes back.
FRAME_STEP, LABEL_STEP = 32, 4
LENGTH_JITTER = 0.1  # batches mix cuts whose durations differ by up to this part, so that neighbours change each epoch


@dataclass(frozen=True)
class BatchingConfig:
    """How utterances are put together for training."""

    max_duration: float = 120.0
    """Seconds of audio in a batch, padding included."""
    min_length: float = 0.1
    """Shorter cuts (seconds) are left out."""
    max_length: float = 30.0
    """Longer cuts (seconds) are left out."""
    workers: int = 1
    """Processes that read audio and compute features (0: the training process does)."""

    def __post_init__(self) -> None:
        if self.max_duration < self.max_length:
            raise ValueError(f"max_duration {self.max_duration} is below max_length {self.max_length}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, but is {self.workers}")


@dataclass(frozen=True)
class Batch:
    """N utterances. Features (N, T, D) are padded with silence, tokens (N, U) with 0; lengths are (N,).

    `frame_labels` (N, T / 4 rounded up), where the loader was asked for them, are padded with UNLABELLED.
    """

    features: Tensor
    feature_lens: Tensor
    tokens: Tensor
    token_lens: Tensor
    cuts: CutSet
    frame_labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.cuts)

    @property
    def hours(self) -> float:
        """Hours of audio in the cuts, without padding and before speed perturbation."""
        return sum(cut.duration for cut in self.cuts) / 3600

    def to(self, device: torch.device | str) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


class BatchLoader:
    """Makes the batches of an epoch from the manifest `cuts` (a CutSet or its file).

    `encode` turns a transcript into labels; `frame_labels`, where given, labels the encoder frames. Augmentation
    depends on `seed`, the epoch and the cut alone. Process `rank` of `world_size` gets batches rank, rank + world_size,
    … of the epoch's list, and all get equally many.

    Raises:
        InputError: the manifest is empty or nothing of it passes the length filter, a cut's id is there twice, a cut
            ends after its recording, a transcript has an unknown symbol; while iterating: audio cannot be read.
    """

    def __init__(
        self,
        cuts: CutSet | Path | str,
        features: FeatureConfig,
        batching: BatchingConfig,
        encode: Callable[[str], list[int]],
        augmentation: AugmentationConfig | None = None,
        frame_labels: FrameLabels | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ):
        cuts = cuts if isinstance(cuts, CutSet) else load_cuts(cuts)
        change = augmentation.speed if augmentation else 0.0
        self.slowest = 1 - change
        self.cuts, self.tokens = _select(cuts, batching, encode, fastest=1 + change)
        if len(self.cuts) < world_size:
            raise InputError(f"{len(self.cuts)} cuts are too few for {world_size} processes")
        self.features = features
        self._batching, self._seed, self._shuffle = batching, seed, shuffle
        self._rank, self._world_size = rank, world_size
        self.frame_labels = frame_labels
        self._data = _CutData(self.cuts, features, augmentation, seed)

    @property
    def hours(self) -> float:
        """Hours of audio in an epoch, all processes together."""
        return sum(cut.duration for cut in self.cuts) / 3600

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """Yield this process's batches of an epoch but for the first `skip`, whose audio is not read."""
        batches = self.plan(number)[self._rank :: self._world_size][skip:]
        workers = min(self._batching.workers, len(batches))
        loader = DataLoader(
            self._data,
            sampler=[(number, indices) for indices in batches],
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator(),  # so that it draws no seed from the global one
        )
        for indices, prepared in zip(batches, loader, strict=True):
            if isinstance(prepared, InputError):
                raise prepared
            features, speeds = prepared
            yield self.assemble(indices, *features, speeds)

    def plan(self, number: int) -> list[list[int]]:
        """Return the batches of an epoch, of all processes, as indices into `self.cuts`."""
        rng = random.Random(f"{self._seed} {number}")
        step = FRAME_STEP * FRAME_SHIFT
        lengths = [math.ceil(cut.duration / step) * step for cut in self.cuts]  # as they will be padded
        keys = [cut.duration * (rng.uniform(1, 1 + LENGTH_JITTER) if self._shuffle else 1) for cut in self.cuts]
        batches: list[list[int]] = []
        longest = 0.0
        for index in sorted(range(len(lengths)), key=keys.__getitem__):
            longest = max(longest, lengths[index])
            if not batches or longest * (len(batches[-1]) + 1) > self._batching.max_duration:
                batches.append([])
                longest = lengths[index]
            batches[-1].append(index)
        if self._shuffle:
            rng.shuffle(batches)
        return even_out(batches, self._world_size)

    def assemble(self, indices: list[int], features: Tensor, feature_lens: Tensor, speeds: tuple[float, ...]) -> Batch:
        """Return the batch of the cuts with these indices, given their features (N, T, D) and speed perturbations."""
        tokens = [torch.tensor(self.tokens[index], dtype=torch.int64) for index in indices]
        padded = pad_sequence(tokens, batch_first=True)
        return Batch(
            features=torch.nn.functional.pad(features, (0, 0, 0, -features.shape[1] % FRAME_STEP), value=SILENCE),
            feature_lens=feature_lens,
            tokens=torch.nn.functional.pad(padded, (0, -padded.shape[1] % LABEL_STEP)),
            token_lens=torch.tensor([len(utterance) for utterance in tokens]),
            cuts=CutSet.from_cuts(self.cuts[index] for index in indices),
            frame_labels=self._label_frames(indices, feature_lens.tolist(), speeds) if self.frame_labels else None,
        )

    def _label_frames(self, indices: list[int], feature_lens: list[int], speeds: tuple[float, ...]) -> Tensor:
        labels = [
            self.frame_labels(self.cuts[index], -(-length // SUBSAMPLING), speed)
            for index, length, speed in zip(indices, feature_lens, speeds, strict=True)
        ]
        labels = pad_sequence(labels, batch_first=True, padding_value=UNLABELLED)
        missing = -labels.shape[1] % (FRAME_STEP // SUBSAMPLING)
        return torch.nn.functional.pad(labels, (0, missing), value=UNLABELLED)


class _CutData(Dataset):
    """Audio to features, in a worker. A user's mistake is returned, as a worker's exceptions lose their one line."""

    def __init__(self, cuts: list[Cut], features: FeatureConfig, augmentation: AugmentationConfig | None, seed: int):
        self._cuts, self._sampling_rate, self._seed = cuts, features.sampling_rate, seed
        self._fbank = Fbank(features)
        self._augmenter = Augmenter(augmentation, features) if augmentation else None

    def __getitem__(self, key: tuple[int, list[int]]) -> tuple[tuple[Tensor, Tensor], tuple[float, ...]] | InputError:
        epoch, indices = key
        try:
            features, speeds = zip(*(self._features(epoch, self._cuts[index]) for index in indices), strict=True)
        except InputError as error:
            return error
        return pad_features(features), speeds

    def _features(self, epoch: int, cut: Cut) -> tuple[Tensor, float]:
        samples = read_cut(cut, self._sampling_rate)
        if self._augmenter is None:
            return self._fbank(samples), 1.0
        return self._augmenter(samples, random.Random(f"{self._seed} {epoch} {cut.id}"))


def _select(
    cuts: CutSet, batching: BatchingConfig, encode: Callable[[str], list[int]], fastest: float
) -> tuple[list[Cut], list[list[int]]]:
    """Return the cuts that can be trained on and their labels; log how many are left out, and why."""
    kept: dict[str, Cut] = {}
    labels: list[list[int]] = []
    left_out: Counter[str] = Counter()
    for cut in cuts:
        tokens = _encode(cut, encode)
        if cut.id in kept:
            raise InputError(f"cut {cut.id} is in the manifest twice")
        if cut.duration < batching.min_length:
            left_out[f"shorter than {batching.min_length} s"] += 1
        elif cut.duration > batching.max_length:
            left_out[f"longer than {batching.max_length} s"] += 1
        elif -(-num_frames(cut.duration / fastest) // SUBSAMPLING) < len(tokens):
            left_out["with fewer encoder frames than labels"] += 1
        else:
            kept[cut.id] = cut
            labels.append(tokens)
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
    logging.getLogger(__name__).info("%d cuts; left out: %s", len(kept), reasons)
    if not kept:
        raise InputError(f"no cuts to make batches of; left out: {reasons}")
    return list(kept.values()), labels


def _encode(cut: Cut, encode: Callable[[str], list[int]]) -> list[int]:
    text = " ".join(supervision.text or "" for supervision in cut.supervisions).strip()
    if not text:
        raise InputError(f"cut {cut.id}: no transcript")
    try:
        return encode(text)
    except InputError as error:
        raise InputError(f"cut {cut.id}: {error}") from error


def even_out(batches: list[list[int]], world_size: int) -> list[list[int]]:
    """Halve batches, where possible those of the last incomplete round, until every process gets equally many."""
    while incomplete := len(batches) % world_size:
        last_round = len(batches) - incomplete
        index = max(range(len(batches)), key=lambda i: (i >= last_round and len(batches[i]) > 1, len(batches[i])))
        batches.append(batches[index][1::2])
        batches[index] = batches[index][::2]
    return batches
