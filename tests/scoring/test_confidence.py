import math

import numpy as np
import pytest

from asrkit.scoring.confidence import (
    area_under_roc,
    calibration_error,
    confidence_report,
    normalised_cross_entropy,
)
from asrkit.scoring.wer import align

RIGHT = np.array([True, True, False, True])


@pytest.mark.parametrize(
    ("confidence", "area"),
    [
        ([0.9, 0.8, 0.1, 0.2], 1.0),
        ([0.1, 0.2, 0.9, 0.3], 0.0),
        ([0.9, 0.5, 0.5, 0.1], 0.5),  # of three pairs one is won, one lost and one equal
        ([0.5, 0.5, 0.5, 0.5], 0.5),
        ([0.9, 0.8, 0.3, 0.2], 2 / 3),
    ],
)
def test_area_under_roc(confidence, area):
    assert area_under_roc(RIGHT, np.array(confidence)) == pytest.approx(area)


def test_area_under_roc_is_the_share_of_pairs_in_order():
    generator = np.random.default_rng(0)
    right, confidence = generator.random(200) < 0.8, generator.integers(20, size=200) / 20
    higher = confidence[right][:, None] - confidence[~right]
    assert area_under_roc(right, confidence) == pytest.approx(np.mean((higher > 0) + 0.5 * (higher == 0)))


def test_normalised_cross_entropy():
    assert normalised_cross_entropy(RIGHT, np.full(4, 0.75)) == pytest.approx(0)
    assert normalised_cross_entropy(RIGHT, np.array([1.0, 1.0, 0.0, 1.0])) > 0.99
    assert normalised_cross_entropy(RIGHT, np.array([1.0, 1.0, 1.0, 1.0])) < -1
    half = normalised_cross_entropy(RIGHT, np.full(4, 0.5))  # a bit a word, of 0.811 bits of uncertainty
    assert half == pytest.approx(1 - 1 / (-0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)))


def test_calibration_error():
    assert calibration_error(RIGHT, np.full(4, 0.75)) == 0
    assert calibration_error(RIGHT, np.full(4, 1.0)) == pytest.approx(0.25)
    # 0.5 and 0.51 share a range, with one right of two; 0.1 is right, 0.99 too.
    right = np.array([True, False, True, True])
    error = calibration_error(right, np.array([0.5, 0.51, 0.1, 0.99]))
    assert error == pytest.approx((abs(1 - 1.01) + 0.9 + 0.01) / 4)


def test_report():
    alignments = [align("1", "the cat sat", "the bat sat down"), align("2", "yes", "yes"), align("3", "no", "")]
    confidences = {"1": [0.9, 0.3, 0.8, 0.2], "2": [1.0]}  # the words "bat" and "down" are wrong
    figures = confidence_report(alignments, confidences)
    assert (figures["words"], figures["right"], figures["auc"]) == (5, 3, 100.0)
    assert figures["ece"] == pytest.approx(100 * (0.1 + 0.3 + 0.2 + 0.2) / 5) and 0 < figures["nce"] < 1
    everything_right = confidence_report(alignments[1:], confidences)
    assert (everything_right["auc"], everything_right["nce"], everything_right["ece"]) == (None, None, 0.0)
    assert confidence_report(alignments[2:], confidences) is None
