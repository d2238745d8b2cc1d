"""From the samples of a recording to what is observed of its speakers: the sound of each and where it comes from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asrkit.diarisation.embedding import Embedder, window_bounds
from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.localisation import beamform, peaks, steered_spectra
from asrkit.diarisation.observations import Observations
from asrkit.diarisation.voice_activity import cells, union
from asrkit.errors import InputError

log = logging.getLogger(__name__)

CLIPPED, MOST_CLIPPED = 0.999, 1e-3  # full scale, and the share of samples there from which on there is a warning


@dataclass(frozen=True)
class FrontendConfig:
    """How finely a recording is observed."""

    activity: Literal["silero", "energy"] = "silero"
    """What finds speech: Silero's network, or the level."""
    cell: float = 0.25
    """Seconds of speech that have one embedding and one azimuth."""
    window: float = 1.6
    """Seconds that an embedding hears around its cell."""
    bins: int = 72
    """Azimuths at which the power is measured."""

    def __post_init__(self) -> None:
        if self.cell <= 0 or self.window < self.cell:
            raise ValueError("cell must be above 0, and window not below it")
        if self.bins < 8:
            raise ValueError(f"bins must be 8 or more, not {self.bins}")


def observe(
    samples: np.ndarray,
    rate: int,
    intervals: Sequence[tuple[float, float]],
    embedder: Embedder,
    geometry: ArrayGeometry | None = None,
    config: FrontendConfig | None = None,
) -> Observations:
    """Return what is observed in the intervals of speech (seconds) of one recording; there may be none.

    With an array, the embeddings hear it steered to where the sound comes from; else the first channel.

    Args:
        samples: (C, T) float32 in [-1, 1].
        intervals: what is outside the recording, or in two of them, is left out.

    Raises:
        InputError: there are no samples, or some are not numbers, the sampling rate is not that of the embedder, or
            the channels are not as many as the array's microphones.
    """
    config = config or FrontendConfig()
    check(samples, rate, embedder, geometry)
    warn_of_damage(samples)
    duration = samples.shape[1] / rate
    inside = union((max(0.0, start), min(duration, end)) for start, end in intervals)
    starts, ends = cells(inside, config.cell)
    windows = window_bounds(starts, ends, inside, config.window)
    return observe_cells(samples, embedder, starts, ends, windows, geometry, config)


def observe_cells(
    samples: np.ndarray,
    embedder: Embedder,
    starts: np.ndarray,
    ends: np.ndarray,
    windows: np.ndarray,
    geometry: ArrayGeometry | None,
    config: FrontendConfig,
) -> Observations:
    """Return what is observed in cells of samples (C, T): starts, ends (N,), and windows (N, 2) of the embeddings."""
    azimuths, variances = np.full(len(starts), np.nan), np.full(len(starts), np.nan)
    spectra = np.zeros((len(starts), 0), dtype=np.float32)
    heard, rate = samples[0], embedder.sampling_rate
    if geometry is not None:
        spectra = steered_spectra(samples, rate, geometry, starts, ends, config.bins)
        azimuths, variances = peaks(spectra)
        heard = beamform(samples, rate, geometry, (starts + ends) / 2, azimuths)
    embeddings = embedder(heard, windows[:, 0], windows[:, 1])
    return Observations(starts, ends, embeddings, azimuths, variances, spectra)


def check(samples: np.ndarray, rate: int, embedder: Embedder, geometry: ArrayGeometry | None) -> None:
    """Raise InputError for a recording that cannot be diarised; see `observe`."""
    channels, total = samples.shape
    if not total:
        raise InputError("the recording has no samples")
    if rate != embedder.sampling_rate:
        raise InputError(f"sampling rate {rate} Hz: the embedder needs {embedder.sampling_rate}")
    if geometry is not None and channels != len(geometry):
        plural = "s" if channels > 1 else ""
        raise InputError(f"{channels} channel{plural}, but the array has {len(geometry)} microphones")
    for number, channel in enumerate(samples):
        if not np.isfinite(channel).all():
            raise InputError(f"channel {number}: not a number at {np.argmin(np.isfinite(channel)) / rate:.3f} s")


def warn_of_damage(samples: np.ndarray) -> None:
    """Log which channels of a recording (C, T) are silent or clipped."""
    for number, channel in enumerate(samples):
        loudest = max(channel.max(), -channel.min())
        if loudest == 0:
            log.warning("channel %d is silent", number)
        elif loudest >= CLIPPED and (share := np.mean(np.abs(channel) >= CLIPPED)) >= MOST_CLIPPED:
            log.warning("channel %d is clipped: %.1f per cent of its samples are at full scale", number, 100 * share)
