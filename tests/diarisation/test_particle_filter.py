import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from asrkit.diarisation.kalman import MOST_VARIANCE, observe
from asrkit.diarisation.observations import Observations
from asrkit.diarisation.particle_filter import (
    OnlineFilter,
    ParticleConfig,
    Speakers,
    filter_speakers,
    known_speakers,
    resample,
)
from asrkit.diarisation.plda import speaker_evidence

BETWEEN = np.array([6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1])
STEP = 0.25


def cells(labels, places, rng, gap=0.0, noise=0.05, stray=0.0):
    """Cells of speakers `labels` (N,) at azimuths `places` (N,), one after the other, with a pause after each turn."""
    labels = np.asarray(labels)
    centres = 1.5 * np.random.default_rng(0).normal(size=(8, len(BETWEEN))) * np.sqrt(BETWEEN)
    pauses = gap * np.cumsum(np.diff(labels, prepend=labels[:1]) != 0)
    starts = STEP * np.arange(len(labels)) + pauses
    azimuths = np.asarray(places) + noise * rng.normal(size=len(labels))
    azimuths = np.where(rng.random(len(labels)) < stray, rng.uniform(-np.pi, np.pi, len(labels)), azimuths)
    return Observations(
        starts,
        starts + STEP,
        (centres[labels] + rng.normal(size=(len(labels), len(BETWEEN)))).astype(np.float32),
        (azimuths + np.pi) % (2 * np.pi) - np.pi,
        np.full(len(labels), noise**2),
        np.zeros((len(labels), 0), np.float32),
    )


def wrong(found, labels):
    """Return the share of cells that are wrong, whatever the speakers' numbers."""
    counts = np.zeros((found.max() + 1, labels.max() + 1))
    np.add.at(counts, (found, labels), 1)
    return 1 - counts[linear_sum_assignment(-counts)].sum() / len(labels)


def meeting(rng, turns=20, speakers=3, speed=0.0, **options):
    """Return the labels and cells of a meeting of speakers in turns of 2 seconds, who walk `speed` radians a second."""
    order = np.cumsum(rng.integers(1, speakers, turns)) % speakers
    order = np.unique(order, return_inverse=True)[1]
    labels = np.repeat(order, 8)
    labels = np.array([list(dict.fromkeys(labels)).index(k) for k in labels])
    places = 2 * np.pi * labels / speakers + speed * STEP * np.arange(len(labels))
    return labels, cells(labels, places, rng, **options)


@pytest.fixture
def tiny():
    rng = np.random.default_rng(3)
    observed = cells([0, 0, 1, 0, 2], [3.1, -3.1, 0.5, 3.0, 1.5], rng, gap=0.5, noise=0.3)
    observed.azimuths[3] = math.nan
    return observed


CONFIG = ParticleConfig(embedding_weight=0.2)  # cells are independent here
EXACT = replace(CONFIG, birth=0.1, alike=0, particles=10_000)


def partitions(length, known=0, most=math.inf):
    """Every way to give `length` cells to `known` speakers and new ones, numbered by first appearance."""
    if not length:
        yield ()
        return
    for first in range(min(known + 1, most)):
        for rest in partitions(length - 1, max(known, first + 1), most):
            yield first, *rest


