"""VBx whose speakers also have a place: who spoke when, and where, from all of a recording at once.

Each speaker's azimuth over time has a posterior on a grid round the circle, beside that of the speaker's embedding: a
forward and a backward pass over the cells, in which each cell counts as far as it is that speaker's. The expected
likelihood of the sound's direction then helps to tell who speaks, and so on in turn (structured mean field). It is the
model of the particle filter (2109.11140) with what comes later known too; the approximation is ours.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numba
import numpy as np
from scipy.special import ndtr

from asrkit.diarisation.kalman import MOST_VARIANCE, MotionConfig, wrap, wrapped_normal
from asrkit.diarisation.observations import Observations
from asrkit.diarisation.vbx import Locate, VbxConfig, VbxResult, merge_speakers, vbx

BINS = 72  # of the grid where there are no spectra
NEGLIGIBLE = 1e-3  # share of a kernel's mass that may be cut off at its ends
LEVELS_PER_DOUBLING = 2  # rounded elapsed times, each with its kernel
ELAPSED = 2.0**-6, 2.0**13  # seconds, least and most
SEAT = math.radians(10)  # nearer than that, two are at the same place
LEAST_VARIANCE = 1e-6  # squared radians
LEAST_SHARE = 1e-4  # of a cell, below which its direction is not somebody's
LEAST_STRAY = 1e-6  # keeps log likelihoods finite
LEAST_JUMP = 1e-12  # probability, keeps what comes before and after from contradicting each other


@dataclass(frozen=True)
class TrackedConfig:
    """Speakers with voices and places."""

    speakers: VbxConfig = field(default_factory=VbxConfig)
    motion: MotionConfig = field(default_factory=lambda: MotionConfig(diffusion=0.0004, jump_rate=0.001))
    location: Literal["none", "stationary", "tracked"] = "tracked"
    """What is known of places: nothing, that nobody moves, or `motion`."""
    location_weight: float = 0.8
    """Independent observations that the direction of one cell counts for."""
    sharpness: float = 170.0
    """A direction's log likelihood per unit of coherence."""
    crowding: float = 0.6
    """What it costs, a cell, that somebody else is where the speaker is; only in deciding who is one and the same."""

    def __post_init__(self) -> None:
        if min(self.location_weight, self.sharpness) < 0:
            raise ValueError("location_weight and sharpness must not be below 0")


@dataclass(frozen=True)
class TrackedResult:
    """Who speaks in each cell, and where everybody is."""

    labels: np.ndarray
    """(N,) numbered from 0 by first appearance."""
    posteriors: np.ndarray
    """(N, K) probability of each speaker."""
    azimuths: np.ndarray
    """(N, K) radians in [-pi, pi), of each speaker at each cell, spoken or silent."""
    variances: np.ndarray
    """(N, K) squared radians: how uncertain they are."""
    bounds: tuple[float, ...]
    """Lower bound of the log evidence after each round."""


def track_speakers(
    observations: Observations,
    between: np.ndarray,
    labels: np.ndarray | None = None,
    config: TrackedConfig | None = None,
    least: int = 1,
    most: int | None = None,
) -> TrackedResult:
    """Cluster cells by who speaks, from voice and direction.

    Args:
        observations: with projected embeddings.
        between: (d,) variance of the speakers.
        labels: (N,) clusters to start from, as of `vbx`.
        config: of the model.
        least, most: number of speakers.
    """
    config = config or TrackedConfig()
    scores = config.location_weight * location_scores(observations, config)
    motion = random_walk((observations.starts + observations.ends) / 2, scores.shape[1], config)

    def locate(posteriors: np.ndarray) -> tuple[np.ndarray, float]:
        expected, evidence, _ = smooth(scores, posteriors, *motion)
        return expected, evidence.sum() - (posteriors * expected).sum()

    def fit(labels: np.ndarray | None, locate: Locate | None) -> VbxResult:
        cells = observations.embeddings, observations.starts, observations.ends
        return vbx(*cells, between, labels, config.speakers, locate)

    locate = None if config.location == "none" else locate

    def worth(result: VbxResult) -> float:
        if locate is None:
            return result.bound
        return result.bound - config.crowding * crowd(result.posteriors, *places(scores, result.posteriors, motion))

    def settle(labels: np.ndarray | None) -> VbxResult:
        refit = partial(fit, locate=locate)
        cells = observations.embeddings, between, config.speakers
        return merge_speakers(refit, refit(labels), *cells, least, most, worth)

    found = max((settle(start) for start in (labels, fit(labels, None).labels)), key=worth)
    azimuths, variances = places(scores, found.posteriors, motion)
    return TrackedResult(found.labels, found.posteriors, azimuths, variances, found.bounds)


