"""Who else speaks: a second direction in the spectrum of a cell, where one of the other speakers is."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from asrkit.diarisation.localisation import second_peaks
from asrkit.diarisation.observations import Observations

NOBODY = -1


@dataclass(frozen=True)
class OverlapConfig:
    """When a second speaker is believed."""

    height: float = 0.8
    """Of the second peak, as a share of the highest; 1: never."""
    reach: float = 0.3
    """Radians from the peak within which the speaker's track has to be."""
    cells: int = 3
    """Width of the median filter over who it is."""

    def __post_init__(self) -> None:
        if not 0 <= self.height <= 1 or self.reach < 0 or self.cells < 1:
            raise ValueError("height must be from 0 to 1, reach not below 0, cells above 0")


def second_speakers(cells: Observations, labels: np.ndarray, azimuths: np.ndarray, config: OverlapConfig) -> np.ndarray:
    """Return the speaker (N,) who speaks beside that of labels (N,), or NOBODY.

    Args:
        azimuths: (N, K) radians, where each speaker is at each cell; NaN where that is not known.
    """
    if not len(cells) or not cells.spectra.shape[1] or azimuths.shape[1] < 2:
        return np.full(len(cells), NOBODY)
    second, heights = second_peaks(cells.spectra)
    # Whose label it is may be at either of the two peaks, the other speaker at the other.
    one, other = _distances(azimuths, cells.azimuths), _distances(azimuths, second)
    rows = np.arange(len(cells))
    far = np.minimum(
        np.maximum(one, other[rows, labels][:, None]), np.maximum(other, one[rows, labels][:, None])
    )  # (N, K)
    far[rows, labels] = np.inf
    found = np.where((far.min(axis=1) <= config.reach) & (heights >= config.height), far.argmin(axis=1), NOBODY)
    return _held(found, config.cells)


def _distances(azimuths: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Return how far (N, K) speakers at azimuths (N, K) are from peaks (N,), infinitely where either is not known."""
    distances = np.abs((azimuths - peaks[:, None] + math.pi) % (2 * math.pi) - math.pi)
    return np.nan_to_num(distances, nan=np.inf)


def _held(found: np.ndarray, cells: int) -> np.ndarray:
    """Keep who is found in most of some cells in a row."""
    held = np.full(len(found), NOBODY)
    for speaker in np.unique(found[found != NOBODY]):
        held[ndimage.median_filter((found == speaker).astype(np.uint8), cells) == 1] = speaker
    return held