def joint(labels, observed, config, known=None, births=True):
    """Return log p(labels, observations), but for the density of each embedding on its own."""
    motion, moves = config.motion, config.location == "kalman"
    speakers = 0 if known is None else len(known.counts)
    total, last, before = 0.0, None, None
    tracks = {}
    for n, k in enumerate(labels):
        time = (observed.starts[n] + observed.ends[n]) / 2
        renewal = 1.0 if n == 0 else 1 - math.exp(-(time - before) / config.turn)
        before = time
        drawn = (1 - config.birth * births) / speakers if k < speakers else (config.birth if speakers else 1.0)
        total += math.log(renewal * drawn + (1 - renewal) * (k == last))
        last, speakers = k, max(speakers, k + 1)
        azimuth, noise = observed.azimuths[n], max(observed.variances[n], motion.noise)
        if config.location == "none" or math.isnan(azimuth):
            continue
        if k not in tracks:
            density = -math.log(2 * math.pi)
            mean, variance = azimuth, (1 - motion.stray) * noise + motion.stray * MOST_VARIANCE
        else:
            mean, variance, since = tracks[k]
            rates = (motion.diffusion * moves, motion.jump_rate * moves, motion.stray)
            density, mean, variance = observe(mean, variance, time - since, azimuth, noise, *rates)
        tracks[k] = mean, variance, time
        total += config.location_weight * density
    labels = np.array(labels)
    for k in range(speakers):
        mine = labels == k
        count, sums = mine.sum(), observed.embeddings[mine].sum(axis=0)
        if known is not None and k < len(known.counts):
            total -= speaker_evidence(*(config.embedding_weight * x for x in (known.counts[k], known.sums[k])), BETWEEN)
            count, sums = count + known.counts[k], sums + known.sums[k]
        total += speaker_evidence(config.embedding_weight * count, config.embedding_weight * sums, BETWEEN)
    return total


def exact(observed, config, **options):
    """Return every labelling with its posterior probability."""
    known = options.get("known")
    speakers = 0 if known is None else len(known.counts)
    most = math.inf if options.get("births", True) else speakers
    labellings = list(partitions(len(observed), speakers, most))
    scores = np.array([joint(labels, observed, config, **options) for labels in labellings])
    return np.array(labellings), np.exp(scores - np.logaddexp.reduce(scores))


@pytest.mark.parametrize("location", ["none", "stationary", "kalman"])
def test_particles_are_all_labellings_where_there_is_room(tiny, location):
    config = replace(EXACT, location=location)
    labellings, posterior = exact(tiny, config)
    online = OnlineFilter(BETWEEN, config)
    online.accept(tiny)
    found = np.array(online._histories(len(tiny))).T
    weights = {
        tuple(labels): weight for labels, weight in zip(found, np.exp(online._particles.log_weights), strict=True)
    }
    assert len(found) == len(weights) == len(labellings) == 52
    assert [weights[tuple(labels)] for labels in labellings] == pytest.approx(posterior, rel=1e-3)


def test_decisions_are_the_posterior_of_each_cell(tiny):
    known = Speakers(np.array([3, 2]), np.array([[3.0] * 10, [-2.0] * 10]))
    labellings, posterior = exact(tiny, EXACT, known=known, births=False)
    labels, probabilities = filter_speakers(tiny, BETWEEN, EXACT, known, births=False)
    marginals = np.array([posterior @ (labellings == k) for k in range(2)])  # (K, N)
    assert labels.tolist() == marginals.argmax(axis=0).tolist()
    assert probabilities == pytest.approx(marginals.max(axis=0), rel=1e-3)


def test_a_few_particles_find_the_best_labelling(tiny):
    labellings, posterior = exact(tiny, EXACT)
    online = OnlineFilter(BETWEEN, replace(EXACT, particles=8))
    online.accept(tiny)
    best = np.array(online._histories(len(tiny)))[:, online._particles.log_weights.argmax()]
    assert best.tolist() == labellings[posterior.argmax()].tolist()


def test_resampling_is_unbiased_and_without_duplicates():
    rng = np.random.default_rng(0)
    log_weights = np.log(rng.dirichlet(np.full(12, 0.3)))
    log_weights[4] = -np.inf
    log_weights -= np.logaddexp.reduce(log_weights)
    mean = np.zeros(12)
    for uniform in (np.arange(1000) + 0.5) / 1000:
        chosen, weights = resample(log_weights, 5, uniform)
        assert len(set(chosen)) == len(chosen) == 5
        assert np.exp(weights).sum() == pytest.approx(1)
        mean[chosen] += np.exp(weights) / 1000
    assert mean == pytest.approx(np.exp(log_weights), abs=1e-3)
    heavy = np.flatnonzero(log_weights > weights.min() + 1e-6)
    assert 0 < len(heavy) < 5 and set(heavy) <= set(chosen)
    assert weights[np.isin(chosen, heavy)] == pytest.approx(log_weights[heavy])


