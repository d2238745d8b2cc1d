import math

import numpy as np
import pytest

from asrkit.diarisation.kalman import MOST_VARIANCE, MotionConfig, observe, track_evidence, wrap, wrapped_normal

STILL = MotionConfig(diffusion=0.0, jump_rate=0.0, stray=0.0, noise=0.01)
LIVELY = MotionConfig(diffusion=0.02, jump_rate=0.01, stray=0.1, noise=0.01)
BINS = 1440


def wrapped(deviation, variance):
    return sum(np.exp(-0.5 * (deviation + 2 * np.pi * turn) ** 2 / variance) for turn in range(-5, 6)) / np.sqrt(
        2 * np.pi * variance
    )


def on_a_grid(times, azimuths, variances, motion):
    """Return the evidence of a track, by adding up where the speaker may be at every step."""
    grid = 2 * np.pi * np.arange(BINS) / BINS
    density, total, last = np.full(BINS, 1 / (2 * np.pi)), 0.0, None
    for time, azimuth, variance in zip(times, azimuths, np.maximum(variances, motion.noise), strict=True):
        if math.isnan(azimuth):
            continue
        if last is not None:
            if motion.diffusion and time > last:
                step = wrapped(wrap(grid), motion.diffusion * (time - last))
                density = np.fft.ifft(np.fft.fft(density) * np.fft.fft(step / step.sum())).real
            jumped = 1 - math.exp(-motion.jump_rate * (time - last))
            density = (1 - jumped) * density + jumped / (2 * np.pi)
        likelihood = (1 - motion.stray) * wrapped(wrap(azimuth - grid), variance) + motion.stray / (2 * np.pi)
        seen = (density * likelihood).sum() * 2 * np.pi / BINS
        density, total, last = density * likelihood / seen, total + math.log(seen), time
    return total


def both(times, azimuths, motion, variance=0.0025):
    variances = np.full(len(times), variance)
    return track_evidence(times, azimuths, variances, motion), on_a_grid(times, azimuths, variances, motion)


@pytest.mark.parametrize("centre", [0.0, 1.0, math.pi, -3.1])
@pytest.mark.parametrize("diffusion", [0.0, 0.05])
def test_evidence_of_a_walk_is_exact(centre, diffusion):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.0, 1.0, 30))
    azimuths = wrap(centre + np.cumsum(0.1 * rng.normal(size=30)))
    ours, exact = both(times, azimuths, MotionConfig(diffusion, 0.0, 0.0, 0.04))
    assert ours == pytest.approx(exact, abs=1e-3)


SEATED = 0.05 * np.random.default_rng(1).normal(size=40)
MOVED = SEATED + 2.0 * (np.arange(40) >= 20)
STEPS = 0.25 * np.arange(40)