def locate_speakers(cells: Observations, labels: np.ndarray, config: TrackedConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return where each speaker of labels (N,) is at each cell, spoken or silent: azimuths (N, K), variances (N, K)."""
    if not len(cells):
        return np.zeros((0, 0)), np.zeros((0, 0))
    spoken = (labels[:, None] == np.arange(labels.max() + 1)).astype(float)
    scores = config.location_weight * location_scores(cells, config)
    motion = random_walk((cells.starts + cells.ends) / 2, scores.shape[1], config)
    return places(scores, spoken, motion)


def location_scores(observations: Observations, config: TrackedConfig) -> np.ndarray:
    """Return log likelihoods (N, A) float32 of each direction against no direction; 0 where none is known.

    From the spectrum, whose several peaks may all be right, or else from the azimuth alone.
    """
    n, bins = observations.spectra.shape
    if bins:
        scores = config.sharpness * (observations.spectra - observations.spectra.max(axis=1, keepdims=True))
        densities = np.exp(scores)
        densities *= bins / densities.sum(axis=1, keepdims=True)
    else:
        bins = BINS
        noises = np.maximum(observations.variances, config.motion.noise)
        densities = 2 * math.pi * _densities(observations.azimuths, noises, grid(bins))
    stray = max(config.motion.stray, LEAST_STRAY)
    scores = np.log((1 - stray) * densities + stray).astype(np.float32)
    scores[np.isnan(observations.azimuths)] = 0
    return scores


# Details


def places(scores: np.ndarray, posteriors: np.ndarray, motion: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return each speaker's azimuths (N, K) and their variances (N, K); arguments are those of `smooth`."""
    _, _, directions = smooth(scores, posteriors, *motion)
    lengths = np.clip(np.abs(directions), math.exp(-MOST_VARIANCE / 2), 1)
    return np.angle(directions), -2 * np.log(lengths)


def grid(bins: int) -> np.ndarray:
    """Return the azimuths (A,) of the bins."""
    return -math.pi + 2 * math.pi * np.arange(bins) / bins


def crowd(posteriors: np.ndarray, azimuths: np.ndarray, variances: np.ndarray) -> float:
    """Return how many others are expected where the speaker is, added up over the cells; each argument is (N, K)."""
    total = 0.0
    for k in range(posteriors.shape[1]):
        apart = np.abs(np.angle(np.exp(1j * (azimuths - azimuths[:, k : k + 1]))))
        spread = np.sqrt(variances + variances[:, k : k + 1] + LEAST_VARIANCE)
        near = ndtr((SEAT - apart) / spread) - ndtr((-SEAT - apart) / spread)
        near[:, k] = 0
        total += float((posteriors[:, k] * near.sum(axis=1)).sum())
    return total


def random_walk(times: np.ndarray, bins: int, config: TrackedConfig) -> tuple[np.ndarray, ...]:
    """Return how azimuths spread from cell to cell, at `times` (N,): what `smooth` asks for.

    In continuous time on the grid, so that the variance is right however short the elapsed time. Elapsed times are
    rounded to a few.
    """
    elapsed = np.diff(times, prepend=times[:1] - 1)
    steps = np.round(LEVELS_PER_DOUBLING * np.log2(np.clip(elapsed, *ELAPSED))) / LEVELS_PER_DOUBLING
    steps, levels = np.unique(steps, return_inverse=True)
    seconds = 2.0 ** steps[:, None]
    diffusion, jump_rate = config.motion.diffusion, config.motion.jump_rate
    if config.location == "stationary":
        diffusion = jump_rate = 0.0
    width = 2 * math.pi / bins
    decay = np.cos(width * np.arange(bins // 2 + 1)) - 1
    kernels = np.fft.irfft(np.exp(diffusion * seconds / width**2 * decay), bins)[:, : bins // 2]  # (levels, A / 2)
    tails = np.cumsum(kernels[:, ::-1], axis=1)[:, ::-1]
    reaches = np.maximum((tails > NEGLIGIBLE / 2).sum(axis=1), 1)
    kernels = np.where(np.arange(bins // 2) < reaches[:, None], np.maximum(kernels, 0), 0)
    kernels /= 2 * kernels.sum(axis=1, keepdims=True) - kernels[:, :1]
    return levels, kernels.astype(np.float32), reaches, np.maximum(1 - np.exp(-jump_rate * seconds[:, 0]), LEAST_JUMP)


@numba.njit(cache=True, nogil=True, fastmath=True)
def smooth(
    scores: np.ndarray,
    posteriors: np.ndarray,
    levels: np.ndarray,
    kernels: np.ndarray,
    reaches: np.ndarray,
    jumps: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each speaker's expected scores (N, K), log evidence (K,) and mean direction (N, K) on the unit circle.

    Args:
        scores: (N, A) float32 log likelihood of each azimuth.
        posteriors: (N, K) share of a cell's score that is each speaker's.
        levels: (N,) index of the elapsed time before each cell.
        kernels: (levels, A / 2) of the random walk, from the middle outwards.
        reaches: (levels,) taps of each kernel that are not 0.
        jumps: (levels,) probability of a jump to anywhere.
    """
    n_cells, n_bins = scores.shape
    n_speakers = posteriors.shape[1]
    expected = np.zeros((n_cells, n_speakers))
    directions = np.zeros((n_cells, n_speakers), np.complex128)
    evidence = np.zeros(n_speakers)
    circle = np.exp(1j * (2 * math.pi * np.arange(n_bins) / n_bins - math.pi))
    forward = np.empty((n_cells, n_bins), np.float32)
    message, padded = np.empty(n_bins, np.float32), np.empty(2 * n_bins, np.float32)
    for k in range(n_speakers):
        message[:] = 1 / n_bins
        for n in range(n_cells):
            level = levels[n]
            if n:
                _spread(message, kernels[level, : reaches[level]], jumps[level], padded)
            _weigh(message, scores[n], posteriors[n, k])
            total = message.sum()
            evidence[k] += math.log(total)
            message /= total
            forward[n] = message
        message[:] = 1
        for n in range(n_cells - 1, -1, -1):
            joint = forward[n] * message
            joint /= joint.sum()
            expected[n, k] = (joint * scores[n]).sum()
            directions[n, k] = (joint * circle).sum()
            _weigh(message, scores[n], posteriors[n, k])
            message /= message.sum()
            level = levels[n]
            _spread(message, kernels[level, : reaches[level]], jumps[level], padded)
    return expected, evidence, directions


@numba.njit(cache=True, nogil=True, fastmath=True)
def _weigh(message: np.ndarray, scores: np.ndarray, share: float) -> None:
    """Multiply a message (A,) by the likelihood to the power of a share; none of a share is not worth the time."""
    if share > LEAST_SHARE:
        for a in range(len(message)):
            message[a] *= math.exp(np.float32(share) * scores[a])


@numba.njit(cache=True, nogil=True, fastmath=True)
def _spread(message: np.ndarray, kernel: np.ndarray, jump: float, padded: np.ndarray) -> None:
    """Convolve a message (A,) with a symmetric kernel round the circle, and let a share of it jump anywhere."""
    n_bins, reach = len(message), len(kernel)
    for a in range(reach):
        padded[a] = message[n_bins - reach + a]
        padded[reach + n_bins + a] = message[a]
    padded[reach : reach + n_bins] = message
    message[:] = np.float32(jump * message.sum() / n_bins)
    stay = np.float32(1 - jump)
    for tap in range(reach):
        weight = stay * kernel[tap]
        if tap == 0:
            for a in range(n_bins):
                message[a] += weight * padded[reach + a]
        else:
            for a in range(n_bins):
                message[a] += weight * (padded[reach + a - tap] + padded[reach + a + tap])


@numba.njit(cache=True, nogil=True)
def _densities(azimuths: np.ndarray, variances: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Return wrapped Gaussian densities (N, A) of azimuths (N,) at the bins (A,)."""
    densities = np.empty((len(azimuths), len(bins)))
    for n in range(len(azimuths)):
        for a in range(len(bins)):
            densities[n, a] = wrapped_normal(wrap(azimuths[n] - bins[a]), variances[n])
    return densities
