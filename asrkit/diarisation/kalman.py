"""Where a speaker is: Kalman filters over the azimuth, on the circle (arXiv:2109.10598; the model is our reading).

A speaker sits still or walks (a random walk whose variance grows with the time that passes, spoken or silent) and now
and then changes seats unseen (a jump to anywhere). An azimuth that is observed is the speaker's, with noise, or stray:
a reflection, or somebody else. Densities are those of wrapped Gaussians.

The evidence of a track keeps two hypotheses of where the speaker is (`follow`): whether an azimuth far from the others
was stray or is the new seat shows only in those that follow. One Gaussian has to decide at once (`observe`: for filters
that keep many hypotheses themselves); it stays behind at the old seat and pays for every later cell, tens of nats.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

LOG_UNIFORM = -math.log(2 * math.pi)
UNIFORM = 1 / (2 * math.pi)
MOST_VARIANCE = math.pi**2 / 3  # of an azimuth of which nothing is known
FLAT = 4 * MOST_VARIANCE  # a Gaussian as wide as this, wrapped, is as good as uniform
WRAPS = 2  # turns of the circle either way that a wrapped density adds up


@dataclass(frozen=True)
class MotionConfig:
    """How speakers move, and how well they are located."""

    diffusion: float = 0.02
    """Squared radians by which the variance grows in a second; 0: speakers sit still."""
    jump_rate: float = 0.003
    """Changes of seat a second."""
    stray: float = 0.1
    """Share of observed azimuths that say nothing of the speaker."""
    noise: float = 0.01
    """Squared radians: least variance of an observed azimuth."""

    def __post_init__(self) -> None:
        if min(self.diffusion, self.jump_rate) < 0 or self.noise <= 0:
            raise ValueError("diffusion and jump_rate must not be below 0, and noise above 0")
        if not 0 <= self.stray < 1:
            raise ValueError(f"stray must be a share from 0 to below 1, not {self.stray}")


@numba.njit(cache=True, nogil=True)
def wrap(angle: float) -> float:
    """Return the same direction in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


@numba.njit(cache=True, nogil=True)
def wrapped_normal(deviation: float, variance: float) -> float:
    """Return the density of a Gaussian wrapped round the circle; `deviation` is in [-pi, pi)."""
    if variance > FLAT:
        return UNIFORM
    total = math.exp(-0.5 * deviation * deviation / variance)
    for turn in range(1, WRAPS + 1 if 2 * math.pi * (math.pi - abs(deviation)) < 40 * variance else 1):
        for distance in (2 * math.pi * turn - deviation, 2 * math.pi * turn + deviation):
            total += math.exp(-0.5 * distance * distance / variance)
    return total / math.sqrt(2 * math.pi * variance)


@numba.njit(cache=True, nogil=True)
def observe(
    mean: float,
    variance: float,
    elapsed: float,
    azimuth: float,
    noise: float,
    diffusion: float,
    jump_rate: float,
    stray: float,
) -> tuple[float, float, float]:
    """Take in an azimuth `elapsed` seconds after the last; return its log density and the new mean and variance.

    The three things that may have happened (seen where expected, jumped, stray) are joined into one Gaussian of the
    same mean and variance.
    """
    jumped = 1 - math.exp(-jump_rate * elapsed)
    density, new_mean, new_variance = update(mean, variance + diffusion * elapsed, azimuth, noise, stray)
    stayed, moved = (1 - jumped) * density, jumped * UNIFORM
    density = stayed + moved
    share = moved / density
    apart = wrap(azimuth - new_mean)
    variance = (1 - share) * new_variance + share * noise + share * (1 - share) * apart * apart
    return math.log(density), wrap(new_mean + share * apart), min(variance, MOST_VARIANCE)


class Motion(NamedTuple):
    """MotionConfig without its noise, for compiled functions."""

    diffusion: float
    jump_rate: float
    stray: float


class Track(NamedTuple):
    """Where a speaker was last seen: at `mean`, with probability `weight`, else at `other_mean`."""

    time: float
    mean: float
    variance: float
    """Squared radians; below 0: not seen yet."""
    weight: float
    other_mean: float
    other_variance: float


UNSEEN = Track(0.0, 0.0, -1.0, 1.0, 0.0, FLAT)


@numba.njit(cache=True, nogil=True)
def follow(track: Track, time: float, azimuth: float, noise: float, motion: Motion) -> tuple[float, Track]:
    """Take in an azimuth; return its log density and where the speaker is now. NaN says nothing.

    Of the three things that may be true then (either place, seen there or stray; or a jump to where the azimuth is) the
    two likelier ones are kept.
    """
    if math.isnan(azimuth):
        return 0.0, track
    if track.variance < 0:
        return LOG_UNIFORM, Track(time, azimuth, noise, 1 - motion.stray, azimuth, FLAT)
    elapsed = time - track.time
    stayed, spread = math.exp(-motion.jump_rate * elapsed), motion.diffusion * elapsed
    first, mean, variance = update(track.mean, track.variance + spread, azimuth, noise, motion.stray)
    other, other_mean, other_variance = update(
        track.other_mean, track.other_variance + spread, azimuth, noise, motion.stray
    )
    first, other, moved = stayed * track.weight * first, stayed * (1 - track.weight) * other, (1 - stayed) * UNIFORM
    density = first + other + moved
    if first < other:
        first, mean, variance, other, other_mean, other_variance = (
            other,
            other_mean,
            other_variance,
            first,
            mean,
            variance,
        )
    if moved > other:
        other, other_mean, other_variance = moved, azimuth, noise
    return math.log(density), Track(time, mean, variance, first / (first + other), other_mean, other_variance)


@numba.njit(cache=True, nogil=True)
def evidence(times: np.ndarray, azimuths: np.ndarray, noises: np.ndarray, motion: Motion) -> float:
    """Return the log density of the azimuths (N,) of one track at times (N,) in order; NaN azimuths are unseen."""
    total, track = 0.0, UNSEEN
    for n in range(len(times)):
        log_density, track = follow(track, times[n], azimuths[n], noises[n], motion)
        total += log_density
    return total


def track_evidence(times: np.ndarray, azimuths: np.ndarray, variances: np.ndarray, motion: MotionConfig) -> float:
    """Return log p(azimuths) of one speaker, seconds and radians, times in order (2109.10598, evidence of a track)."""
    noises = np.maximum(variances, motion.noise)
    return evidence(times, azimuths, noises, Motion(motion.diffusion, motion.jump_rate, motion.stray))


# Details


@numba.njit(cache=True, nogil=True)
def update(mean: float, predicted: float, azimuth: float, noise: float, stray: float) -> tuple[float, float, float]:
    """Return the density of an azimuth of a speaker who has not jumped, and the new mean and variance.

    Seen or stray, both are joined into one Gaussian of the same mean and variance.
    """
    innovation = wrap(azimuth - mean)
    gain = predicted / (predicted + noise)
    seen, strayed = (1 - stray) * wrapped_normal(innovation, predicted + noise), stray * UNIFORM
    density = seen + strayed
    share = seen / density
    correction = gain * innovation
    variance = predicted - share * gain * predicted + share * (1 - share) * correction * correction
    return density, wrap(mean + share * correction), variance