@pytest.mark.parametrize(
    ("times", "azimuths", "within"),
    [
        (STEPS, SEATED, 0.1),
        (STEPS, np.where(np.arange(40) % 7 == 3, 2.0, SEATED), 0.5),  # strays
        (STEPS, np.where(np.arange(40) == 0, 2.0, SEATED), 4.0),  # the first is stray: the hardest
        (STEPS, MOVED, 0.5),
        (STEPS + 10.0 * (np.arange(40) >= 20), MOVED, 0.5),  # moved in silence
        (STEPS + 8.0 * (np.arange(40) // 10), wrap(math.pi + 2.0 * (np.arange(40) // 10 % 2) + SEATED), 1.0),
    ],
)
def test_evidence_of_strays_and_jumps_is_near_the_exact_one(times, azimuths, within):
    motion = MotionConfig(diffusion=0.002, jump_rate=0.003, stray=0.1, noise=0.01)
    ours, exact = both(times, azimuths, motion)
    assert ours == pytest.approx(exact, abs=within)


def test_one_gaussian_stays_behind_after_a_jump():
    """Why the evidence keeps two hypotheses."""
    motion = MotionConfig(diffusion=0.002, jump_rate=0.003, stray=0.1, noise=0.01)
    total, mean, variance = -math.log(2 * math.pi), MOVED[0], 0.01
    for azimuth in MOVED[1:]:
        log_density, mean, variance = observe(mean, variance, 0.25, azimuth, 0.01, *motion_rates(motion))
        total += log_density
    assert total < both(STEPS, MOVED, motion)[1] - 20


def motion_rates(motion):
    return motion.diffusion, motion.jump_rate, motion.stray


def test_the_circle_has_no_seam():
    rng = np.random.default_rng(2)
    times, azimuths = np.arange(25) * 0.5, 0.4 * rng.normal(size=25)
    there = both(times, azimuths, LIVELY)[0]
    for turned in (math.pi, 3.0, -2.9):
        assert both(times, wrap(azimuths + turned), LIVELY)[0] == pytest.approx(there, abs=1e-9)


def test_what_is_not_located_says_nothing():
    times, azimuths = np.arange(8.0), np.array([math.nan, 0.1, math.nan, 0.2, 0.1, math.nan, 0.3, math.nan])
    known = ~np.isnan(azimuths)
    assert both(times, azimuths, LIVELY)[0] == both(times[known], azimuths[known], LIVELY)[0]
    assert both(times[:1], azimuths[:1], LIVELY)[0] == 0.0
    assert both(times[:0], azimuths[:0], LIVELY)[0] == 0.0


def test_simultaneous_azimuths_may_come_in_any_order():
    ours, exact = both(np.zeros(4), np.array([0.1, 0.2, 0.15, 0.05]), STILL)
    assert ours == pytest.approx(exact, abs=1e-6)
    assert ours == pytest.approx(both(np.zeros(4), np.array([0.05, 0.15, 0.2, 0.1]), STILL)[0])


@pytest.mark.parametrize(("gap", "ratio"), [(1, 3.00), (60, 2.62), (600, 1.73), (3600, 0.87), (36000, 0.01)])
def test_the_same_direction_is_worth_less_after_a_while(gap, ratio):
    """One track against two: log 2 pi N(0; 2r + q gap), with r = (5 deg)^2 and q = (1 deg)^2/s, wrapped."""
    motion = MotionConfig(math.radians(1) ** 2, 0.0, 0.0, math.radians(5) ** 2)
    one = both(np.array([0.0, gap]), np.array([1.0, 1.0]), motion)[0]
    assert one + 2 * math.log(2 * math.pi) == pytest.approx(ratio, abs=0.01)


def test_two_azimuths_are_as_likely_of_one_speaker_as_of_two_17_degrees_apart():
    motion = MotionConfig(0.0, 0.0, 0.0, math.radians(5) ** 2)
    one = both(np.zeros(2), np.radians([0.0, 17.4]), motion)[0]
    assert one + 2 * math.log(2 * math.pi) == pytest.approx(0, abs=0.02)


def test_a_jump_costs_no_more_than_its_rate():
    """However far and however well located both seats are."""
    for apart in (1.0, 2.0, 3.0):
        azimuths = apart * (np.arange(40) >= 20)
        motion = MotionConfig(0.0, 0.003, 0.1, 0.01)
        penalty = both(STEPS, 0.0 * STEPS, motion)[0] - both(STEPS, azimuths, motion)[0]
        assert 0 < penalty < -math.log(0.003 * 0.25 / 20) + 6


@pytest.mark.parametrize("variance", [1e-4, 0.01, 0.3, 0.99, 1.0, 3.3, 13.0, 20.0])
def test_wrapped_density(variance):
    deviations = np.linspace(-math.pi, math.pi, 33, endpoint=False)
    ours = [wrapped_normal(deviation, variance) for deviation in deviations]
    assert ours == pytest.approx(wrapped(deviations, variance), rel=1e-4, abs=1e-12)


def test_a_filter_of_one_gaussian_keeps_its_moments():
    """Against the mixture of what may have happened, on a grid."""
    mean, variance, elapsed, azimuth, noise, diffusion, jump_rate, stray = 3.0, 0.05, 2.0, -3.0, 0.02, 0.01, 0.05, 0.2
    deviations = np.linspace(-math.pi, math.pi, 20001)
    jumped = 1 - math.exp(-jump_rate * elapsed)
    stayed = (1 - jumped) * wrapped(deviations, variance + diffusion * elapsed)
    seen = wrapped(wrap(azimuth - mean - deviations), noise)
    mixture = stayed * ((1 - stray) * seen + stray / (2 * math.pi)) + jumped / (2 * math.pi) * seen
    density = np.trapezoid(mixture, deviations)
    shift = np.trapezoid(mixture * deviations, deviations) / density
    spread = np.trapezoid(mixture * (deviations - shift) ** 2, deviations) / density
    found = observe(mean, variance, elapsed, azimuth, noise, diffusion, jump_rate, stray)
    assert found == pytest.approx((math.log(density), wrap(mean + shift), spread), abs=1e-3)


def test_nothing_is_known_of_the_place_after_long_silence():
    _, _, variance = observe(0.0, 0.01, 1e6, math.pi / 2, 1e9, 0.02, 0.0, 0.0)
    assert variance == pytest.approx(MOST_VARIANCE, rel=1e-3)


@pytest.mark.parametrize("bad", [{"diffusion": -1.0}, {"jump_rate": -1.0}, {"noise": 0.0}, {"stray": 1.0}])
def test_impossible_motion(bad):
    with pytest.raises(ValueError):
        MotionConfig(**bad)
