"""VBx: Bayesian hidden Markov model whose states are speakers (Landini et al., CSL 2022, 2012.14952).

Turns last by the clock, each speaker's point in the space of the PLDA has a Gaussian posterior, and all posteriors are
found by variational Bayes. Speakers that explain nothing the others do not lose their share, and go.
"""

import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
from scipy.cluster.vq import kmeans2

from asrkit.diarisation.plda import speaker_evidence

LEAST_PRIOR = 1e-10  # share of a speaker, so that whoever has been lost once can still be found where nobody else fits
MERGES_TRIED = 10  # pairs of speakers in a round
LONGEST_STAY = 1 - 1e-6  # probability of going on in no time at all

Locate = Callable[[np.ndarray], tuple[np.ndarray, float]]
"""Maps posteriors (N, K) to the expected log likelihood (N, K) of where the sound comes from, and a bound's share."""


@dataclass(frozen=True)
class VbxConfig:
    """The hidden Markov model of speakers."""

    embedding_weight: float = 0.1
    """Independent observations that the embedding of one cell counts for (Fa)."""
    speaker_weight: float = 1.0
    """Weight of a speaker's prior; above 1 there are fewer speakers (Fb)."""
    turn_rate: float = 0.24
    """Chances to change speakers, a second."""
    iterations: int = 20
    """Most rounds."""
    tolerance: float = 0.01
    """Rise of the bound at which rounds end."""
    least_seconds: float = 1.0
    """Speakers with less speech go."""

    def __post_init__(self) -> None:
        if min(self.embedding_weight, self.speaker_weight, self.turn_rate) <= 0:
            raise ValueError("embedding_weight, speaker_weight and turn_rate must be above 0")
        if self.iterations < 1 or min(self.tolerance, self.least_seconds) < 0:
            raise ValueError("iterations must be above 0, and tolerance and least_seconds not below")


@dataclass(frozen=True)
class VbxResult:
    """Who speaks in each cell."""

    labels: np.ndarray
    """(N,) numbered from 0 by first appearance."""
    posteriors: np.ndarray
    """(N, K) probability of each speaker, in the order of labels."""
    bounds: tuple[float, ...]
    """Lower bound of the log evidence after each round."""

    @property
    def bound(self) -> float:
        return self.bounds[-1] if self.bounds else -math.inf


def vbx(
    embeddings: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    between: np.ndarray,
    labels: np.ndarray | None = None,
    config: VbxConfig | None = None,
    locate: Locate | None = None,
) -> VbxResult:
    """Cluster cells by who speaks.

    Args:
        embeddings: (N, d) projected, cells in order of time.
        starts: (N,) seconds.
        ends: (N,) seconds.
        between: (d,) variance of the speakers.
        labels: (N,) clusters to start from, rather too many than too few; by default those of `overcluster`.
        config: of the model.
        locate: tells who is likely to speak from where the sound comes, given posteriors of who speaks.
    """
    config = config or VbxConfig()
    if labels is None:
        labels = overcluster(embeddings)
    posteriors = np.eye(labels.max(initial=-1) + 1)[labels]
    prior = np.full(posteriors.shape[1], 1 / max(posteriors.shape[1], 1))
    durations = ends - starts
    stays = stay_probabilities((starts + ends) / 2, config.turn_rate)
    bounds: list[float] = []
    for _ in range(config.iterations if len(embeddings) else 0):
        kept = durations @ posteriors >= min(config.least_seconds, (durations @ posteriors).max())
        posteriors, prior = posteriors[:, kept], np.maximum(prior[kept], LEAST_PRIOR)
        scores, divergence = _embedding_scores(embeddings, posteriors, between, config)
        bound = -config.speaker_weight * divergence
        if locate:
            location_scores, location_bound = locate(posteriors)
            scores += location_scores
            bound += location_bound
        posteriors, entries, evidence = forward_backward(scores, stays, prior / prior.sum())
        prior = entries / entries.sum()
        bounds.append(evidence + bound)
        if len(bounds) > 1 and bounds[-1] - bounds[-2] < config.tolerance and kept.all():
            break
    posteriors = posteriors[:, list(dict.fromkeys(posteriors.argmax(axis=1)))] if len(posteriors) else posteriors
    return VbxResult(posteriors.argmax(axis=1) if len(posteriors) else labels, posteriors, tuple(bounds))