def test_resampling_keeps_all_that_there_is_room_for_and_survives_rounding():
    chosen, weights = resample(np.array([-1.0, -np.inf, -3.0]), 5, 0.5)
    assert chosen.tolist() == [0, 2] and np.exp(weights).sum() == pytest.approx(1)
    light = np.linspace(-45, -44, 1000)  # in sum below the rounding of 1
    for uniform in (0.0, 0.3, 0.999):
        chosen, _ = resample(np.concatenate([[0.0], light]), 50, uniform)
        assert len(chosen) == 50 and np.diff(chosen).max() < 60


@pytest.mark.parametrize("options", [{}, {"speed": 0.3}, {"gap": 2.0}, {"stray": 0.1}, {"speakers": 5, "turns": 30}])
def test_speakers_are_found_from_scratch(options):
    labels, observed = meeting(np.random.default_rng(1), **options)
    found, probabilities = filter_speakers(observed, BETWEEN, CONFIG)
    assert np.mean(found != labels) < 0.04
    assert (probabilities > 0).all() and (probabilities <= 1).all()


def test_place_tells_voices_apart_that_are_alike():
    labels, observed = meeting(np.random.default_rng(1))
    observed.embeddings[:] = np.random.default_rng(2).normal(size=observed.embeddings.shape)
    assert wrong(filter_speakers(observed, BETWEEN, replace(CONFIG, birth=0.05))[0], labels) < 0.15
    unlocated = observed.azimuths.copy()
    observed.azimuths[:] = math.nan
    blind = filter_speakers(observed, BETWEEN, replace(CONFIG, birth=0.05))
    assert blind[0].max() == 0
    observed.azimuths[:] = unlocated
    assert np.array_equal(blind, filter_speakers(observed, BETWEEN, replace(CONFIG, birth=0.05, location="none")))


def test_a_lag_longer_than_the_recording_is_offline_and_portions_make_no_difference():
    _, observed = meeting(np.random.default_rng(4), turns=10, gap=0.7)
    labels, probabilities = filter_speakers(observed, BETWEEN, CONFIG)
    online = OnlineFilter(BETWEEN, replace(CONFIG, lag=1e6))
    assert online.accept(observed) == []
    assert [(d.cell, d.speaker, d.probability) for d in online.finish()] == list(
        zip(range(len(observed)), labels, probabilities, strict=True)
    )
    for lag in (0.0, 2.0):
        whole, single = (OnlineFilter(BETWEEN, replace(CONFIG, lag=lag)) for _ in range(2))
        decisions = whole.accept(observed) + whole.finish()
        one_by_one = [d for n in range(len(observed)) for d in single.accept(observed[n : n + 1])]
        assert one_by_one + single.finish() == decisions
        assert [d.cell for d in decisions] == list(range(len(observed)))


def test_cells_are_decided_once_the_lag_is_over():
    _, observed = meeting(np.random.default_rng(4), turns=4, gap=0.7)
    online = OnlineFilter(BETWEEN, replace(CONFIG, lag=1.0))
    decided = 0
    for n in range(len(observed)):
        decided += len(online.accept(observed[n : n + 1]))
        assert decided == np.count_nonzero(observed.ends <= observed.ends[n] - 1.0)
    assert len(online.finish()) == len(observed) - decided
    assert online.finish() == []


def alike_twins(count, shift):
    """Return what is known of two people whose voices are alike but for one direction, and cells of one voice.

    The voice is first nearer to the first of them, then more and more to the second.
    """
    twins = np.zeros((2, len(BETWEEN)))
    twins[:, 0], twins[:, 1] = 3.0, (-1.0, 1.0)
    observed = cells(np.zeros(count, int), np.zeros(count), np.random.default_rng(0))
    observed.embeddings[:] = 0
    observed.embeddings[:, 0], observed.embeddings[:, 1] = 3.0, np.where(np.arange(count) < shift, -1.0, 1.0)
    return Speakers(np.full(2, 20.0), 20.0 * twins), observed


