import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from asrkit.diarisation import ahc
from asrkit.diarisation.ahc import AhcConfig, agglomerate
from asrkit.diarisation.kalman import MotionConfig, track_evidence, wrap
from asrkit.diarisation.observations import Observations
from asrkit.diarisation.plda import speaker_evidence

STEP = 0.25
BETWEEN = np.geomspace(6.0, 0.2, 12)
CENTRES = np.random.default_rng(5).normal(size=(6, 12)) * np.sqrt(BETWEEN)
NONE, STATIONARY, KALMAN = (AhcConfig(location=location) for location in ahc.LOCATIONS)
BY_PLACE = AhcConfig(embedding_weight=0.0, location_weight=1.0, most_penalty=100.0)


def meeting(order, azimuths, cells=12, pause=1.0, noise=1.0, seed=0):
    """Return the labels and observations of turns of speakers `order`, each at one azimuth or from one to another."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(order, cells)
    starts = STEP * np.arange(len(labels)) + pause * (np.arange(len(labels)) // cells)
    places = np.concatenate([np.linspace(*np.broadcast_to(azimuth, 2), cells) for azimuth in azimuths])
    places = wrap(places + 0.03 * rng.normal(size=len(labels)))
    embeddings = CENTRES[labels] + noise * rng.normal(size=(len(labels), 12))
    variances, spectra = np.full(len(labels), 0.002), np.zeros((len(labels), 0), np.float32)
    return labels, Observations(starts, starts + STEP, embeddings.astype(np.float32), places, variances, spectra)


def same(found, labels):
    """Whether the partitions are the same."""
    return np.array_equal(found[:, None] == found, labels[:, None] == labels)


ORDER = np.tile([0, 1, 2], 6)
SEATS = np.array([0.5, 2.5, -2.0])


@pytest.mark.parametrize("config", [NONE, STATIONARY, KALMAN, BY_PLACE, replace(BY_PLACE, location="stationary")])
def test_three_speakers_are_found(config):
    labels, cells = meeting(ORDER, SEATS[ORDER])
    found = agglomerate(cells, BETWEEN, config)
    assert found.tolist() == labels.tolist()  # numbered by first appearance
    assert np.array_equal(found, agglomerate(cells, BETWEEN, config))


def test_a_walker_is_followed_where_a_stationary_speaker_is_split():
    """Voices are of no help; one sits, and one is a little further each time."""
    order = np.tile([0, 1], 12)
    walk = 0.5 + 0.2 * np.arange(24)
    labels, cells = meeting(order, np.where(order == 0, -0.4, walk), cells=8)
    cells = replace(cells, embeddings=0 * cells.embeddings)
    tracked = agglomerate(cells, BETWEEN, replace(BY_PLACE, threshold=0.5))
    still = agglomerate(cells, BETWEEN, replace(BY_PLACE, threshold=0.5, location="stationary"))
    assert still.max() > tracked.max()
    assert tracked[labels == 1].max() == tracked[labels == 1].min()


def test_a_seat_swap_is_bridged_by_the_voice():
    places = np.where(np.arange(24) < 12, SEATS[np.tile([0, 1], 12)], SEATS[np.tile([1, 0], 12)])
    labels, cells = meeting(np.tile([0, 1], 12), places)
    assert same(agglomerate(cells, BETWEEN, KALMAN), labels)


def test_clusters_are_compared_in_the_order_of_time():
    """Two halves of a walk that alternate are one track; one after the other they would not be."""
    _, cells = meeting([0, 0, 0, 0], [0.0, (0.0, 1.0), 1.0, (1.0, 2.0)], cells=8, pause=0.3)
    table = ahc.prepare(cells, BETWEEN, BY_PLACE)
    halves = np.repeat([0, 1, 0, 1], 8)
    clusters = ahc.gather(table, halves, np.arange(32))
    whole = track_evidence(cells.starts, cells.azimuths, cells.variances, BY_PLACE.motion)
    assert ahc.joint_evidence(table, clusters.following, *clusters.first) == pytest.approx(whole)
    behind = np.argsort(halves, kind="stable")
    later = cells.starts + 100.0 * halves
    assert whole > 5 + track_evidence(later[behind], cells.azimuths[behind], cells.variances, BY_PLACE.motion)


# By hand


def evidence(cells, members, config):
    """Return the evidence of the voice and of the place of cells of one speaker."""
    weight, motion = config.embedding_weight, config.motion
    voice = speaker_evidence(weight * len(members), weight * cells.embeddings[members].astype(float).sum(0), BETWEEN)
    if config.location == "none":
        return voice, 0.0
    azimuths, variances = cells.azimuths[members], np.maximum(cells.variances[members], motion.noise)
    if config.location == "kalman":
        times = (cells.starts[members] + cells.ends[members]) / 2
        return voice, track_evidence(times, azimuths, variances, motion)
    directions = 2 * np.pi * np.arange(ahc.DIRECTIONS) / ahc.DIRECTIONS
    deviations = wrap(azimuths[:, None] - directions)[..., None] + 2 * np.pi * np.arange(-2, 3)
    seen = np.exp(-0.5 * deviations**2 / variances[0]).sum(-1) / np.sqrt(2 * np.pi * variances[0])
    logs = np.log((1 - motion.stray) * seen + motion.stray / (2 * np.pi)).sum(0)
    return voice, logsumexp(logs) - math.log(ahc.DIRECTIONS)


def affinity(cells, a, b, config):
    voice, place = (
        whole - first - second
        for whole, first, second in zip(
            evidence(cells, np.sort(np.concatenate([a, b])), config),
            evidence(cells, a, config),
            evidence(cells, b, config),
            strict=True,
        )
    )
    return voice + max(config.location_weight * place, -config.most_penalty)


def merged_by_hand(cells, labels, config, least=1, most=math.inf):
    """Merge the best pair of all again and again, everything computed anew."""
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    while len(groups) > least:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
        values = [affinity(cells, groups[i], groups[j], config) for i, j in pairs]
        if max(values) <= config.threshold and len(groups) <= most:
            break
        i, j = pairs[int(np.argmax(values))]
        groups[j] = np.sort(np.concatenate([groups[i], groups[j]]))
        del groups[i]
    merged = np.zeros(len(labels), dtype=int)
    for label, group in enumerate(groups):
        merged[group] = label
    return merged


@pytest.mark.parametrize("config", [NONE, STATIONARY, KALMAN, replace(KALMAN, most_penalty=0.5)])
def test_affinities(config):
    labels, cells = meeting([0, 1, 0, 2, 1, 2], [0.0, 1.0, (0.0, 0.5), 3.0, 1.5, -3.0], cells=6)
    runs = np.repeat(np.arange(6), 6)
    runs[:12] = np.tile([0, 1], 6)  # two of them interleaved
    table = ahc.prepare(cells, BETWEEN, config)
    clusters = ahc.gather(table, runs, np.arange(36))
    for a in range(6):
        for b in range(a):
            by_hand = affinity(cells, np.flatnonzero(runs == a), np.flatnonzero(runs == b), config)
            assert ahc.affinity(table, clusters, a, b) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("config", [NONE, STATIONARY, KALMAN])
@pytest.mark.parametrize(("least", "most"), [(1, -1), (4, -1), (1, 2)])
def test_merging_is_the_same_as_by_hand(config, least, most):
    order = np.random.default_rng(3).integers(0, 3, 14)
    _, cells = meeting(order, SEATS[order] + np.linspace(0, 2, 14), cells=4, noise=2.5)
    runs = np.repeat(np.arange(14), 4)
    ours = ahc.merge(ahc.prepare(cells, BETWEEN, config), runs, np.arange(56), least, most)
    assert same(ours, merged_by_hand(cells, runs, config, least, math.inf if most < 0 else most))


# Few speakers, few cells


@pytest.mark.parametrize("config", [NONE, STATIONARY, KALMAN])
def test_one_speaker_one_cell_and_none(config):
    labels, cells = meeting([0] * 8, [1.0] * 8)
    assert agglomerate(cells, BETWEEN, config).tolist() == labels.tolist()
    assert agglomerate(cells[:1], BETWEEN, config).tolist() == [0]
    assert agglomerate(cells[:0], BETWEEN, config).tolist() == []


@pytest.mark.parametrize("config", [NONE, STATIONARY, KALMAN])
def test_who_speaks_once_is_kept_and_strays_are_nobody(config):
    order = np.array([0, 1, 0, 1, 2, 0, 1, 0, 1])
    labels, cells = meeting(order, SEATS[order])
    cells.azimuths[30] = cells.azimuths[77] = -1.0
    assert agglomerate(cells, BETWEEN, config).tolist() == labels.tolist()


@pytest.mark.parametrize("config", [STATIONARY, KALMAN])
def test_without_azimuths_the_voice_decides(config):
    _, cells = meeting(ORDER, SEATS[ORDER], noise=2.5)
    unknown = replace(cells, azimuths=np.full(len(cells), np.nan))
    voice = agglomerate(cells, BETWEEN, NONE)
    assert np.array_equal(agglomerate(unknown, BETWEEN, config), voice)


@pytest.mark.parametrize(("least", "most"), [(1, 2), (5, None), (4, 4), (1, 1), (1, None)])
def test_the_number_of_speakers_may_be_known(least, most):
    _, cells = meeting(ORDER, SEATS[ORDER])
    found = agglomerate(cells, BETWEEN, KALMAN, least, most).max() + 1
    assert least <= found <= (most or 18)


def test_long_meetings_are_clustered_in_blocks(monkeypatch):
    labels, cells = meeting(ORDER, SEATS[ORDER])
    monkeypatch.setattr(ahc, "BLOCK", 15.0)
    assert agglomerate(cells, BETWEEN, KALMAN).tolist() == labels.tolist()


def test_runs_end_at_silences_at_changes_and_when_they_are_long():
    labels, cells = meeting([0, 1], [0.5, 2.5], cells=2 * ahc.LONGEST_RUN, pause=0.0)
    runs = ahc.cut_into_runs(ahc.prepare(cells, BETWEEN, KALMAN))
    assert np.bincount(runs).max() <= ahc.LONGEST_RUN
    assert all(len(set(labels[runs == run])) == 1 for run in set(runs))
    labels, cells = meeting([0, 0], [0.5, 0.5], cells=4, pause=1.0)
    assert ahc.cut_into_runs(ahc.prepare(cells, BETWEEN, KALMAN)).tolist() == [0] * 4 + [4] * 4


@pytest.mark.parametrize("bad", [{"location": "gps"}, {"embedding_weight": -1.0}, {"most_penalty": -1.0}])
def test_impossible_options(bad):
    with pytest.raises(ValueError):
        AhcConfig(**bad)


def test_motion_reaches_the_affinity():
    labels, cells = meeting([0, 0], [0.0, 1.0], pause=30.0)
    ratios = []
    for diffusion in (0.0, 0.05):
        config = replace(BY_PLACE, motion=MotionConfig(diffusion=diffusion, jump_rate=0.0))
        table = ahc.prepare(cells, BETWEEN, config)
        ratios.append(ahc.affinity(table, ahc.gather(table, np.repeat([0, 1], 12), np.arange(24)), 0, 1))
    assert ratios[0] < ratios[1]
