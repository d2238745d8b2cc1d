"""Embeddings: windows round cells, the bands of resemblyzer, networks in ONNX, batches and company."""

import importlib.util

import numpy as np
import pytest

from asrkit.diarisation import embedding
from asrkit.diarisation.embedding import OnnxEmbedder, ResemblyzerEmbedder, mel_filters, window_bounds
from asrkit.errors import InputError

RATE = 16000


def test_windows_stay_in_the_interval_of_their_cell():
    starts = np.array([0.0, 1.5, 3.75, 5.0, 8.0])
    windows = window_bounds(starts, starts + 0.25, [(0.0, 4.0), (5.0, 6.0), (7.0, 9.0)], length=1.6)
    expected = [(0.0, 1.6), (0.825, 2.425), (2.4, 4.0), (5.0, 6.0), (7.325, 8.925)]
    np.testing.assert_allclose(windows, expected, atol=1e-9)


def test_no_windows():
    assert window_bounds(np.zeros(0), np.zeros(0), []).shape == (0, 2)


def test_mel_filters_have_equal_area_and_known_edges():
    """On Slaney's scale 1000 Hz is 15 mels and 8000 Hz 45.25: the first bands are 73.6 Hz wide."""
    filters = mel_filters(40, 4096, RATE)
    assert filters.shape == (2049, 40) and np.all(filters >= 0)
    np.testing.assert_allclose(filters.sum(axis=0) * RATE / 4096, 1, atol=0.01)
    frequencies = np.arange(2049) * RATE / 4096
    centres = frequencies[filters.argmax(axis=0)]
    np.testing.assert_allclose(centres[:12], 73.58 * np.arange(1, 13), atol=2.0)
    np.testing.assert_allclose(centres[-1], 8000 / np.exp(45.2456 / 41 * np.log(6.4) / 27), atol=2.0)


@pytest.fixture(scope="module")
def resemblyzer() -> ResemblyzerEmbedder:
    if importlib.util.find_spec("resemblyzer") is None:
        pytest.skip("resemblyzer is not installed")
    return ResemblyzerEmbedder()


@pytest.fixture
def windows(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, starts and ends of windows of several lengths, some at the edges."""
    starts = np.array([0.0, 0.3, 0.6, 2.0, 3.95, 1.0])
    ends = np.array([1.6, 1.9, 0.9, 4.0, 4.0, 2.6])
    return rng.normal(size=4 * RATE).astype(np.float32) * 0.05, starts, ends


def test_resemblyzer_gives_unit_vectors_whatever_the_level(resemblyzer, windows):
    samples, starts, ends = windows
    vectors = resemblyzer(samples, starts, ends)
    assert vectors.shape == (6, 256) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(resemblyzer(samples * 8, starts, ends), vectors, atol=1e-4)


def test_resemblyzer_company_and_batches_change_nothing(monkeypatch, resemblyzer, windows):
    samples, starts, ends = windows
    together = resemblyzer(samples, starts, ends)
    alone = [resemblyzer(samples, starts[[n]], ends[[n]])[0] for n in range(len(starts))]
    np.testing.assert_allclose(alone, together, atol=1e-5)
    monkeypatch.setattr(embedding, "BATCH", 2)
    np.testing.assert_allclose(resemblyzer(samples, starts, ends), together, atol=1e-5)
    assert resemblyzer(samples, starts[:0], ends[:0]).shape == (0, 256)


def test_resemblyzer_tells_speakers_apart(resemblyzer, corpora):
    soundfile = pytest.importorskip("soundfile")
    files = sorted((corpora / "librispeech_train_clean_100_251spk").glob("*.flac"))[:6]
    vectors = np.stack(
        [
            resemblyzer(soundfile.read(file, dtype="float32", frames=8 * RATE)[0], starts, starts + 1.6)
            for file in files
            for starts in [np.array([1.0, 4.0, 6.0])]
        ]
    )  # (6, 3, 256)
    likeness = np.einsum("ivd,jwd->ijvw", vectors, vectors)
    same = np.mean([likeness[i, i][np.triu_indices(3, 1)] for i in range(6)])
    other = np.mean([likeness[i, j] for i in range(6) for j in range(i)])
    assert same > other + 0.15


def test_resemblyzer_hears_silence(resemblyzer):
    vectors = resemblyzer(np.zeros(RATE, dtype=np.float32), np.array([0.0, 0.5]), np.array([0.5, 2.0]))
    assert np.isfinite(vectors).all()


def test_resemblyzer_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps resemblyzer"):
        ResemblyzerEmbedder()


def features(samples: np.ndarray) -> np.ndarray:
    """Return 4 features of each 10 ms: powers of its quarters."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 4, 40)
    return np.square(frames).mean(axis=2)


@pytest.fixture
def network(tmp_path):
    """A function that writes a network whose embedding is the mean magnitude of each feature, for input shapes."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")

    def write(*shape: int | str):
        helper = onnx.helper
        nodes = [
            helper.make_node("Abs", ["features"], ["magnitude"]),
            helper.make_node("ReduceMean", ["magnitude", "axis"], ["embedding"], keepdims=0),
        ]
        graph = helper.make_graph(
            nodes,
            "mean",
            [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, [None] * (len(shape) - 1))],
            [helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [1])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, tmp_path / "network.onnx")
        return tmp_path / "network.onnx"

    return write


@pytest.mark.parametrize("shape", [("N", "T", 4), ("N", "T", "F"), (1, "T", 4), (4, "T", 4)])
def test_an_onnx_network_hears_each_window(monkeypatch, network, windows, shape):
    samples, starts, ends = windows
    embedder = OnnxEmbedder(network(*shape), features)
    vectors = embedder(samples, starts, ends)
    for vector, start, end in zip(vectors, starts, ends, strict=True):
        heard = samples[round(start * RATE) : round(end * RATE)]
        frames = features(np.pad(heard, (0, max(0, 1600 - len(heard)))))
        np.testing.assert_allclose(vector, np.abs(frames - frames.mean(axis=0)).mean(axis=0), rtol=1e-4)
    monkeypatch.setattr(embedding, "BATCH", 2)
    np.testing.assert_allclose(embedder(samples, starts, ends), vectors, rtol=1e-5)
    assert len(embedder(samples, starts[:0], ends[:0])) == 0


def test_an_onnx_network_of_fixed_length_hears_a_window_again(network, windows):
    samples, _, _ = windows
    embedder = OnnxEmbedder(network("N", 100, 4), features)
    short, twice = embedder(samples, np.array([0.0]), np.array([0.5])), features(samples[:8000])
    np.testing.assert_allclose(short[0], np.abs(twice - twice.mean(axis=0)).mean(axis=0), rtol=1e-4)


def test_bad_networks_are_named(tmp_path, network, windows):
    samples, starts, ends = windows
    with pytest.raises(InputError, match="other.onnx: not an ONNX network"):
        OnnxEmbedder(tmp_path / "other.onnx", features)
    (tmp_path / "text.onnx").write_text("this is text")
    with pytest.raises(InputError, match="text.onnx: not an ONNX network"):
        OnnxEmbedder(tmp_path / "text.onnx", features)
    with pytest.raises(InputError, match=r"expected one input of shape \(N, T, F\)"):
        OnnxEmbedder(network("N", 4), features)
    with pytest.raises(InputError, match="needs 80 features a frame, not 4"):
        OnnxEmbedder(network("N", "T", 80), features)(samples, starts, ends)
