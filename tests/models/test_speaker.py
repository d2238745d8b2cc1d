"""Speaker embeddings: windows against crops, what must not change them, the losses, and files."""

import math

import numpy as np
import pytest
import torch

from asrkit.cli.speaker import SpeakerExperiment
from asrkit.config import write_config
from asrkit.data.features import Fbank, FeatureConfig
from asrkit.errors import InputError
from asrkit.models.checkpoint import save_weights
from asrkit.models.speaker import (
    STRIDE,
    SpeakerConfig,
    SpeakerEmbedder,
    SpeakerNetwork,
    load_embedder,
    prototype_cosines,
    with_margin,
)

RATE = 4000
FEATURES = FeatureConfig(RATE, 8)
CONFIG = SpeakerConfig(dim=6, channels=10, layers=2, pooled_dim=12, num_mel_bins=8, speakers=5)


@pytest.fixture
def model() -> SpeakerNetwork:
    torch.manual_seed(0)
    model = SpeakerNetwork(CONFIG)
    for _ in range(3):  # so that the normalisations are not the identity
        model.embed(3 + 2 * torch.randn(7, 40, 8))
    return model.eval()


@pytest.fixture
def embedder(model) -> SpeakerEmbedder:
    return SpeakerEmbedder(model, FEATURES)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """130 s whose loudness moves."""
    rng = np.random.default_rng(0)
    size = 130 * RATE
    loudness = np.interp(np.arange(size), np.arange(0, size + RATE, RATE // 4), rng.random(4 * 131))
    return (loudness * rng.standard_normal(size)).astype(np.float32)


def test_a_crop_is_one_window(model):
    features = torch.randn(3, 50, 8)
    crops = model.embed(features)
    for crop, one in zip(crops, features, strict=True):
        whole = model.embed_windows(one, torch.tensor([0]), torch.tensor([25]))
        torch.testing.assert_close(whole[0], crop, rtol=1e-4, atol=1e-5)


def test_the_batch_changes_nothing(model):
    features = torch.randn(5, 33, 8)
    alone = torch.cat([model.embed(one[None]) for one in features])
    torch.testing.assert_close(model.embed(features), alone, rtol=1e-4, atol=1e-5)


def test_windows_of_a_long_recording_are_those_of_the_whole(model, embedder, samples):
    starts = np.array([0.0, 1.03, 58.9, 59.9, 61.0, 100.0, 128.5])
    ends = starts + 1.6
    found = embedder(samples, starts, ends)
    size = STRIDE * RATE // 100
    firsts, lasts = (torch.from_numpy(np.rint(times * RATE / size).astype(int)) for times in (starts, ends))
    with torch.inference_mode():
        expected = model.embed_windows(Fbank(FEATURES)(torch.from_numpy(samples)), firsts, lasts)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    for n in (2, 4, 6):  # each alone, and in another order
        np.testing.assert_allclose(embedder(samples, starts[n : n + 1], ends[n : n + 1])[0], found[n], 1e-3, 1e-4)
    np.testing.assert_allclose(embedder(samples, starts[::-1], ends[::-1])[::-1], found, rtol=1e-3, atol=1e-4)


def test_what_is_far_away_or_louder_changes_nothing(embedder, samples):
    window = np.array([60.0]), np.array([61.6])
    before = embedder(samples, *window)
    other = samples.copy()
    other[: 50 * RATE] = 0
    other[75 * RATE :] *= 3
    np.testing.assert_allclose(embedder(other, *window), before, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(embedder(4 * samples, *window), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (0.5, 0.505), (0.99, 1.5), (3.0, 5.0)])
def test_windows_without_sound_have_an_embedding(embedder, start, end):
    for sound in (np.zeros(RATE, np.float32), np.ones(RATE, np.float32)):
        assert np.isfinite(embedder(sound, np.array([start]), np.array([end]))).all()
    assert embedder(np.zeros(RATE, np.float32), np.zeros(0), np.zeros(0)).shape == (0, 6)


def test_margin_is_an_angle():
    angles = torch.tensor([[0.3, 1.0], [2.0, 3.1]])
    moved = with_margin(angles.cos(), torch.tensor([0, 1]), 0.2).acos()
    torch.testing.assert_close(moved, torch.tensor([[0.5, 1.0], [2.0, math.pi]]), atol=2e-3, rtol=0)
    torch.testing.assert_close(with_margin(angles.cos(), torch.tensor([0, 1]), 0.0), angles.cos(), atol=1e-5, rtol=0)


def test_prototypes_leave_the_crop_out():
    embeddings = torch.nn.functional.normalize(torch.randn(5, 4))
    speakers = torch.tensor([0, 1, 0, 1, 2])
    cosines = prototype_cosines(embeddings, speakers)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosines[0, 0], cosine(embeddings[0], embeddings[2], dim=0))
    torch.testing.assert_close(cosines[0, 1], cosine(embeddings[0], embeddings[1] + embeddings[3], dim=0))
    torch.testing.assert_close(cosines[0, 2], cosine(embeddings[0], embeddings[4], dim=0))
    assert cosines[4, 2] == -1  # nobody else of its speaker


def test_an_embedder_comes_back(model, embedder, samples, tmp_path):
    write_config(SpeakerExperiment(features=FEATURES, model=CONFIG), tmp_path / "config.yaml")
    with pytest.raises(InputError, match=r"model\.pt"):
        load_embedder(tmp_path)
    save_weights(model, tmp_path / "model.pt")
    loaded = load_embedder(tmp_path)
    window = np.array([1.0]), np.array([2.0])
    assert loaded.sampling_rate == RATE
    np.testing.assert_array_equal(loaded(samples, *window), embedder(samples, *window))


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"margin": 2.0}, {"scale": 0.0}])
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpeakerConfig(**wrong)