def test_a_voice_keeps_its_number_though_it_turns_out_to_be_somebody_else():
    twins, observed = alike_twins(60, 10)
    online = OnlineFilter(BETWEEN, replace(CONFIG, lag=1.0, turn=1e6), twins)
    decisions = online.accept(observed) + online.finish()
    assert {d.speaker for d in decisions} == {0}
    assert decisions[0].person == 0 and decisions[-1].person == 1
    decisions = OnlineFilter(BETWEEN, replace(CONFIG, lag=1.0, turn=1e6), twins, births=False).accept(observed)
    assert [d.speaker for d in decisions] == [d.person for d in decisions]


def test_particles_that_differ_in_who_has_spoken_are_not_merged():
    twins, observed = alike_twins(16, 8)
    third = -twins.sums[:1]
    observed.embeddings[8:] = third / 20
    known = Speakers(np.full(3, 20.0), np.concatenate([twins.sums, third]))
    online = OnlineFilter(BETWEEN, replace(CONFIG, alike=1000), known)
    online.accept(observed)
    assert {0, 1} <= set(online._histories(1)[0].tolist())
    assert set(online._particles.last.tolist()) >= {2}


def test_enrolled_speakers_keep_their_numbers_and_one_may_never_speak():
    labels, observed = meeting(np.random.default_rng(5), stray=0.05)
    _, others = meeting(np.random.default_rng(6))
    enrolled = known_speakers(
        np.concatenate([observed.embeddings, -others.embeddings]), np.append(labels + 1, 0 * labels)
    )
    online = OnlineFilter(BETWEEN, replace(CONFIG, lag=2.0), enrolled, births=False)
    found = np.array([d.speaker for d in online.accept(observed) + online.finish()])
    assert np.mean(found != labels + 1) < 0.03


def test_a_stranger_is_born_beside_the_enrolled_where_births_are_allowed():
    labels, observed = meeting(np.random.default_rng(5))
    known = labels < 2
    enrolled = known_speakers(observed.embeddings[known], labels[known])
    assert np.mean(filter_speakers(observed, BETWEEN, CONFIG, enrolled)[0] != labels) < 0.04
    assert filter_speakers(observed, BETWEEN, CONFIG, enrolled, births=False)[0].max() == 1
    assert filter_speakers(observed, BETWEEN, replace(CONFIG, most_speakers=2), enrolled)[0].max() == 1


def test_one_speaker_and_no_cells():
    observed = cells(np.zeros(100, int), np.linspace(3, 4, 100), np.random.default_rng(7))
    labels, probabilities = filter_speakers(observed, BETWEEN, CONFIG)
    assert not labels.any() and probabilities.min() > 0.5
    labels, probabilities = filter_speakers(observed[:0], BETWEEN, CONFIG)
    assert labels.shape == probabilities.shape == (0,)


def test_a_speaker_who_never_returns_is_kept_apart():
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1, 0, 2, 0, 2, 0, 2], 10)
    observed = cells(labels, 2.0 * labels, rng, gap=20.0)
    assert np.mean(filter_speakers(observed, BETWEEN, CONFIG)[0] != labels) < 0.04


def test_same_seed_same_result():
    _, observed = meeting(np.random.default_rng(9), turns=10)
    config = replace(CONFIG, particles=20, seed=3)
    first, second = (filter_speakers(observed, BETWEEN, config) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"location": "gps"}, "location"),
        ({"particles": 0}, "particles"),
        ({"embedding_weight": -1.0}, "embedding_weight"),
        ({"birth": 0.0}, "birth"),
        ({"turn": 0.0}, "turn"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ParticleConfig(**options)


def test_somebody_has_to_speak():
    with pytest.raises(ValueError, match="births"):
        OnlineFilter(BETWEEN, CONFIG, births=False)
