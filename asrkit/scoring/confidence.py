"""How well the confidences of recognised words tell the right words from the wrong ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asrkit.scoring.wer import GAP, Alignment

SMALLEST = 0.001  # a CTM's last digit: a wrong word of confidence 1 costs a finite number of bits
BINS = 15


def confidence_report(
    alignments: Iterable[Alignment], confidences: Mapping[str, Sequence[float]]
) -> dict[str, Any] | None:
    """Return JSON-ready figures of the recognised words' confidences, utterance -> one a word; None without words.

    "auc" and "ece" are percent, "nce" is at most 1; "auc" and "nce" are None where all words are right or all wrong.
    """
    aligned = list(alignments)
    right = np.array([ref == hyp for one in aligned for ref, hyp in one.pairs if hyp != GAP], dtype=bool)
    if not len(right):
        return None
    confidence = np.array([value for one in aligned for value in confidences.get(one.utterance, ())])
    two_kinds = 0 < right.sum() < len(right)
    return {
        "words": len(right),
        "right": int(right.sum()),
        "auc": 100 * area_under_roc(right, confidence) if two_kinds else None,
        "nce": normalised_cross_entropy(right, confidence) if two_kinds else None,
        "ece": 100 * calibration_error(right, confidence),
    }


def area_under_roc(right: np.ndarray, confidence: np.ndarray) -> float:
    """Return how probably a right word has a higher confidence than a wrong one; ties count half.

    Args:
        right: (N,) booleans, whether each recognised word is right; some are and some are not.
        confidence: (N,) confidences of the words.
    """
    _, value, count = np.unique(confidence, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[value]  # (N,) from 1, the mean of those that are equal
    rights = right.sum()
    return float((rank[right].sum() - rights * (rights + 1) / 2) / (rights * (len(right) - rights)))


def normalised_cross_entropy(right: np.ndarray, confidence: np.ndarray) -> float:
    """Return the share of the uncertainty about which words are right that their confidences remove (NIST's NCE).

    1 is perfect; 0 is as good as giving each word the rate of right words; below 0 is worse than that. The arguments
    are those of `area_under_roc`.
    """
    probability = np.clip(confidence, SMALLEST, 1 - SMALLEST)
    return float(1 - _cross_entropy(right, probability) / _cross_entropy(right, np.full(len(right), right.mean())))


def calibration_error(right: np.ndarray, confidence: np.ndarray, bins: int = BINS) -> float:
    """Return by how much confidence and the rate of right words differ, on average over words.

    Both are taken over the words in each of `bins` equal ranges of confidence (expected calibration error; Guo et al.,
    "On Calibration of Modern Neural Networks", 1706.04599).
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(which, weights=right - confidence)).sum() / len(right))


def _cross_entropy(right: np.ndarray, probability: np.ndarray) -> float:
    return -np.log(np.where(right, probability, 1 - probability)).mean()
