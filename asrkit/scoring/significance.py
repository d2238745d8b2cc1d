"""How far a word error rate, or the difference of two, could be chance: bootstrap and matched-pairs tests.

All functions take error counts and reference words of blocks that are independent of each other: utterances, or
better speakers where several utterances share one (`sum_blocks`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

REPLICATIONS = 10_000
DRAWS_AT_ONCE = 2_000_000  # bounds the memory of one batch of replications to a few tens of MB


@dataclass(frozen=True)
class Difference:
    """How system B differs from system A on the same references; rates in points of WER (errors per 100 words).

    `difference` is WER(B) - WER(A): below zero, B is better. `interval` is its 95% bootstrap interval;
    `probability_of_improvement` the share of replications in which B makes fewer errors, ties counting half;
    `p_value` the two-sided matched-pairs probability of a difference at least as large if both were equally good.
    """

    difference: float
    interval: tuple[float, float]
    probability_of_improvement: float
    p_value: float


def sum_blocks(counts: np.ndarray, blocks: Sequence[str]) -> np.ndarray:
    """Sum the counts (N,) of utterances over equal names in `blocks` (N,); return (B,) in the order of the names."""
    names, index = np.unique(np.asarray(blocks), return_inverse=True)
    return np.bincount(index, weights=counts, minlength=len(names))


def rate_interval(
    errors: np.ndarray, words: np.ndarray, replications: int = REPLICATIONS, seed: int = 0
) -> tuple[float, float]:
    """Return the 95% bootstrap interval of a rate in percent (Bisani and Ney, ICASSP 2004, percentile method).

    Args:
        errors: (N,) errors, or whatever else is counted, of each block.
        words: (N,) reference words, or whatever else it is counted among, of each block, not all zero.
    """
    rates = [100 * errors[draw].sum(1) / words[draw].sum(1) for draw in _draws(words, replications, seed)]
    return _central_95(np.concatenate(rates))


def compare(
    errors_a: np.ndarray, errors_b: np.ndarray, words: np.ndarray, replications: int = REPLICATIONS, seed: int = 0
) -> Difference:
    """Compare system B with system A by the paired bootstrap (Bisani and Ney 2004) and by matched pairs.

    Args:
        errors_a: (N,) errors of system A in each block.
        errors_b: (N,) errors of system B in the same blocks.
        words: (N,) reference words of each block, not all zero.
    """
    change = errors_b - errors_a  # (N,)
    replicas = [100 * change[draw].sum(1) / words[draw].sum(1) for draw in _draws(words, replications, seed)]
    changes = np.concatenate(replicas)  # (R,)
    return Difference(
        difference=float(100 * change.sum() / words.sum()),
        interval=_central_95(changes),
        probability_of_improvement=float(np.mean(changes < 0) + 0.5 * np.mean(changes == 0)),
        p_value=matched_pairs_p(change),
    )


def matched_pairs_p(change: np.ndarray) -> float:
    """Return the two-sided p-value of the matched-pairs test (Gillick and Cox, ICASSP 1989) on differences (N,).

    The segments of the paper are here the blocks, which need no choice of a boundary between errors; the statistic
    mean / (standard deviation / sqrt(N)) is taken as normal, so N should be a few dozen at least.
    """
    if len(change) < 2 or not np.any(change):
        return 1.0
    standard_error = float(np.std(change, ddof=1)) / math.sqrt(len(change))
    if standard_error == 0:  # every block changed by the same amount
        return 0.0
    return math.erfc(abs(float(np.mean(change))) / standard_error / math.sqrt(2))


def _draws(words: np.ndarray, replications: int, seed: int) -> Iterator[np.ndarray]:
    """Yield block indices (r, N) drawn with replacement, `replications` rows in all, none of them without words."""
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // len(words))
    while replications > 0:
        draw = generator.integers(len(words), size=(min(at_once, replications), len(words)))
        draw = draw[words[draw].sum(1) > 0]
        replications -= len(draw)
        if len(draw):
            yield draw


def _central_95(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
