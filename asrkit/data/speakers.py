"""Batches of short crops of many speakers, for speaker embeddings, with the interface of BatchLoader.

Speech made slower or faster is a speaker of its own: pitch and formants move with it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from random import Random

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from asrkit.data.audio import read_cut, resample
from asrkit.data.augmentation import AugmentationConfig, Augmenter
from asrkit.data.batching import even_out
from asrkit.data.features import FRAME_SHIFT, Fbank, FeatureConfig
from asrkit.errors import InputError

LENGTH_STEP = 0.1  # seconds; few different lengths, for each of which kernels are compiled once
SPARE = 0.05  # seconds read beyond a crop, against rounding
TOGETHER = 2  # crops of a speaker that follow each other: in evaluation, one has to be found by the other


@dataclass(frozen=True)
class SpeakerBatchingConfig:
    """How crops are put together for training."""

    size: int = 64
    """Crops in a batch."""
    length: tuple[float, float] = (1.0, 2.0)
    """Shortest and longest crop (seconds); those of a batch are equally long."""
    crops: int = 8
    """Crops of each speaker in an epoch."""
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    """Factors of speed and pitch; each makes further speakers of all."""
    workers: int = 1
    """Processes that read audio and compute features (0: the training process does)."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.length[0] <= self.length[1]:
            raise ValueError(f"length must be the shortest, at least 0.1 s, then the longest, not {self.length}")
        if self.size < TOGETHER or self.crops < 1 or self.workers < 0:
            raise ValueError(f"size must be at least {TOGETHER}, crops 1, workers 0")
        if not self.speeds or min(self.speeds) <= 0.5 or max(self.speeds) > 2:
            raise ValueError(f"speeds must be above 0.5 and at most 2, not {self.speeds}")


@dataclass(frozen=True)
class SpeakerBatch:
    """N crops of equal length: features (N, T, F), the numbers of their speakers (N,), and the cuts they are of."""

    features: Tensor
    speakers: Tensor
    cuts: CutSet
    hours: float

    def to(self, device: torch.device | str) -> "SpeakerBatch":
        return replace(self, features=self.features.to(device), speakers=self.speakers.to(device))


