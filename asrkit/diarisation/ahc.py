"""Agglomerative clustering of the cells of a meeting, by voice and by tracked location (arXiv:2109.10598, our reading).

The affinity of two clusters is a log-likelihood ratio, one speaker against two: of their embeddings (PLDA), plus that
of their azimuths taken together in the order of time: one track against two. It decides what is merged next, and, by
its sign, where merging stops.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numba
import numpy as np

from asrkit.diarisation.kalman import UNIFORM, UNSEEN, Motion, MotionConfig, evidence, follow, wrap, wrapped_normal
from asrkit.diarisation.observations import Observations

LOCATIONS = ("none", "stationary", "kalman")
LONGEST_RUN = 10  # cells
LONGEST_GAP = 0.5  # seconds of silence within a run
BLOCK = 600.0  # seconds that are clustered by themselves first
BLOCK_CLUSTERS = 24  # that are left of a block at least, many times the speakers of any ten minutes
DIRECTIONS = 120  # of a stationary speaker that are tried
SMALL = 4  # cells; fewer make no speaker, but are strays, or a mixture at a change of turns


@dataclass(frozen=True)
class AhcConfig:
    """What counts when clusters are merged."""

    location: str = "kalman"
    """"none": the voice alone; "stationary": speakers never move; "kalman": their tracks are followed."""
    embedding_weight: float = 0.05
    """Independent observations for which the embedding of a cell counts: its window overlaps with its neighbours'."""
    location_weight: float = 0.3
    """Likewise of its azimuth."""
    most_penalty: float = 5.0
    """Least weighted log ratio of two clusters' locations is minus this: nothing rules out that a speaker moved."""
    threshold: float = 0.0
    """Clusters of a greater affinity are merged."""
    motion: MotionConfig = field(default_factory=MotionConfig)

    def __post_init__(self) -> None:
        if self.location not in LOCATIONS:
            raise ValueError(f"location must be one of {', '.join(LOCATIONS)}, not '{self.location}'")
        if min(self.embedding_weight, self.location_weight, self.most_penalty) < 0:
            raise ValueError("embedding_weight, location_weight and most_penalty must not be below 0")


