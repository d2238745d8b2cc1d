"""When somebody speaks, and the short cells of speech in which everything else is observed."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import soxr
import torch
from scipy import ndimage

from asrkit.optional import needed

Interval = tuple[float, float]  # start and end in seconds

SILERO_RATE = 16000
FRAME = 0.01  # seconds
QUIETEST = -90.0  # dB below full scale, taken for digital silence
NOISE_WINDOW = 30.0  # seconds in which there is a pause
LEAST_RANGE = 12.0  # dB between pauses and speech; a recording with less has no speech
ABOVE_NOISE = 0.35  # share of that range above the noise where speech begins
SHORTEST_SPEECH, SHORTEST_PAUSE = 0.2, 0.3  # seconds
MARGIN = 0.1  # seconds of speech on each side that are too soft to tell


def energy_activity(samples: np.ndarray, rate: int) -> list[Interval]:
    """Return the intervals of samples (T,) that are louder than their surroundings' pauses.

    The threshold follows the noise, the least level around, by a share of the distance to the level of speech.
    """
    levels = _levels(samples, rate)
    if not len(levels):
        return []
    noise = ndimage.minimum_filter1d(ndimage.uniform_filter1d(levels, 20), round(NOISE_WINDOW / FRAME))
    noise = ndimage.uniform_filter1d(noise, round(NOISE_WINDOW / FRAME))
    height = levels - noise
    span = np.percentile(height, 95)
    if span < LEAST_RANGE:
        return []
    edges = np.diff(np.concatenate([[0], (height > ABOVE_NOISE * span).astype(int), [0]]))
    spoken = zip(np.flatnonzero(edges > 0) * FRAME, np.flatnonzero(edges < 0) * FRAME, strict=True)
    spoken = [interval for interval in union(spoken, SHORTEST_PAUSE) if interval[1] - interval[0] >= SHORTEST_SPEECH]
    duration = len(samples) / rate
    return union((max(0.0, start - MARGIN), min(duration, end + MARGIN)) for start, end in spoken)


def silero_activity(samples: np.ndarray, rate: int) -> list[Interval]:
    """Return the intervals of samples (T,) float32 in which Silero's network hears speech.

    Raises:
        InputError: silero-vad or onnxruntime is not installed.
    """
    if rate != SILERO_RATE:
        samples = soxr.resample(samples, rate, SILERO_RATE)
    silero, model = _silero()
    spoken = silero.get_speech_timestamps_sequence(samples, model)
    return [(interval["start"] / SILERO_RATE, interval["end"] / SILERO_RATE) for interval in spoken]


def union(intervals: Iterable[Interval], pause: float = 0.0) -> list[Interval]:
    """Return in order what any of the intervals covers; pauses of up to `pause` seconds are filled."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1] + pause:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        elif start < end:
            joined.append((float(start), float(end)))
    return joined


def cells(intervals: Sequence[Interval], step: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Divide each interval into cells of equal length, as near to `step` as can be; return starts and ends (N,)."""
    bounds = [np.linspace(start, end, max(1, round((end - start) / step)) + 1) for start, end in intervals]
    if not bounds:
        return np.zeros(0), np.zeros(0)
    return np.concatenate([b[:-1] for b in bounds]), np.concatenate([b[1:] for b in bounds])


# Details


def _levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return the level (T,) in dB of each FRAME, over five of them."""
    hop = round(FRAME * rate)
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    power = np.einsum("th,th->t", frames, frames, dtype=np.float64) / hop
    return np.maximum(10 * np.log10(ndimage.uniform_filter1d(power, 5).clip(1e-12)), QUIETEST)


@lru_cache(maxsize=1)
def _silero() -> tuple[ModuleType, Any]:
    """Return the package and its network."""
    threads = torch.get_num_threads()
    silero = needed("silero_vad", "meetings")
    torch.set_num_threads(threads)  # the import sets one
    needed("onnxruntime", "meetings")
    return silero, silero.load_silero_vad(sequence=True)