class SpeakerLoader:
    """Makes the batches of an epoch of the speakers in `cuts`: as many random crops of each, distorted at random.

    Crop and distortion depend on `seed`, the epoch and the place in it alone. Process `rank` of `world_size` gets
    batches rank, rank + world_size, … of the epoch's list, and all get equally many. Without `augmentation`, every
    epoch is the same, and speakers are only those of the cuts.

    Raises:
        InputError: as `by_speaker`, or there is only one speaker; while iterating: audio cannot be read.
    """

    def __init__(
        self,
        cuts: Iterable[Cut],
        features: FeatureConfig,
        batching: SpeakerBatchingConfig,
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._cuts = list(by_speaker(cuts).values())
        if len(self._cuts) < 2:
            raise InputError("all cuts are of one speaker; there is nobody to tell apart")
        self._speeds = batching.speeds if augmentation else (1.0,)
        self._batching, self._seed, self._shuffle = batching, seed, augmentation is not None
        self._rank, self._world_size = rank, world_size
        self._data = _Crops(self._cuts, self._speeds, features, augmentation, seed)

    @property
    def speakers(self) -> int:
        """Number of speakers, those of other speeds included."""
        return len(self._cuts) * len(self._speeds)

    @property
    def hours(self) -> float:
        """Hours of audio in an epoch, about, all processes together."""
        return self.speakers * self._batching.crops * sum(self._batching.length) / 2 / 3600

    def epoch(self, number: int, skip: int = 0) -> Iterator[SpeakerBatch]:
        """Yield this process's batches of an epoch but for the first `skip`, whose audio is not read."""
        number = number if self._shuffle else 0
        batches = self.plan(number)[self._rank :: self._world_size][skip:]
        loader = DataLoader(
            self._data,
            sampler=[(number, seconds, crops) for seconds, crops in batches],
            batch_size=None,
            num_workers=min(self._batching.workers, len(batches)),
            generator=torch.Generator(),  # so that it draws no seed from the global one
        )
        for (seconds, crops), prepared in zip(batches, loader, strict=True):
            if isinstance(prepared, InputError):
                raise prepared
            features, names = prepared
            speakers = torch.tensor([speaker for _, speaker in crops])
            yield SpeakerBatch(features, speakers, CutSet.from_cuts(names), len(crops) * seconds / 3600)

    def plan(self, number: int) -> list[tuple[float, list[tuple[int, int]]]]:
        """Return the batches of an epoch, of all processes: their seconds, and (place in the epoch, speaker) of each
        crop."""
        rng = Random(f"{self._seed} {number}")
        groups: list[list[tuple[int, int]]] = []  # of a speaker, never parted
        for first in range(0, self._batching.crops, TOGETHER):
            speakers = list(range(self.speakers))
            if self._shuffle:
                rng.shuffle(speakers)
            for speaker in speakers:
                place = len(groups) * TOGETHER
                groups.append([(place + n, speaker) for n in range(min(TOGETHER, self._batching.crops - first))])
        size = self._batching.size // TOGETHER
        batches = even_out([groups[i : i + size] for i in range(0, len(groups), size)], self._world_size)
        return [
            (round(rng.uniform(*self._batching.length) / LENGTH_STEP) * LENGTH_STEP, list(chain.from_iterable(batch)))
            for batch in batches
        ]


def by_speaker(cuts: Iterable[Cut]) -> dict[str, list[Cut]]:
    """Sort cuts by their speaker.

    Raises:
        InputError: there are no cuts, or one names no speaker, or several.
    """
    found = defaultdict(list)
    for cut in cuts:
        names = {supervision.speaker for supervision in cut.supervisions}
        if len(names) != 1 or not all(names):
            raise InputError(f"cut {cut.id}: {'several speakers' if len(names) > 1 else 'no speaker'}")
        found[names.pop()].append(cut)
    if not found:
        raise InputError("no cuts")
    return dict(sorted(found.items()))


def random_part(cuts: list[Cut], seconds: float, sampling_rate: int, rng: Random) -> tuple[Cut, Tensor]:
    """Return a cut, drawn in proportion to durations, and samples (S,) of it: `seconds`, or all of a shorter one."""
    cut = rng.choices(cuts, [cut.duration for cut in cuts])[0]
    offset = rng.uniform(0, max(0.0, cut.duration - seconds - SPARE))
    if _can_seek(cut):
        part = cut.truncate(offset=offset, duration=min(seconds + SPARE, cut.duration - offset))
        samples = read_cut(part, sampling_rate)
    else:
        samples = read_cut(cut, sampling_rate)[round(offset * sampling_rate) :]
    return cut, samples[: round(seconds * sampling_rate)]


def _can_seek(cut: Cut) -> bool:
    """Whether part of a file is read as well as all of it: decoders set into the middle of an MP3 complain."""
    return all(Path(str(source.source)).suffix in (".wav", ".flac") for source in cut.recording.sources)


class _Crops(Dataset):
    """Audio to features, in a worker. A user's mistake is returned, as a worker's exceptions lose their one line."""

    def __init__(
        self,
        cuts: list[list[Cut]],
        speeds: tuple[float, ...],
        features: FeatureConfig,
        augmentation: AugmentationConfig | None,
        seed: int,
    ):
        self._cuts, self._speeds, self._rate, self._seed = cuts, speeds, features.sampling_rate, seed
        self._fbank = Fbank(features)
        self._augmenter = Augmenter(augmentation, features) if augmentation else None

    def __getitem__(self, key: tuple[int, float, list[tuple[int, int]]]) -> tuple[Tensor, list[Cut]] | InputError:
        epoch, seconds, crops = key
        try:
            features, cuts = zip(*(self._crop(epoch, seconds, *crop) for crop in crops), strict=True)
        except InputError as error:
            return error
        return torch.stack(features), list(cuts)

    def _crop(self, epoch: int, seconds: float, place: int, speaker: int) -> tuple[Tensor, Cut]:
        """Return the features (T, F) of a random crop of `seconds`, and the cut that it is of, renamed."""
        rng = Random(f"{self._seed} {epoch} {place}")
        person, speed = divmod(speaker, len(self._speeds))
        speed = self._speeds[speed]
        cut, samples = random_part(self._cuts[person], seconds * speed, self._rate, rng)
        samples = resample(samples.numpy(), round(speed * self._rate), self._rate)
        size = round(seconds * self._rate)
        samples = samples.repeat(-(-size // len(samples)))[:size]  # too short a cut is heard again
        features = self._augmenter(samples, rng)[0] if self._augmenter else self._fbank(samples)
        frames = round(seconds / FRAME_SHIFT)
        return _exactly(features, frames), cut.with_id(f"{cut.id}-{place}")


def _exactly(features: Tensor, frames: int) -> Tensor:
    """Make features (T, F) as many frames long as said, by the last one or without it: rates do not always divide."""
    return features[torch.arange(frames).clamp(max=len(features) - 1)]
