"""Log-mel filter banks as Kaldi and sherpa compute them, for a whole utterance and for a stream.

Frames of 25 ms every 10 ms, povey window, pre-emphasis 0.97, DC removed, no dither, `snip_edges=False`, filters
from 20 Hz to 400 Hz below the Nyquist frequency, natural logarithm floored at the smallest float32 step, samples in
[-1, 1]; no mean or variance normalisation.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

FRAME_LENGTH = 0.025  # seconds
FRAME_SHIFT = 0.010  # seconds
SUBSAMPLING = 4  # feature frames that every encoder makes one encoder frame of
PREEMPHASIS = 0.97
LOW_FREQUENCY = 20.0  # Hz
HIGH_FREQUENCY_MARGIN = 400.0  # Hz below the Nyquist frequency
ENERGY_FLOOR = torch.finfo(torch.float32).eps
WARP_BEND = 0.6  # of the Nyquist frequency: 4.8 kHz of 8, as in the paper of `Fbank.__call__`
SILENCE = math.log(ENERGY_FLOOR)  # every feature of digital silence; also the padding


@dataclass(frozen=True)
class FeatureConfig:
    """What the features are computed of, and how many there are."""

    sampling_rate: int = 16000
    """Samples a second (Hz); audio at other rates is resampled."""
    num_mel_bins: int = 80
    """Number D of mel filters."""

    def __post_init__(self) -> None:
        if self.sampling_rate < 2000:
            raise ValueError(f"sampling_rate must be at least 2000 Hz, not {self.sampling_rate}")
        if self.num_mel_bins < 4:
            raise ValueError(f"num_mel_bins must be at least 4, not {self.num_mel_bins}")


class Fbank:
    """Filter banks of whole utterances. Each is framed on its own, so padding and neighbours change nothing."""

    def __init__(self, config: FeatureConfig):
        self.config = config

    def __call__(self, samples: Tensor, warp: float = 1.0) -> Tensor:
        """Return the features (T, D) of samples (S,), where T is the number of 10 ms in S, rounded.

        `warp` stretches the frequency axis by that factor, which imitates another length of vocal tract (Jaitly and
        Hinton, "Vocal tract length perturbation (VTLP) improves speech recognition", 2013).
        """
        length, shift = _frame_size(self.config.sampling_rate)
        return self.frames(_reflect(samples, *_margins(samples.numel(), length, shift)), warp)

    def batch(self, utterances: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the features (N, T, D) of N utterances (S,), padded with silence, and their lengths (N,)."""
        return pad_features([self(samples) for samples in utterances])

    def frames(self, samples: Tensor, warp: float = 1.0) -> Tensor:
        """Return the features (T, D) of every whole frame in samples (S,)."""
        length, shift = _frame_size(self.config.sampling_rate)
        if samples.numel() < length:
            return samples.new_zeros(0, self.config.num_mel_bins)
        # Pre-emphasis of the whole signal differs from Kaldi's, which is frame by frame, only in the first sample of
        # each frame, and the povey window multiplies that by zero.
        emphasised = torch.cat([samples[:1], samples[1:] - PREEMPHASIS * samples[:-1]])
        dc_left = (1 - PREEMPHASIS) * samples.unfold(0, length, shift).mean(1, keepdim=True)  # (T, 1)
        windowed = (emphasised.unfold(0, length, shift) - dc_left).mul_(_povey_window(length))  # (T, length)
        fft_size = 1 << (length - 1).bit_length()
        spectrum = torch.view_as_real(torch.fft.rfft(windowed, n=fft_size)).flatten(1)  # (T, fft_size + 2)
        return (spectrum.square_() @ _mel_filters(self.config, fft_size, warp)).clamp_(min=ENERGY_FLOOR).log_()


class FbankStream:
    """Filter banks of an utterance that arrives in chunks: all returned frames together are those of `Fbank`."""

    def __init__(self, config: FeatureConfig):
        self._fbank = Fbank(config)
        self._length, self._shift = _frame_size(config.sampling_rate)
        self._samples = torch.zeros(0)  # what the frames to come still need
        self._started = False  # the reflection before the first sample is in place

    def accept(self, samples: Tensor) -> Tensor:
        """Take the next samples (S,) and return the frames (T, D) that they complete, T >= 0."""
        self._samples = torch.cat([self._samples, samples])
        if not self._started and self._samples.numel() >= self._length:
            left, _ = _margins(self._samples.numel(), self._length, self._shift)
            self._samples = _reflect(self._samples, left, 0)
            self._started = True
        if not self._started:
            return self._samples.new_zeros(0, self._fbank.config.num_mel_bins)
        features = self._fbank.frames(self._samples)
        self._samples = self._samples[features.shape[0] * self._shift :].clone()
        return features

    def flush(self) -> Tensor:
        """End the utterance: return its last frames (T, D) and be ready for another one."""
        samples, started = self._samples, self._started
        self._samples, self._started = torch.zeros(0), False
        if not started:
            return self._fbank(samples)
        left, _ = _margins(0, self._length, self._shift)
        _, right = _margins(samples.numel() - left, self._length, self._shift)
        return self._fbank.frames(_reflect(samples, 0, right))


