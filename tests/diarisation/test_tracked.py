import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from asrkit.diarisation.kalman import MotionConfig
from asrkit.diarisation.observations import Observations
from asrkit.diarisation.tracked import TrackedConfig, grid, location_scores, random_walk, smooth, track_speakers
from asrkit.diarisation.vbx import VbxConfig

BETWEEN = np.array([30.0, 20.0])
CONFIG = TrackedConfig(
    VbxConfig(embedding_weight=0.1, speaker_weight=1.0, tolerance=1e-6), MotionConfig(jump_rate=0.01, stray=0.1)
)


def observe(speakers: np.ndarray, tracks: np.ndarray, spread: float = 1.0, bins: int = 72) -> Observations:
    """Return cells of 0.25 s of `speakers` (N,) at azimuths `tracks` (K, N), with noise."""
    rng = np.random.default_rng(0)
    n = len(speakers)
    points = 3 * np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.2]])[speakers]
    azimuths = tracks[speakers, np.arange(n)] + 0.05 * rng.normal(size=n)
    azimuths = (azimuths + math.pi) % (2 * math.pi) - math.pi
    apart = (grid(bins) - azimuths[:, None] + math.pi) % (2 * math.pi) - math.pi
    return Observations(
        starts=0.25 * np.arange(n),
        ends=0.25 * np.arange(n) + 0.25,
        embeddings=points + spread * rng.normal(size=(n, 2)),
        azimuths=azimuths,
        variances=np.full(n, 0.01),
        spectra=(0.5 * np.exp(-0.5 * (apart / 0.3) ** 2)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def speakers():
    return np.repeat([0, 1, 0, 2, 1, 2, 0, 1, 2, 0], 16)


@pytest.fixture(scope="module")
def seats(speakers):
    return np.array([[0.0], [2.0], [-2.0]]) + np.zeros(len(speakers))


@pytest.mark.parametrize("location", ["stationary", "tracked"])
def test_tracks_by_enumeration(location):
    rng = np.random.default_rng(0)
    cells, bins, shares = 4, 8, np.array([[0.5, 0.0], [1.0, 0.2], [0.0, 1.0], [0.3, 0.7]])
    scores = rng.normal(size=(cells, bins)).astype(np.float32)
    config = TrackedConfig(location=location, motion=MotionConfig(diffusion=0.5, jump_rate=0.1))
    levels, kernels, reaches, jumps = random_walk(np.array([0.0, 0.25, 0.5, 4.5]), bins, config)
    around = np.array([[min((a - b) % bins, (b - a) % bins) for a in range(bins)] for b in range(bins)])
    transitions = [(1 - jumps[level]) * np.append(kernels[level], 0)[around] + jumps[level] / bins for level in levels]
    paths = np.array(list(itertools.product(range(bins), repeat=cells)))
    steps = np.prod([transitions[n][paths[:, n - 1], paths[:, n]] for n in range(1, cells)], axis=0) / bins
    seen = scores[np.arange(cells), paths]  # (paths, N)

    expected, evidence, directions = smooth(scores, shares, levels, kernels, reaches, jumps)

    for k in range(2):
        weights = steps * np.exp(seen @ shares[:, k])
        assert evidence[k] == pytest.approx(np.log(weights.sum()), abs=1e-5)
        np.testing.assert_allclose(expected[:, k], weights @ seen / weights.sum(), atol=1e-5)
        means = weights @ np.exp(1j * grid(bins)[paths]) / weights.sum()
        np.testing.assert_allclose(directions[:, k], means, atol=1e-5)


def test_the_walk_spreads_by_the_clock():
    config = TrackedConfig(motion=MotionConfig(diffusion=0.02, jump_rate=0.01))
    times = np.array([0.0, 0.25, 0.5, 2.5, 6.5])
    levels, kernels, reaches, jumps = random_walk(times, 72, config)
    assert levels[1] == levels[2] != levels[3]
    taps = np.arange(36) * 2 * math.pi / 72
    for level, elapsed in zip(levels[1:], np.diff(times), strict=True):
        assert 2 * kernels[level].sum() - kernels[level, 0] == pytest.approx(1)
        assert 2 * kernels[level] @ taps**2 == pytest.approx(0.02 * elapsed, rel=0.05)
        assert not kernels[level, reaches[level] :].any()
        assert jumps[level] == pytest.approx(1 - math.exp(-0.01 * elapsed))


def test_nobody_moves_where_speakers_are_stationary():
    _, kernels, reaches, jumps = random_walk(np.array([0.0, 1000.0]), 72, TrackedConfig(location="stationary"))
    assert reaches.tolist() == [1, 1]
    assert kernels[:, 0].tolist() == [1, 1]
    assert jumps.max() < 1e-9


def test_scores_are_highest_where_the_sound_comes_from(speakers, seats):
    observations = observe(speakers, seats)
    alone = replace(observations, spectra=np.zeros((len(speakers), 0), np.float32))
    for scores in (location_scores(observations, CONFIG), location_scores(alone, CONFIG)):
        assert scores.shape == (len(speakers), 72)
        apart = grid(72)[scores.argmax(axis=1)] - observations.azimuths
        assert np.abs((apart + math.pi) % (2 * math.pi) - math.pi).max() < math.pi / 72 + 1e-6
        assert scores.min() == pytest.approx(math.log(CONFIG.motion.stray), abs=0.1)
        np.testing.assert_allclose(np.exp(scores).mean(axis=1), 1, atol=0.01)  # a density, against the uniform one


def test_place_tells_voices_apart_that_are_alike(speakers, seats):
    observations = observe(speakers, seats, spread=3.5)
    by_voice = track_speakers(observations, BETWEEN, speakers, replace(CONFIG, location="none"))
    by_both = track_speakers(observations, BETWEEN, speakers, CONFIG)
    assert (by_both.labels == speakers).mean() > 0.98
    assert (by_both.labels == speakers).mean() > (by_voice.labels == speakers).mean()


@pytest.mark.parametrize("spectra", [True, False])
def test_follows_a_walk_across_the_seam(speakers, seats, spectra):
    tracks = seats.copy()
    tracks[0] = 2.8 + np.linspace(0, 0.8, len(speakers))  # past pi
    observations = observe(speakers, tracks)
    if not spectra:
        observations = replace(observations, spectra=np.zeros((len(speakers), 0), np.float32))
    result = track_speakers(observations, BETWEEN, None, CONFIG)
    assert result.labels.tolist() == speakers.tolist()
    apart = (result.azimuths[:, 0] - tracks[0] + math.pi) % (2 * math.pi) - math.pi
    assert np.abs(apart[speakers == 0]).max() < 0.15
    assert np.all((result.azimuths >= -math.pi) & (result.azimuths <= math.pi))


def test_who_changes_seats_is_the_same_speaker(speakers, seats):
    tracks = seats.copy()
    tracks[0, 80:] = -0.9
    result = track_speakers(observe(speakers, tracks), BETWEEN, None, CONFIG)
    assert result.labels.tolist() == speakers.tolist()
    assert result.azimuths[-1, 0] == pytest.approx(-0.9, abs=0.15)


def test_who_is_silent_gets_uncertain(speakers, seats):
    result = track_speakers(observe(speakers, seats), BETWEEN, speakers, CONFIG)
    spoken = result.variances[speakers == 1, 1].max()
    assert result.variances[0, 1] > spoken  # long before the first turn
    assert (result.variances <= math.pi**2 / 3 + 1e-6).all()


def test_the_bound_never_falls(speakers, seats):
    observations = observe(speakers, seats, spread=4.0)
    config = replace(CONFIG, speakers=VbxConfig(embedding_weight=0.1, tolerance=0, least_seconds=0))
    bounds = track_speakers(observations, BETWEEN, np.arange(len(speakers)) // 8 % 5, config).bounds
    assert len(bounds) > 2
    assert np.diff(bounds).min() > -1e-3


def test_without_azimuths_it_is_the_voice_alone(speakers, seats):
    observations = observe(speakers, seats, spread=2.0)
    unseen = replace(observations, azimuths=np.full(len(speakers), np.nan))
    expected = track_speakers(observations, BETWEEN, None, replace(CONFIG, location="none"))
    mono = replace(unseen, variances=unseen.azimuths, spectra=np.zeros((len(speakers), 0), np.float32))
    for result in (track_speakers(o, BETWEEN, None, CONFIG) for o in (unseen, mono)):
        np.testing.assert_array_equal(result.labels, expected.labels)
        np.testing.assert_allclose(result.posteriors, expected.posteriors, atol=1e-4)
        assert result.variances.min() > 3


def test_number_of_speakers(speakers, seats):
    observations = observe(speakers, seats)
    assert track_speakers(observations, BETWEEN, None, CONFIG, most=2).posteriors.shape == (160, 2)
    halves = speakers + 3 * (np.arange(160) >= 80)
    assert track_speakers(observations, BETWEEN, halves, CONFIG).posteriors.shape == (160, 3)


def test_the_same_each_time(speakers, seats):
    first, second = (track_speakers(observe(speakers, seats, spread=3.0), BETWEEN, None, CONFIG) for _ in range(2))
    np.testing.assert_array_equal(first.posteriors, second.posteriors)
    np.testing.assert_array_equal(first.azimuths, second.azimuths)


@pytest.mark.parametrize("cells", [0, 1, 2])
def test_few_cells(speakers, seats, cells):
    result = track_speakers(observe(speakers, seats)[:cells], BETWEEN, None, CONFIG)
    assert result.labels.tolist() == [0] * cells
    assert result.azimuths.shape == result.variances.shape == result.posteriors.shape == (cells, min(cells, 1))


def test_a_lone_speaker(seats):
    result = track_speakers(observe(np.zeros(160, int), seats), BETWEEN, None, CONFIG)
    assert result.labels.tolist() == [0] * 160


@pytest.mark.parametrize("values", [{"location_weight": -1}, {"sharpness": -1}])
def test_values_that_make_no_sense(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        TrackedConfig(**values)
