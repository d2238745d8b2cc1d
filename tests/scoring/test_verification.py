"""Error rates of speaker verification, against counting by hand."""

import numpy as np
import pytest

from asrkit.scoring.verification import equal_error_rate, minimum_cost


def counted(scores: np.ndarray, same: np.ndarray) -> list[tuple[float, float]]:
    """Misses and false alarms when all above each threshold are said to be the same."""
    thresholds = [-np.inf, *np.unique(scores)]
    return [(np.mean(scores[same] <= t), np.mean(scores[~same] > t)) for t in thresholds]


def test_perfect_and_useless_scores():
    same = np.array([True, True, False, False, False])
    assert equal_error_rate(np.array([3.0, 2.0, 1.0, 0.0, -1.0]), same) == 0
    assert minimum_cost(np.array([3.0, 2.0, 1.0, 0.0, -1.0]), same) == 0
    assert equal_error_rate(np.zeros(5), same) == pytest.approx(0.5)
    assert minimum_cost(np.zeros(5), same) == pytest.approx(1)
    assert equal_error_rate(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), same) == 1


def test_one_error_of_each_kind():
    scores, same = np.array([5.0, 4.0, 1.0, 0.0, 2.0, 0.5]), np.array([True, True, True, False, False, False])
    assert equal_error_rate(scores, same) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_as_counted(seed):
    rng = np.random.default_rng(seed)
    same = rng.random(60) < 0.3
    scores = np.round(rng.standard_normal(60) + 1.5 * same, 1)  # with ties
    points = counted(scores, same)
    assert minimum_cost(scores, same, 0.05) == pytest.approx(min(0.05 * m + 0.95 * f for m, f in points) / 0.05)
    rate = equal_error_rate(scores, same)
    lower = max(m for m, f in points if m < f)
    upper = min(m for m, f in points if m >= f)
    assert lower - 1e-9 <= rate <= upper + 1e-9
    assert min(f for m, f in points if m < f) + 1e-9 >= rate >= max(f for m, f in points if m >= f) - 1e-9