def pad_features(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return N features (T, D) as one tensor (N, T, D), padded with silence, and their lengths (N,)."""
    lens = torch.tensor([utterance.shape[0] for utterance in features])
    return pad_sequence(features, batch_first=True, padding_value=SILENCE), lens


def heard(features: Tensor) -> Tensor:
    """Return what of features (N, 4c, F) is audio, (N, 4c) booleans, and what is digital silence.

    The audio may end within the four frames of an encoder frame, but not begin there: silence before it is audio. Its
    last frame does not count: most of that is digital silence already.
    """
    loud = (features > SILENCE + 1e-3).any(dim=2)
    loud = torch.cat([loud[:, :-1] & loud[:, 1:], loud[:, -1:]], dim=1)
    following = loud.unflatten(1, (-1, SUBSAMPLING)).flip(2).int().cumsum(dim=2).flip(2)  # loud frames from each one on
    return (following > 0).flatten(1)


def num_frames(duration: float) -> int:
    """Return how many frames T `Fbank` makes of `duration` seconds, give or take the rounding of samples."""
    return int(duration / FRAME_SHIFT + 0.5)


def _frame_size(sampling_rate: int) -> tuple[int, int]:
    """Return length and shift of a frame in samples, rounded down as Kaldi does."""
    return int(FRAME_LENGTH * sampling_rate + 1e-6), int(FRAME_SHIFT * sampling_rate + 1e-6)


def _margins(samples: int, length: int, shift: int) -> tuple[int, int]:
    """Return how many samples to reflect before and after an utterance; frame t has samples [t, t + 1) * shift as its
    middle."""
    frames = (samples + shift // 2) // shift
    left = length // 2 - shift // 2
    return left, max(0, (frames - 1) * shift + length - left - samples)


def _reflect(samples: Tensor, left: int, right: int) -> Tensor:
    """Extend samples (S,) by their mirror image, repeatedly where S is shorter than a margin."""
    size = samples.numel()
    if size == 0:
        return samples
    if max(left, right) <= size:
        return torch.cat([samples[:left].flip(0), samples, samples[size - right :].flip(0)])
    index = torch.arange(-left, size + right) % (2 * size)
    return samples[torch.minimum(index, 2 * size - 1 - index)]


@lru_cache(maxsize=64)
def _povey_window(length: int) -> Tensor:
    return torch.hann_window(length, periodic=False, dtype=torch.float64).pow(0.85).float()


@lru_cache(maxsize=64)
def _mel_filters(config: FeatureConfig, fft_size: int, warp: float) -> Tensor:
    """Return triangular filters (fft_size + 2, D), equally spaced and straight-sided on the mel scale.

    Each frequency is there twice, for the squares of the spectrum's real and imaginary part.
    """
    nyquist = config.sampling_rate / 2
    limits = _mel(torch.tensor([LOW_FREQUENCY, nyquist - HIGH_FREQUENCY_MARGIN], dtype=torch.float64))
    edges = torch.linspace(*limits.tolist(), config.num_mel_bins + 2, dtype=torch.float64)  # (D + 2,)
    frequencies = torch.linspace(0, nyquist, fft_size // 2 + 1, dtype=torch.float64)
    bins = _mel(_warp(frequencies, warp, nyquist))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp_(min=0)
    filters[-1] = 0  # Kaldi leaves out the Nyquist frequency
    return filters.float().repeat_interleave(2, dim=0)


def _mel(frequencies: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(frequencies / 700.0)


def _warp(frequencies: Tensor, warp: float, nyquist: float) -> Tensor:
    """Multiply by `warp` up to WARP_BEND of the band, and from there go straight to the Nyquist frequency."""
    bend = WARP_BEND * nyquist * min(warp, 1.0) / warp
    slope = (nyquist - warp * bend) / (nyquist - bend)
    return torch.where(frequencies <= bend, warp * frequencies, nyquist - slope * (nyquist - frequencies))