def agglomerate(
    observations: Observations, between: np.ndarray, config: AhcConfig, least: int = 1, most: int | None = None
) -> np.ndarray:
    """Return the speaker (N,) of each cell, numbered from 0 by first appearance.

    Args:
        observations: with projected embeddings (N, d), each speaker's own spread being the identity.
        between: (d,) variance of the speakers' means.
        config: the affinity.
        least, most: number of speakers; `least` is met as long as there are that many runs of cells.
    """
    if len(observations) == 0:
        return np.zeros(0, dtype=int)
    cells = prepare(observations, between, config)
    labels = cut_into_runs(cells)
    block = ((observations.starts - observations.starts[0]) // BLOCK).astype(int)
    if block[-1] > 0:
        for b in np.unique(block):
            inside = np.flatnonzero(block == b)
            labels[inside] = merge(cells, relabel(labels[inside]), inside, max(least, BLOCK_CLUSTERS), -1) + inside[0]
    everything = np.arange(len(labels))
    labels = dissolve(cells, merge(cells, relabel(labels), everything, least, -1), least)
    if most is not None:
        labels = merge(cells, labels, everything, least, most)
    return relabel(labels)


# Details


class Cells(NamedTuple):
    """All that the affinity of cells depends on."""

    times: np.ndarray
    """(N,) seconds, of their middles."""
    sums: np.ndarray
    """(N, d) weighted embeddings."""
    azimuths: np.ndarray
    noises: np.ndarray
    between: np.ndarray
    logdets: np.ndarray
    """(N + 1,) log determinant in the evidence of so many cells."""
    embedding_weight: float
    location_weight: float
    most_penalty: float
    threshold: float
    motion: Motion
    stationary: bool


def prepare(observations: Observations, between: np.ndarray, config: AhcConfig) -> Cells:
    between = np.asarray(between, dtype=float)
    counts = config.embedding_weight * np.arange(len(observations) + 1)
    motion, azimuths = config.motion, np.asarray(observations.azimuths, dtype=float)
    if config.location == "none":
        azimuths = np.full(len(observations), np.nan)
    still = config.location == "stationary"
    return Cells(
        (observations.starts + observations.ends) / 2,
        config.embedding_weight * observations.embeddings.astype(float),
        azimuths,
        np.maximum(observations.variances, motion.noise).astype(float),
        between,
        np.log1p(counts[:, None] * between).sum(axis=1),
        float(config.embedding_weight),
        float(config.location_weight),
        float(config.most_penalty),
        float(config.threshold),
        Motion(0.0 if still else motion.diffusion, 0.0 if still else motion.jump_rate, motion.stray),
        still,
    )


def relabel(labels: np.ndarray) -> np.ndarray:
    """Number clusters from 0 by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


@numba.njit(cache=True, nogil=True)
def voice_evidence(cells: Cells, count: int, total: np.ndarray) -> float:
    """Return the log evidence of `count` cells of one speaker with the sum `total` (d,), as plda.speaker_evidence."""
    squares = 0.0
    for d in range(len(total)):
        phi = cells.between[d]
        squares += phi * total[d] * total[d] / (1 + cells.embedding_weight * count * phi)
    return 0.5 * (squares - cells.logdets[count])


@numba.njit(cache=True, nogil=True)
def cut_into_runs(cells: Cells) -> np.ndarray:
    """Return the run (N,) of each cell: the most likely cut if every run had a speaker and a track of its own."""
    N = len(cells.times)
    best = np.full(N + 1, -np.inf)
    best[0] = 0.0
    start = np.zeros(N + 1, dtype=np.int64)
    for i in range(N):
        total = np.zeros(len(cells.between))
        for j in range(i, min(i + LONGEST_RUN, N)):
            if j > i and cells.times[j] - cells.times[j - 1] > LONGEST_GAP:
                break
            total += cells.sums[j]
            run = slice(i, j + 1)
            located = evidence(cells.times[run], cells.azimuths[run], cells.noises[run], cells.motion)
            score = best[i] + voice_evidence(cells, j + 1 - i, total) + cells.location_weight * located
            if score > best[j + 1]:
                best[j + 1], start[j + 1] = score, i
    labels = np.zeros(N, dtype=np.int64)
    end = N
    while end > 0:
        labels[start[end] : end] = start[end]
        end = start[end]
    return labels


class Clusters(NamedTuple):
    """K clusters of the N cells, which are merged in place."""

    counts: np.ndarray
    """(K,) cells."""
    sums: np.ndarray
    """(K, d) weighted embeddings."""
    spectra: np.ndarray
    """(K, DIRECTIONS) log density of the azimuths for each direction of a speaker who never moves."""
    first: np.ndarray
    """(K,) first cell, or -1 once the cluster is part of another."""
    following: np.ndarray
    """(N,) next cell of the same cluster, or -1."""
    voices: np.ndarray
    """(K,) evidence of the embeddings."""
    places: np.ndarray
    """(K,) evidence of the azimuths."""


@numba.njit(cache=True, nogil=True)
def gather(cells: Cells, labels: np.ndarray, inside: np.ndarray) -> Clusters:
    """Return the clusters that have labels 0 .. K-1 (M,) in the cells `inside` (M,)."""
    K = labels.max() + 1
    clusters = Clusters(
        np.zeros(K, dtype=np.int64),
        np.zeros((K, len(cells.between))),
        np.zeros((K, DIRECTIONS if cells.stationary else 0)),
        np.full(K, -1),
        np.full(len(cells.times), -1),
        np.zeros(K),
        np.zeros(K),
    )
    for i in range(len(inside) - 1, -1, -1):
        n, k = inside[i], labels[i]
        clusters.counts[k] += 1
        clusters.sums[k] += cells.sums[n]
        if cells.stationary:
            add_directions(cells, n, clusters.spectra[k])
        clusters.following[n], clusters.first[k] = clusters.first[k], n
    for k in range(K):
        weigh(cells, clusters, k)
    return clusters


@numba.njit(cache=True, nogil=True)
def weigh(cells: Cells, clusters: Clusters, k: int) -> None:
    """Compute the evidence of a cluster by itself."""
    clusters.voices[k] = voice_evidence(cells, clusters.counts[k], clusters.sums[k])
    if cells.stationary:
        clusters.places[k] = log_mean_exp(clusters.spectra[k])
    else:
        clusters.places[k] = joint_evidence(cells, clusters.following, clusters.first[k], -1)


@numba.njit(cache=True, nogil=True)
def affinity(cells: Cells, clusters: Clusters, a: int, b: int) -> float:
    """Return by how much likelier one speaker is than two, as a weighted log ratio."""
    voice = voice_evidence(cells, clusters.counts[a] + clusters.counts[b], clusters.sums[a] + clusters.sums[b])
    voice -= clusters.voices[a] + clusters.voices[b]
    if cells.location_weight == 0:
        return voice
    if cells.stationary:
        place = log_mean_exp(clusters.spectra[a] + clusters.spectra[b])
    else:
        place = joint_evidence(cells, clusters.following, clusters.first[a], clusters.first[b])
    place -= clusters.places[a] + clusters.places[b]
    return voice + max(cells.location_weight * place, -cells.most_penalty)


@numba.njit(cache=True, nogil=True)
def joint_evidence(cells: Cells, following: np.ndarray, a: int, b: int) -> float:
    """Return the log density of the azimuths of two clusters as one track; a and b are their first cells, or -1."""
    total, track = 0.0, UNSEEN
    while a >= 0 or b >= 0:
        if b < 0 or 0 <= a < b:
            n, a = a, following[a]
        else:
            n, b = b, following[b]
        log_density, track = follow(track, cells.times[n], cells.azimuths[n], cells.noises[n], cells.motion)
        total += log_density
    return total


@numba.njit(cache=True, nogil=True)
def add_directions(cells: Cells, n: int, logs: np.ndarray) -> None:
    """Add to `logs` (DIRECTIONS,) the log density of a cell's azimuth for each direction of its speaker."""
    if math.isnan(cells.azimuths[n]):
        return
    stray = cells.motion.stray
    for a in range(DIRECTIONS):
        deviation = wrap(cells.azimuths[n] - 2 * math.pi * a / DIRECTIONS)
        logs[a] += math.log((1 - stray) * wrapped_normal(deviation, cells.noises[n]) + stray * UNIFORM)


@numba.njit(cache=True, nogil=True)
def log_mean_exp(values: np.ndarray) -> float:
    highest = values.max()
    return highest + math.log(np.exp(values - highest).mean())


@numba.njit(cache=True, nogil=True)
def merge(cells: Cells, labels: np.ndarray, inside: np.ndarray, least: int, most: int) -> np.ndarray:
    """Merge the clusters that have labels 0 .. K-1 (M,) in the cells `inside` (M,), and return the new labels.

    The two of the greatest affinity come first, as long as that is above the threshold and there are more than `least`
    clusters; at most `most` are left where that is not below 0.
    """
    clusters = gather(cells, labels, inside)
    K = left = len(clusters.counts)
    affinities = np.full((K, K), -np.inf)
    for a in range(K):
        for b in range(a):
            affinities[a, b] = affinities[b, a] = affinity(cells, clusters, a, b)
    partners, best = np.zeros(K, dtype=np.int64), np.full(K, -np.inf)
    for a in range(K):
        find_partner(affinities, partners, best, a)
    part_of = np.arange(K)
    while left > max(least, 1):
        a = best.argmax()
        if best[a] <= cells.threshold and not 0 <= most < left:
            break
        a, b = min(a, partners[a]), max(a, partners[a])
        part_of[b], left = a, left - 1
        join(cells, clusters, a, b)
        affinities[b], affinities[:, b], best[b] = -np.inf, -np.inf, -np.inf
        for c in np.flatnonzero(clusters.first >= 0):
            if c == a:
                continue
            affinities[a, c] = affinities[c, a] = affinity(cells, clusters, a, c)
            if partners[c] == a or partners[c] == b:
                find_partner(affinities, partners, best, c)
            elif affinities[a, c] > best[c]:
                partners[c], best[c] = a, affinities[a, c]
        find_partner(affinities, partners, best, a)
    for k in range(K):  # a cluster is part of one before it
        part_of[k] = part_of[part_of[k]]
    return part_of[labels]


@numba.njit(cache=True, nogil=True)
def find_partner(affinities: np.ndarray, partners: np.ndarray, best: np.ndarray, a: int) -> None:
    partners[a] = affinities[a].argmax()
    best[a] = affinities[a, partners[a]]


@numba.njit(cache=True, nogil=True)
def join(cells: Cells, clusters: Clusters, a: int, b: int) -> None:
    """Make cluster b part of cluster a."""
    clusters.counts[a] += clusters.counts[b]
    clusters.sums[a] += clusters.sums[b]
    clusters.spectra[a] += clusters.spectra[b]
    clusters.first[a] = interleave(clusters.following, clusters.first[a], clusters.first[b])
    clusters.first[b] = -1
    weigh(cells, clusters, a)


@numba.njit(cache=True, nogil=True)
def interleave(following: np.ndarray, a: int, b: int) -> int:
    """Join two chains of cells in the order of time, and return the first cell."""
    first = last = min(a, b)
    a, b = following[first], max(a, b)
    while a >= 0 and b >= 0:
        following[last], last = min(a, b), min(a, b)
        a, b = following[last], max(a, b)
    following[last] = max(a, b)
    return first


def dissolve(cells: Cells, labels: np.ndarray, least: int) -> np.ndarray:
    """Give each cell of small clusters to the best of the others."""
    labels = relabel(labels)
    counts = np.bincount(labels)
    large = counts >= SMALL
    large[np.argsort(-counts, kind="stable")[: max(least, 1)]] = True
    if large.all():
        return labels
    small = ~large[labels]
    numbers = (np.cumsum(large) - 1)[labels]
    numbers[small] = large.sum() + np.arange(small.sum())
    return relabel(adopt(cells, numbers, large.sum()))


@numba.njit(cache=True, nogil=True)
def adopt(cells: Cells, labels: np.ndarray, large: int) -> np.ndarray:
    """Give the cells that are clusters of their own, from number `large`, to the best of those before."""
    clusters = gather(cells, labels, np.arange(len(labels)))
    adopted = labels.copy()
    for n in np.flatnonzero(labels >= large):
        best = -np.inf
        for k in range(large):
            value = affinity(cells, clusters, k, labels[n])
            if value > best:
                best, adopted[n] = value, k
    return adopted
