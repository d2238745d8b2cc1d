"""From samples to observations: what goes wrong is named, what is outside left out, memory grows with the recording."""

import logging
import tracemalloc

import numpy as np
import pytest

from asrkit.diarisation import localisation
from asrkit.diarisation.frontend import FrontendConfig, observe
from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.localisation import beamform, steered_spectra
from asrkit.errors import InputError

RATE = 16000
ARRAY = ArrayGeometry()


class Loudness:
    """An embedder that hears how loud each window is, and how long."""

    sampling_rate = RATE

    def __call__(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        windows = [samples[round(s * RATE) : round(e * RATE)] for s, e in zip(starts, ends, strict=True)]
        rows = [(np.square(window).mean(), len(window) / RATE) for window in windows]
        return np.array(rows, dtype=np.float32).reshape(len(rows), 2)


@pytest.fixture
def recording(rng) -> np.ndarray:
    """Seven channels that hear one noise from above, and each a little of its own."""
    heard = rng.normal(size=6 * RATE) * 0.1 + rng.normal(size=(7, 6 * RATE)) * 0.01
    return heard.astype(np.float32)


def test_what_is_observed(recording):
    observations = observe(recording, RATE, [(0.5, 3.0), (4.0, 5.1)], Loudness(), ARRAY)
    assert len(observations) == 14
    assert (observations.starts[0], observations.ends[-1]) == (0.5, 5.1)
    assert observations.embeddings.shape == (14, 2) and observations.spectra.shape == (14, 72)
    assert np.isfinite(observations.azimuths).all() and np.all(observations.variances > 0)
    np.testing.assert_allclose(observations.embeddings[:10, 1], 1.6, atol=1e-3)
    np.testing.assert_allclose(observations.embeddings[10:, 1], 1.1, atol=1e-3)  # the interval is no longer


def test_without_an_array_there_is_no_direction(recording):
    observations = observe(recording, RATE, [(0.5, 3.0)], Loudness())
    assert np.isnan(observations.azimuths).all() and np.isnan(observations.variances).all()
    assert observations.spectra.shape == (10, 0)
    alone = observe(recording[:1], RATE, [(0.5, 3.0)], Loudness())
    np.testing.assert_array_equal(observations.embeddings, alone.embeddings)


def test_intervals_are_put_in_order_and_cut_to_the_recording(recording):
    tidy = observe(recording, RATE, [(0.0, 2.0), (4.0, 6.0)], Loudness(), ARRAY)
    untidy = observe(recording, RATE, [(5.0, 9.0), (-1.0, 1.5), (4.0, 5.5), (1.0, 2.0), (7.0, 8.0)], Loudness(), ARRAY)
    np.testing.assert_allclose(untidy.starts, tidy.starts)
    np.testing.assert_allclose(untidy.embeddings, tidy.embeddings)


def test_the_embedder_hears_the_beam(rng, recording):
    """Noise of each microphone's own falls by the factor of their number."""
    own = (rng.normal(size=recording.shape) * 0.1).astype(np.float32)
    alone = observe(own, RATE, [(0.0, 6.0)], Loudness())
    beam = observe(own, RATE, [(0.0, 6.0)], Loudness(), ARRAY)
    assert np.all(beam.embeddings[:, 0] < alone.embeddings[:, 0] / 4)


@pytest.mark.parametrize("geometry", [None, ARRAY])
def test_no_speech_is_nothing_observed(recording, geometry):
    observations = observe(recording, RATE, [], Loudness(), geometry)
    assert len(observations) == 0
    assert observations.spectra.shape == (0, 0 if geometry is None else 72)


@pytest.mark.parametrize("geometry", [None, ARRAY])
def test_silence_is_observed_without_a_fault(caplog, geometry):
    with caplog.at_level(logging.WARNING):
        observations = observe(np.zeros((7, 2 * RATE), dtype=np.float32), RATE, [(0.0, 2.0)], Loudness(), geometry)
    assert len(observations) == 8
    assert "channel 0 is silent" in caplog.text


def test_clipping_is_warned_of(caplog, recording):
    with caplog.at_level(logging.WARNING):
        observe(recording, RATE, [(0.0, 1.0)], Loudness(), ARRAY)
        assert not caplog.records
        observe((recording * 20).clip(-1, 1), RATE, [(0.0, 1.0)], Loudness(), ARRAY)
    assert "channel 0 is clipped: 6" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_named(recording, value):
    recording[3, 24000] = value
    with pytest.raises(InputError, match="channel 3: not a number at 1.500 s"):
        observe(recording, RATE, [(0.0, 1.0)], Loudness(), ARRAY)


def test_recordings_that_do_not_fit_are_named(recording):
    with pytest.raises(InputError, match="1 channel, but the array has 7 microphones"):
        observe(recording[:1], RATE, [(0.0, 1.0)], Loudness(), ARRAY)
    with pytest.raises(InputError, match="7 channels, but the array has 2 microphones"):
        observe(recording, RATE, [(0.0, 1.0)], Loudness(), ArrayGeometry(ARRAY.microphones[:2]))
    with pytest.raises(InputError, match="8000 Hz: the embedder needs 16000"):
        observe(recording, 8000, [(0.0, 1.0)], Loudness(), ARRAY)
    with pytest.raises(InputError, match="no samples"):
        observe(recording[:, :0], RATE, [], Loudness(), ARRAY)


def test_impossible_configurations():
    for wrong in ({"cell": 0}, {"window": 0.1}, {"bins": 4}):
        with pytest.raises(ValueError):
            FrontendConfig(**wrong)


def test_memory_beside_the_samples_does_not_grow(monkeypatch, rng):
    monkeypatch.setattr(localisation, "CELLS_AT_ONCE", 8)
    monkeypatch.setattr(localisation, "FRAMES_AT_ONCE", 128)

    def most(seconds: int) -> int:
        samples = np.zeros((7, seconds * RATE), dtype=np.float32)
        samples += rng.normal(size=(7, 1)).astype(np.float32)
        starts = np.arange(0, seconds, 0.25)
        tracemalloc.start()
        steered_spectra(samples, RATE, ARRAY, starts, starts + 0.25)
        beamform(samples, RATE, ARRAY, starts, np.zeros(len(starts)))
        (_, peak), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
        return peak

    assert most(24) - most(6) < 1.5 * 18 * RATE * 4  # the one channel that comes out
