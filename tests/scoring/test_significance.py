import kaldialign
import numpy as np
import pytest

from asrkit.scoring.significance import compare, matched_pairs_p, rate_interval, sum_blocks


def test_interval_covers_the_true_rate_95_times_in_100():
    generator = np.random.default_rng(1)
    rate, sets = 0.1, 300
    covered = 0
    for seed in range(sets):
        words = generator.integers(5, 15, size=200)
        errors = generator.binomial(words, rate)
        low, high = rate_interval(errors, words, replications=500, seed=seed)
        covered += low <= 100 * rate <= high
    assert 0.91 <= covered / sets <= 0.985  # four standard errors of 300 draws of 0.95


def test_interval_agrees_with_kaldialign():
    generator = np.random.default_rng(2)
    refs = [["a"] * length for length in generator.integers(3, 12, size=300)]
    hyps = [[word if generator.random() > 0.15 else "b" for word in ref] for ref in refs]
    errors = np.array([ref.count("a") - hyp.count("a") for ref, hyp in zip(refs, hyps, strict=True)])
    theirs = kaldialign.bootstrap_wer_ci(refs, hyps)
    low, high = rate_interval(errors, np.array([len(ref) for ref in refs]))
    assert low == pytest.approx(100 * theirs["ci95min"], abs=0.15)
    assert high == pytest.approx(100 * theirs["ci95max"], abs=0.15)


def test_interval_is_wider_over_speakers_whose_utterances_agree():
    speakers = [str(speaker) for speaker in range(10) for _ in range(50)]
    errors = np.array([int(speaker) % 2 for speaker in range(10) for _ in range(50)])  # half of them are hard to hear
    words = np.full(500, 5)
    narrow = rate_interval(errors, words)
    wide = rate_interval(sum_blocks(errors, speakers), sum_blocks(words, speakers))
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_same_seed_same_interval():
    errors, words = np.array([0, 2, 1, 5]), np.array([5, 6, 7, 8])
    assert rate_interval(errors, words, seed=3) == rate_interval(errors, words, seed=3)


def test_utterances_without_words_do_not_divide_by_zero():
    low, high = rate_interval(np.array([1, 0]), np.array([0, 4]))
    assert np.isfinite([low, high]).all()


def test_compare_finds_a_real_improvement_and_no_false_one():
    generator = np.random.default_rng(4)
    words = np.full(500, 10)
    base, better = (generator.binomial(words, rate) for rate in (0.2, 0.15))
    real = compare(base, better, words)
    assert real.difference == pytest.approx(100 * (better.sum() - base.sum()) / 5000)
    assert real.interval[1] < 0 and real.probability_of_improvement > 0.999 and real.p_value < 1e-6
    chance = compare(base, base + np.tile([1, -1, 0, 0, 0], 100), words)  # as many better as worse
    assert chance.difference == 0 and chance.p_value == pytest.approx(1.0)
    assert chance.interval[0] < 0 < chance.interval[1]
    assert chance.probability_of_improvement == pytest.approx(0.5, abs=0.02)


def test_compare_of_equal_systems():
    errors, words = np.array([1, 0, 2]), np.array([3, 3, 3])
    equal = compare(errors, errors, words)
    assert (equal.difference, equal.interval, equal.probability_of_improvement) == (0.0, (0.0, 0.0), 0.5)
    assert equal.p_value == 1.0


def test_matched_pairs_by_hand():
    # mean 0.5, standard deviation sqrt(1/3), so the statistic is 0.5 / sqrt(1/12) = 1.7321 and p = 0.0833.
    assert matched_pairs_p(np.array([0, 1, 0, 1])) == pytest.approx(0.08326, abs=1e-4)
    assert matched_pairs_p(np.array([0, -1, 0, -1])) == pytest.approx(0.08326, abs=1e-4)


def test_matched_pairs_p_is_uniform_under_the_null():
    generator = np.random.default_rng(5)
    found = [matched_pairs_p(generator.integers(-2, 3, size=100)) < 0.05 for _ in range(1000)]
    assert 0.03 < np.mean(found) < 0.075


def test_sum_blocks():
    assert sum_blocks(np.array([1, 2, 3]), ["b", "a", "b"]).tolist() == [2, 4]