def merge_speakers(
    fit: Callable[[np.ndarray], VbxResult],
    found: VbxResult,
    embeddings: np.ndarray,
    between: np.ndarray,
    config: VbxConfig,
    least: int = 1,
    most: int | None = None,
    worth: Callable[[VbxResult], float] = operator.attrgetter("bound"),
) -> VbxResult:
    """Merge speakers as long as the worth rises or they are more than `most`; `fit` runs the model from labels (N,).

    Rounds of variational Bayes alone seldom end with one speaker less where two that are the same have settled.
    """
    value = worth(found)
    while (speakers := found.posteriors.shape[1]) > least:
        pairs = _closest_speakers(embeddings, found.labels, between, config.embedding_weight)
        trials = [fit(np.where(found.labels == b, a, found.labels)) for a, b in pairs]
        values = [worth(trial) if trial.posteriors.shape[1] >= least else -math.inf for trial in trials]
        best = int(np.argmax(values))
        if values[best] <= value and (most is None or speakers <= most or values[best] == -math.inf):
            break
        found, value = trials[best], values[best]
    return found


def overcluster(embeddings: np.ndarray, clusters: int = 16, seed: int = 0) -> np.ndarray:
    """Return labels (N,) of k-means on embeddings (N, d): more clusters than there are speakers, to start from."""
    clusters = min(clusters, len(np.unique(embeddings, axis=0)))
    if clusters < 2:
        return np.zeros(len(embeddings), int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster that is empty is no harm
        return kmeans2(embeddings, clusters, minit="++", rng=np.random.default_rng(seed))[1]


# Details


def stay_probabilities(times: np.ndarray, turn_rate: float) -> np.ndarray:
    """Return for cells at `times` (N,) seconds how probably a turn goes on from the cell before; 0 for the first."""
    return np.minimum(np.exp(-turn_rate * np.diff(times, prepend=-math.inf)), LONGEST_STAY)


@numba.njit(cache=True, nogil=True)
def forward_backward(scores: np.ndarray, stays: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return posteriors (N, K) of the speakers, turns that each is expected to be drawn for (K,), and log evidence.

    A speaker goes on with probability `stays` (N,), else the next one is drawn from `prior` (K,). So the cost is
    linear in K.

    Args:
        scores: (N, K) log likelihood of each cell.
        stays: (N,), 0 for the first.
        prior: (K,) above 0.
    """
    n_cells, n_speakers = scores.shape
    likelihoods, posteriors = np.empty_like(scores), np.empty_like(scores)
    totals = np.empty(n_cells)
    forward, evidence = prior, 0.0
    for n in range(n_cells):
        best = scores[n].max()
        likelihoods[n] = np.exp(scores[n] - best)
        forward = (stays[n] * forward + (1 - stays[n]) * prior) * likelihoods[n]
        totals[n] = forward.sum()
        forward = forward / totals[n]
        posteriors[n] = forward
        evidence += math.log(totals[n]) + best
    entries = np.zeros(n_speakers)
    backward = np.ones(n_speakers)
    for n in range(n_cells - 1, -1, -1):
        posteriors[n] *= backward
        backward = backward * likelihoods[n] / totals[n]
        drawn = (1 - stays[n]) * prior * backward
        entries += drawn
        backward = stays[n] * backward + drawn.sum()
    return posteriors, entries, evidence


def _closest_speakers(
    embeddings: np.ndarray, labels: np.ndarray, between: np.ndarray, weight: float
) -> list[tuple[int, int]]:
    """Return the few pairs of speakers whose voices are most likely the same."""
    counts = weight * np.bincount(labels).astype(float)
    sums = weight * np.eye(len(counts))[labels].T @ embeddings
    alone = speaker_evidence(counts, sums, between)
    firsts, seconds = np.triu_indices(len(counts), 1)
    gains = speaker_evidence(counts[firsts] + counts[seconds], sums[firsts] + sums[seconds], between)
    gains -= alone[firsts] + alone[seconds]
    best = np.argsort(-gains)[:MERGES_TRIED]
    return list(zip(firsts[best], seconds[best], strict=True))


def _embedding_scores(
    embeddings: np.ndarray, posteriors: np.ndarray, between: np.ndarray, config: VbxConfig
) -> tuple[np.ndarray, float]:
    """Return expected log likelihoods (N, K) under each speaker's posterior, and how far it is from the prior (KL)."""
    weight = config.embedding_weight / config.speaker_weight
    counts, sums = weight * posteriors.sum(axis=0), weight * posteriors.T @ embeddings
    variances = between / (1 + counts[:, None] * between)  # (K, d), of the speaker's point
    means = variances * sums
    scores = config.embedding_weight * (embeddings @ means.T - 0.5 * (means**2 + variances).sum(axis=1))
    ratios = variances / between
    return scores, 0.5 * float((ratios + means**2 / between - 1 - np.log(ratios)).sum())
