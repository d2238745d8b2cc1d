"""Random changes to training utterances: speed, reverberation, noise, gain, vocal tract length, masks (SpecAugment).

Every choice comes from a generator that the caller seeds for the utterance, so what becomes of an utterance does not
depend on the batch, worker or process it is made in.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from lhotse import MonoCut, Recording
from lhotse.cut import Cut
from torch import Tensor

from asrkit.data.audio import is_audio, read_cut, resample
from asrkit.data.features import Fbank, FeatureConfig
from asrkit.data.manifests import is_manifest, load_cuts
from asrkit.errors import InputError

NOISE_SECONDS = 10.0  # of each colour of synthetic noise, of which utterances get random parts
REVERBERATION_TIMES = (0.1, 0.6)  # seconds in which a synthetic room's echo falls by 60 dB
SYLLABLES_PER_SECOND = 5.0  # how fast the loudness of babble moves
DIRECT_TO_REVERBERANT = (0.0, 15.0)  # dB


@dataclass(frozen=True)
class AugmentationConfig:
    """What may happen to a training utterance. A range or probability of 0 switches its kind off."""

    speed: float = 0.1
    """Speed and pitch are multiplied by 1 +- this at most."""
    warp: float = 0.1
    """Frequencies are multiplied by 1 +- this at most (VTLP)."""
    gain: float = 10.0
    """Loudness is changed by +- this many dB at most."""
    noise: float = 0.3
    """Probability of added noise."""
    snr: tuple[float, float] = (5.0, 30.0)
    """Lowest and highest signal-to-noise ratio in dB."""
    noises: str = ""
    """Folder of audio files, or manifest, to take noise from; without it white, pink, brown and babble-like noise."""
    reverberation: float = 0.2
    """Probability of reverberation."""
    rooms: str = ""
    """Folder of audio files, or manifest, of room impulse responses; without it noise that decays exponentially."""
    time_masks: int = 2
    """Number of masked stretches of time …"""
    time_mask: float = 0.08
    """… each at most this part of the utterance."""
    frequency_masks: int = 2
    """Number of masked bands of filters …"""
    frequency_mask: float = 0.2
    """… each at most this part of the filters."""

    def __post_init__(self) -> None:
        for name in ("speed", "warp", "noise", "reverberation", "time_mask", "frequency_mask"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if max(self.speed, self.warp) > 0.5:
            raise ValueError(f"speed and warp must be at most 0.5, not {self.speed} and {self.warp}")
        if self.snr[0] > self.snr[1]:
            raise ValueError(f"snr must be the lowest, then the highest ratio, not {self.snr}")


class Augmenter:
    """Makes features (T, D) of samples (S,) with random changes.

    Raises:
        InputError: a folder or manifest of noises or rooms is missing, or holds no audio; names it.
    """

    def __init__(self, config: AugmentationConfig, features: FeatureConfig):
        self._config, self._rate = config, features.sampling_rate
        self._fbank = Fbank(features)
        self._noises = _cuts(config.noises) if config.noises and config.noise else []
        self._rooms = _cuts(config.rooms) if config.rooms and config.reverberation else []
        self._synthetic_noises = _synthetic_noises(self._rate) if config.noise or config.reverberation else []

    def __call__(self, samples: Tensor, rng: Random) -> tuple[Tensor, float]:
        """Return features (T, D) of samples (S,) and the speed factor: above 1 is faster, with fewer frames."""
        config = self._config
        speed = 1.0
        if config.speed:
            speed = round(rng.uniform(1 - config.speed, 1 + config.speed), 2)  # a round number resamples faster
            samples = resample(samples.numpy(), round(speed * self._rate), self._rate)
        samples = self.distort(samples, rng)
        warp = round(rng.uniform(1 - config.warp, 1 + config.warp), 2)  # a round number finds its filters in the cache
        return mask(self._fbank(samples, warp), config, rng), speed

    def distort(self, samples: Tensor, rng: Random) -> Tensor:
        """Return samples (S,) as another room, noise and gain would have made them."""
        config = self._config
        if rng.random() < config.reverberation:
            samples = self._reverberate(samples, rng)
        if rng.random() < config.noise:
            samples = _add_noise(samples, self._noise(len(samples), rng), rng.uniform(*config.snr))
        return samples * 10 ** (rng.uniform(-config.gain, config.gain) / 20)

    def _reverberate(self, samples: Tensor, rng: Random) -> Tensor:
        """Convolve samples (S,) with a room response (R,) from its direct sound on; loudness and length stay."""
        room = self._room(rng)
        size = 1 << (2 * len(room)).bit_length()  # overlap-save: short transforms stay in the processor's cache
        history = len(room) - 1
        hop = size - history
        blocks = torch.nn.functional.pad(samples, (history, -len(samples) % hop)).unfold(0, size, hop)
        wet = torch.fft.irfft(torch.fft.rfft(blocks) * torch.fft.rfft(room, size), size)
        wet = wet[:, history:].flatten()[: len(samples)]
        return wet * (_rms(samples) / _rms(wet))

    def _room(self, rng: Random) -> Tensor:
        if self._rooms:
            room = read_cut(rng.choice(self._rooms), self._rate)
            return room[room.abs().argmax() :]
        decay_time = rng.uniform(*REVERBERATION_TIMES)
        times = torch.arange(1, round(decay_time * self._rate)) / self._rate
        tail = _part(self._synthetic_noises[0], len(times), rng) * torch.exp(-math.log(1000) * times / decay_time)
        ratio = rng.uniform(*DIRECT_TO_REVERBERANT)
        return torch.cat([torch.ones(1), tail * (10 ** (-ratio / 20) / tail.norm())])

    def _noise(self, size: int, rng: Random) -> Tensor:
        if self._noises:
            cut = rng.choice(self._noises)
            seconds = size / self._rate
            if cut.duration > seconds + 0.1:
                cut = cut.truncate(offset=rng.uniform(0, cut.duration - seconds - 0.05), duration=seconds + 0.05)
            return _part(read_cut(cut, self._rate), size, rng)
        return _part(rng.choice(self._synthetic_noises), size, rng)


def mask(features: Tensor, config: AugmentationConfig, rng: Random) -> Tensor:
    """Set random stretches of time and bands of frequency of features (T, D) to their mean.

    Source: Park et al., "SpecAugment: a simple data augmentation method for automatic speech recognition", 2019.
    """
    features, mean = features.clone(), features.mean()
    masks = (config.time_masks, config.time_mask), (config.frequency_masks, config.frequency_mask)
    for dim, (count, part) in enumerate(masks):
        for _ in range(count):
            size = features.shape[dim]
            width = rng.randint(0, int(part * size))
            features.narrow(dim, rng.randint(0, size - width), width).fill_(mean)
    return features


def _part(noise: Tensor, size: int, rng: Random) -> Tensor:
    """Return `size` samples of noise (S,) from a random place, repeated where S is too short."""
    noise = noise.repeat(-(-size // len(noise)))
    start = rng.randint(0, len(noise) - size)
    return noise[start : start + size]


def _add_noise(samples: Tensor, noise: Tensor, snr: float) -> Tensor:
    return samples + noise * (_rms(samples) / _rms(noise) * 10 ** (-snr / 20))


def _rms(samples: Tensor) -> Tensor:
    return samples.square().mean().sqrt().clamp(min=1e-8)


def _synthetic_noises(sampling_rate: int) -> list[Tensor]:
    """Return white, pink and brown noise (S,), then the same with a loudness that moves as that of many talkers."""
    generator = torch.Generator().manual_seed(0)
    size = round(NOISE_SECONDS * sampling_rate)
    frequencies = torch.fft.rfftfreq(size, 1 / sampling_rate).clamp(min=50.0)
    contour = torch.randn(1, 1, round(NOISE_SECONDS * SYLLABLES_PER_SECOND), generator=generator)
    contour = torch.nn.functional.interpolate(contour, size, mode="linear")[0, 0].exp()  # (S,)
    steady = []
    for slope in (0, 1, 2):  # power falls by this exponent of the frequency
        spectrum = torch.randn(len(frequencies), generator=generator, dtype=torch.complex64)
        steady.append(torch.fft.irfft(spectrum * frequencies ** (-slope / 2), size))
    return steady + [noise * contour for noise in steady]


def _cuts(source: str) -> list[Cut]:
    """Return the recordings of a manifest or folder; of several channels the first."""
    if is_manifest(source):
        return list(load_cuts(source))
    files = sorted(path for path in Path(source).rglob("*") if is_audio(path))
    if not files:
        raise InputError(f"{source}: no folder with audio files, nor a manifest")
    return [_first_channel(path) for path in files]


def _first_channel(path: Path) -> Cut:
    try:
        recording = Recording.from_file(path)
    except Exception as error:  # lhotse raises what its many backends raise
        raise InputError(f"{path}: no readable audio") from error
    return MonoCut(recording.id, 0, recording.duration, recording.channel_ids[0], recording=recording)
