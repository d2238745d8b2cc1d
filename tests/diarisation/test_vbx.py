import itertools

import numpy as np
import pytest

from asrkit.diarisation.vbx import (
    VbxConfig,
    VbxResult,
    forward_backward,
    merge_speakers,
    overcluster,
    stay_probabilities,
    vbx,
)

BETWEEN = np.array([40.0, 30.0, 20.0])
CONFIG = VbxConfig(embedding_weight=0.3, tolerance=1e-6, least_seconds=0)


@pytest.fixture(scope="module")
def meeting():
    """Three speakers in turns of 16 cells of 0.25 s: embeddings (N, d), starts, ends, true labels (N,)."""
    rng = np.random.default_rng(0)
    speakers = np.repeat([0, 1, 0, 2, 1, 2, 0, 1, 2, 0], 16)
    points = np.array([[6.0, 4.0, 0.0], [-7.0, 3.0, 2.0], [1.0, -8.0, -3.0]])
    embeddings = points[speakers] + rng.normal(size=(len(speakers), 3))
    starts = 0.25 * np.arange(len(speakers))
    return embeddings, starts, starts + 0.25, speakers


def fit(meeting, labels=None, config=CONFIG, **options):
    embeddings, starts, ends, _ = meeting
    return vbx(embeddings, starts, ends, BETWEEN, labels, config, **options)


@pytest.mark.parametrize("n_speakers", [2, 3])
def test_posteriors_of_the_chain_by_enumeration(n_speakers):
    rng = np.random.default_rng(n_speakers)
    scores = 2 * rng.normal(size=(5, n_speakers))
    stays = np.array([0.0, 0.9, 0.2, 0.7, 0.5])
    prior = rng.dirichlet(np.ones(n_speakers))
    transitions = [stay * np.eye(n_speakers) + (1 - stay) * prior for stay in stays]
    paths = list(itertools.product(range(n_speakers), repeat=5))
    weights, drawn = np.empty(len(paths)), np.zeros((len(paths), n_speakers))
    for i, path in enumerate(paths):
        weights[i] = np.exp(sum(scores[n, k] for n, k in enumerate(path)))
        for n, (last, k) in enumerate(zip((0, *path), path, strict=False)):
            weights[i] *= transitions[n][last, k]
            drawn[i, k] += (1 - stays[n]) * prior[k] / transitions[n][last, k]
    expected = np.array([weights[[path[n] == k for path in paths]].sum() for n in range(5) for k in range(n_speakers)])

    posteriors, entries, evidence = forward_backward(scores, stays, prior)

    assert evidence == pytest.approx(np.log(weights.sum()))
    np.testing.assert_allclose(posteriors.ravel(), expected / weights.sum())
    np.testing.assert_allclose(entries, weights @ drawn / weights.sum())


def test_scores_far_apart_do_not_underflow():
    scores = np.array([[0.0, -5000.0], [-5000.0, 0.0], [-1e4, -2e4]])
    posteriors, _, evidence = forward_backward(scores, np.array([0.0, 0.5, 0.5]), np.array([0.5, 0.5]))
    assert np.isfinite(evidence)
    np.testing.assert_allclose(posteriors, [[1, 0], [0, 1], [1, 0]], atol=1e-12)


def test_turns_end_by_the_clock():
    stays = stay_probabilities(np.array([0.0, 0.5, 10.5, 10.5]), 0.2)
    np.testing.assert_allclose(stays, [0, np.exp(-0.1), np.exp(-2), 1], atol=2e-6)
    assert stays[3] < 1


def test_finds_the_speakers_from_too_many_clusters(meeting):
    result = fit(meeting)
    assert result.labels.tolist() == meeting[3].tolist()
    np.testing.assert_allclose(result.posteriors.sum(axis=1), 1)
    assert result.posteriors.shape == (160, 3)


@pytest.mark.parametrize("speaker_weight", [1.0, 3.0])
def test_the_bound_never_falls(meeting, speaker_weight):
    config = VbxConfig(embedding_weight=0.05, speaker_weight=speaker_weight, tolerance=0, least_seconds=0)
    bounds = fit(meeting, np.arange(160) % 7, config).bounds
    assert len(bounds) > 3
    assert np.diff(bounds).min() > -1e-9 * abs(bounds[-1])


def test_with_one_speaker_the_bound_is_the_evidence(meeting):
    """The posterior of a lone speaker is exact, so the bound is tight: it is the closed form of the PLDA."""
    from asrkit.diarisation.plda import speaker_evidence

    embeddings = meeting[0]
    result = fit(meeting, np.zeros(160, int), VbxConfig(embedding_weight=0.3))
    expected = speaker_evidence(np.array(0.3 * 160), 0.3 * embeddings.sum(axis=0), BETWEEN)
    assert result.bound == pytest.approx(expected)
    assert result.labels.tolist() == [0] * 160


def test_names_of_initial_labels_do_not_matter(meeting):
    labels = overcluster(meeting[0], 5)
    result, renamed = fit(meeting, labels), fit(meeting, 9 - 2 * labels)
    np.testing.assert_array_equal(renamed.labels, result.labels)
    np.testing.assert_allclose(renamed.posteriors, result.posteriors, atol=1e-9)


def test_the_same_each_time(meeting):
    first, second = fit(meeting), fit(meeting)
    np.testing.assert_array_equal(first.posteriors, second.posteriors)
    assert first.bounds == second.bounds


def test_speakers_of_a_moment_go(meeting):
    labels = meeting[3].copy()
    labels[40] = 3
    assert fit(meeting, labels, VbxConfig(embedding_weight=0.3, least_seconds=1.0)).posteriors.shape == (160, 3)


def test_scores_of_location_count(meeting):
    """Where the sound comes from tells two speakers of the same voice apart."""
    embeddings, starts, ends, speakers = meeting
    likely = 4.0 * np.eye(3)[speakers]

    def locate(posteriors):
        return likely, 0.0

    result = vbx(np.zeros_like(embeddings), starts, ends, BETWEEN, speakers, CONFIG, locate)
    assert result.labels.tolist() == speakers.tolist()


@pytest.mark.parametrize("cells", [0, 1, 2])
def test_few_cells(cells):
    starts = np.arange(cells) / 4
    result = vbx(np.ones((cells, 3)), starts, starts + 0.25, BETWEEN)
    assert result.labels.tolist() == [0] * cells
    assert result.posteriors.shape == (cells, min(cells, 1))


def test_merges_what_is_the_same_speaker(meeting):
    halves = meeting[3] + 3 * (np.arange(160) >= 80)

    def refit(labels):
        return fit(meeting, labels)

    def merge(labels, **limits):
        bound = VbxResult(labels, np.eye(labels.max() + 1)[labels], (-1e6,))
        return merge_speakers(refit, bound, meeting[0], BETWEEN, CONFIG, **limits)

    assert merge(halves).labels.tolist() == meeting[3].tolist()
    assert merge(meeting[3], most=2).posteriors.shape[1] == 2
    assert merge(meeting[3], least=3).posteriors.shape[1] == 3


def test_overcluster_has_no_more_clusters_than_cells():
    assert sorted(overcluster(np.eye(3), 16).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("values", [{"embedding_weight": 0}, {"turn_rate": -1}, {"iterations": 0}, {"tolerance": -1}])
def test_values_that_make_no_sense(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        VbxConfig(**values)
