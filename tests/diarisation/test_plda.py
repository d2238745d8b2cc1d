import numpy as np
import pytest
from scipy.stats import multivariate_normal

from asrkit.diarisation.plda import fit_plda, load_plda, speaker_evidence
from asrkit.errors import InputError

SIZE = 6


@pytest.fixture(scope="module")
def drawn():
    """Embeddings of 400 speakers that differ in two directions only, far enough from 0 for length to say nothing."""
    rng = np.random.default_rng(0)
    mixing = np.hstack([rng.normal(size=(SIZE - 1, SIZE - 1)), np.zeros((SIZE - 1, 1))]) / 300
    points = rng.normal(size=(400, SIZE - 1)) * [3.0, 1.5, 0, 0, 0]
    speakers = np.repeat(np.arange(400), rng.integers(5, 40, 400))
    offset = np.eye(SIZE)[-1]
    return (points[speakers] + rng.normal(size=(len(speakers), SIZE - 1))) @ mixing + offset, speakers


def test_recovers_the_model_that_the_embeddings_were_drawn_from(drawn):
    embeddings, speakers = drawn
    plda = fit_plda(embeddings, speakers, 2)
    np.testing.assert_allclose(plda.between, [9.0, 2.25], rtol=0.2)
    projected = plda.project(embeddings)
    centres = np.array([projected[speakers == speaker].mean(axis=0) for speaker in range(400)])
    deviations = projected - centres[speakers]
    np.testing.assert_allclose(deviations.T @ deviations / (len(speakers) - 400), np.eye(2), atol=0.06)
    np.testing.assert_allclose(np.cov(centres.T), np.diag(plda.between), atol=0.8)


def test_evidence_is_the_joint_density_of_one_speaker():
    rng = np.random.default_rng(1)
    between = np.array([4.0, 0.5])
    embeddings = rng.normal(size=(3, 2)) + [2.0, -1.0]
    joint = sum(
        multivariate_normal.logpdf(embeddings[:, d], cov=np.eye(3) + between[d] * np.ones((3, 3))) for d in range(2)
    )
    alone = multivariate_normal.logpdf(embeddings, cov=np.eye(2)).sum()
    assert speaker_evidence(np.array(3), embeddings.sum(axis=0), between) == pytest.approx(joint - alone)


def test_evidence_of_many_groups_at_once():
    counts, sums = np.array([[0.0, 2.0]]), np.array([[[0.0, 0.0], [1.0, 3.0]]])
    assert speaker_evidence(counts, sums, np.array([1.0, 2.0])).shape == (1, 2)
    assert speaker_evidence(counts, sums, np.array([1.0, 2.0]))[0, 0] == 0


def test_few_speakers_and_more_dimensions_than_embeddings():
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(9, 50)) + np.repeat(rng.normal(size=(3, 50)), 3, axis=0)
    plda = fit_plda(embeddings, np.repeat(["a", "b", "c"], 3), 32)
    assert 1 <= len(plda.between) <= 2
    assert np.isfinite(plda.project(embeddings)).all()
    assert np.isfinite(plda.project(np.zeros((1, 50)))).all()


@pytest.mark.parametrize(
    ("embeddings", "speakers", "dim"),
    [
        (np.ones((3, 2)), ["a", "a", "a"], 1),
        (np.eye(2), ["a", "b"], 1),
        (np.ones((4, 2)), ["a", "a", "b", "b"], 1),  # nobody differs
        (np.full((4, 2), np.nan), ["a", "a", "b", "b"], 1),
        (np.eye(4), ["a", "a", "b", "b"], 0),
    ],
)
def test_too_little_to_learn_from(embeddings, speakers, dim):
    with pytest.raises(InputError, match="PLDA"):
        fit_plda(embeddings, np.array(speakers), dim)


def test_saved_and_loaded(drawn, tmp_path):
    plda = fit_plda(*drawn, 2)
    plda.save(tmp_path / "plda.npz")
    loaded = load_plda(tmp_path / "plda.npz")
    np.testing.assert_array_equal(loaded.project(drawn[0][:5]), plda.project(drawn[0][:5]))


def test_embeddings_of_another_size(drawn):
    with pytest.raises(InputError, match="size 6"):
        fit_plda(*drawn, 2).project(np.ones((4, 5)))


@pytest.mark.parametrize(
    "arrays",
    [
        {"mean": np.ones(2)},
        {"mean": np.ones(2), "transform": np.ones((3, 1)), "between": np.ones(1)},
        {"mean": np.array([{}]), "transform": np.ones((3, 1)), "between": np.ones(1)},
    ],
)
def test_other_arrays_are_no_plda(tmp_path, arrays):
    np.savez(tmp_path / "plda.npz", **arrays)
    with pytest.raises(InputError, match="plda.npz: not a PLDA"):
        load_plda(tmp_path / "plda.npz")


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 a broken archive"])
def test_other_files_are_no_plda(tmp_path, content):
    (tmp_path / "plda.npz").write_bytes(content)
    with pytest.raises(InputError, match="plda.npz: not a PLDA"):
        load_plda(tmp_path / "plda.npz")
    with pytest.raises(InputError, match="absent.npz"):
        load_plda(tmp_path / "absent.npz")
