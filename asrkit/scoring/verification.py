"""How well scores tell whether two recordings are of the same speaker."""

import numpy as np


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Return the share of errors at the threshold where misses are as frequent as false alarms.

    Args:
        scores: (N,) of pairs, higher where the speakers seem the same.
        same: (N,) booleans, whether they are; both must occur.
    """
    misses, false_alarms = _error_rates(scores, same)
    crossing = int(np.argmax(misses >= false_alarms))  # the first threshold with at least as many misses
    before, after = (misses - false_alarms)[[crossing - 1, crossing]]
    share = -before / (after - before)
    return float(misses[crossing - 1] + share * (misses[crossing] - misses[crossing - 1]))


def minimum_cost(scores: np.ndarray, same: np.ndarray, prior: float = 0.05) -> float:
    """Return the detection cost at the best threshold, where `prior` of the pairs are of the same speaker.

    1 is what answering always the same costs (NIST speaker recognition evaluations, costs of errors 1).
    """
    misses, false_alarms = _error_rates(scores, same)
    return float((prior * misses + (1 - prior) * false_alarms).min() / min(prior, 1 - prior))


# Details


def _error_rates(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rates of misses and of false alarms at thresholds (one below all scores, then above each in turn)."""
    order = np.argsort(scores, kind="stable")
    scores, same = np.asarray(scores)[order], np.asarray(same, bool)[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # equal scores are on one side of a threshold
    misses = np.append(0, np.cumsum(same)[last]) / same.sum()
    false_alarms = 1 - np.append(0, np.cumsum(~same)[last]) / (~same).sum()
    return misses, false_alarms
