"""Azimuths: plane waves from every side, the same as pyroomacoustics finds, noise, echoes, blocks and edges."""

import numpy as np
import pytest
from scipy import fft

from asrkit.diarisation import localisation
from asrkit.diarisation.geometry import ArrayGeometry, circle
from asrkit.diarisation.localisation import SPEED_OF_SOUND, beamform, peaks, second_peaks, steered_spectra

RATE = 16000
ARRAY = ArrayGeometry()
SQUARE = ArrayGeometry(((0.1, 0.1, 0.0), (-0.1, 0.1, 0.0), (-0.1, -0.1, 0.0), (0.1, -0.1, 0.0)))


def plane_wave(source: np.ndarray, azimuth: float, geometry: ArrayGeometry = ARRAY) -> np.ndarray:
    """What the microphones (C, T) hear of a far source (T,): exact delays, round the end of the recording."""
    towards = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    leads = geometry.positions @ towards / SPEED_OF_SOUND
    frequencies = fft.rfftfreq(len(source), 1 / RATE)
    return fft.irfft(fft.rfft(source) * np.exp(2j * np.pi * np.outer(leads, frequencies)), len(source)).astype(
        np.float32
    )


def cells(seconds: float, step: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    starts = np.arange(round(seconds / step)) * step
    return starts, starts + step


def error(azimuths: np.ndarray, truth: np.ndarray | float) -> np.ndarray:
    return np.degrees(np.abs((azimuths - truth + np.pi) % (2 * np.pi) - np.pi))


@pytest.fixture
def noise(rng) -> np.ndarray:
    return rng.normal(size=2 * RATE).astype(np.float32) * 0.1


@pytest.mark.parametrize("geometry", [ARRAY, SQUARE, ArrayGeometry(circle(7, 0.1))], ids=["seven", "square", "eight"])
@pytest.mark.parametrize("degrees", [-180, -179, -90, -2.5, 0, 1, 33.3, 120, 177.6, 179.9])
def test_a_plane_wave_comes_from_its_azimuth(noise, geometry, degrees):
    spectra = steered_spectra(plane_wave(noise, np.radians(degrees), geometry), RATE, geometry, *cells(2.0))
    azimuths, variances = peaks(spectra)
    assert spectra.shape == (8, 72) and spectra.dtype == np.float32
    assert error(azimuths, np.radians(degrees)).max() < 1.2  # of 5 degrees a bin
    assert np.all((azimuths >= -np.pi) & (azimuths < np.pi))
    assert np.all(spectra.max(axis=1) > 0.85) and np.all(spectra <= 1 + 1e-5)
    assert np.all(variances < np.radians(3) ** 2)


@pytest.mark.parametrize("bins", [36, 72, 360])
def test_peaks_lie_between_bins(noise, bins):
    recording = plane_wave(noise, np.radians(42.5))
    azimuths, _ = peaks(steered_spectra(recording, RATE, ARRAY, *cells(2.0), bins))
    assert error(azimuths, np.radians(42.5)).max() < 0.7


def test_of_two_sources_both_are_found(rng):
    first, second = (rng.normal(size=2 * RATE) for _ in range(2))
    recording = plane_wave(first, np.radians(-170)) + 0.7 * plane_wave(second, np.radians(80))
    spectra = steered_spectra(recording, RATE, ARRAY, *cells(2.0))
    others, heights = second_peaks(spectra)
    assert error(peaks(spectra)[0], np.radians(-170)).max() < 5
    assert error(others, np.radians(80)).max() < 25  # side lobes of the first pull at it
    assert np.all((heights > 0.1) & (heights < 1))


def test_one_source_has_no_second_peak_beside_it():
    azimuths = -np.pi + 2 * np.pi * np.arange(72) / 72
    spectra = np.exp(4 * (np.cos(azimuths - np.pi) - 1))[None].astype(np.float32)  # its only maximum is at the seam
    others, heights = second_peaks(spectra)
    assert np.isnan(others).all() and heights.tolist() == [0]


@pytest.mark.parametrize("snr", [20, 3])
def test_variances_tell_the_error_in_noise(rng, noise, snr):
    recording = plane_wave(noise, 1.0)
    recording = recording + rng.normal(size=recording.shape).astype(np.float32) * 0.1 * 10 ** (-snr / 20)
    starts, ends = cells(2.0, 0.05)
    azimuths, variances = peaks(steered_spectra(recording, RATE, ARRAY, starts, ends))
    assert np.median(error(azimuths, 1.0)) < 3
    pure = peaks(steered_spectra(rng.normal(size=recording.shape).astype(np.float32), RATE, ARRAY, starts, ends))[1]
    assert np.median(pure) > 4 * np.median(variances)


def test_azimuths_are_those_of_pyroomacoustics(rng):
    room = pytest.importorskip("pyroomacoustics")
    recording = plane_wave(rng.normal(size=RATE) * 0.1, np.radians(-61))
    recording += plane_wave(rng.normal(size=RATE) * 0.03, np.radians(100))
    spectrum = np.stack([room.transform.stft.analysis(channel, 512, 256).T for channel in recording])  # (C, F, T)
    peer = room.doa.SRP(ARRAY.positions.T, RATE, 512, azimuth=np.radians(np.arange(0, 360, 5)), num_src=1)
    peer.locate_sources(spectrum, freq_range=[300, 6000])
    spectra = steered_spectra(recording, RATE, ARRAY, np.array([0.0]), np.array([1.0]))
    assert error(peaks(spectra)[0], peer.azimuth_recon[0]) < 2.5  # half a bin


def test_blocks_and_company_change_nothing(monkeypatch, rng, noise):
    recording = plane_wave(noise, 2.0) + rng.normal(size=(7, len(noise))).astype(np.float32) * 0.05
    starts, ends = cells(2.0, 0.1)
    whole = steered_spectra(recording, RATE, ARRAY, starts, ends)
    heard = beamform(recording, RATE, ARRAY, starts, np.linspace(-4, 4, len(starts)))
    few = steered_spectra(recording, RATE, ARRAY, starts[[3, 11]], ends[[3, 11]])
    np.testing.assert_allclose(few, whole[[3, 11]], atol=1e-5)
    monkeypatch.setattr(localisation, "CELLS_AT_ONCE", 3)
    np.testing.assert_allclose(steered_spectra(recording, RATE, ARRAY, starts, ends), whole, atol=1e-5)
    monkeypatch.setattr(localisation, "FRAMES_AT_ONCE", 7)
    again = beamform(recording, RATE, ARRAY, starts, np.linspace(-4, 4, len(starts)))
    np.testing.assert_allclose(again, heard, atol=1e-6)


@pytest.mark.parametrize("total", [1, 100, 511, 512, 5001])
def test_short_recordings_and_cells_at_the_edges(rng, total):
    recording = rng.normal(size=(7, total)).astype(np.float32)
    starts, ends = np.array([0.0, total / RATE / 2]), np.array([total / RATE / 2, total / RATE])
    spectra = steered_spectra(recording, RATE, ARRAY, starts, ends)
    assert np.isfinite(spectra).all()
    heard = beamform(recording, RATE, ARRAY, starts, np.zeros(2))
    assert heard.shape == (total,) and np.isfinite(heard).all()


def test_silence_has_no_direction():
    spectra = steered_spectra(np.zeros((7, RATE), dtype=np.float32), RATE, ARRAY, *cells(1.0))
    azimuths, variances = peaks(spectra)
    assert np.isfinite(azimuths).all()
    np.testing.assert_allclose(variances, np.pi**2 / 3)


def test_no_cells():
    spectra = steered_spectra(np.zeros((7, RATE), dtype=np.float32), RATE, ARRAY, np.zeros(0), np.zeros(0))
    assert spectra.shape == (0, 72)
    assert [len(part) for part in (*peaks(spectra), *second_peaks(spectra))] == [0] * 4


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_beam_hears_its_source_as_the_centre_does(rng, rate):
    times = np.arange(rate) / rate
    source = np.sin(2 * np.pi * 440 * times) + np.sin(2 * np.pi * 1700 * times + 1)
    recording = np.stack(
        [  # a microphone hears the tones earlier by its lead
            np.sin(2 * np.pi * 440 * (times + lead)) + np.sin(2 * np.pi * 1700 * (times + lead) + 1)
            for lead in ARRAY.positions[:, 0] / SPEED_OF_SOUND
        ]
    ).astype(np.float32)
    heard = beamform(recording, rate, ARRAY, np.array([0.5]), np.array([0.0]))
    edge = rate // 20
    np.testing.assert_allclose(heard[edge:-edge], source[edge:-edge], atol=0.01)


def test_a_beam_turns_and_takes_noise_away(rng, noise):
    """Seven microphones take 8.5 dB off noise of their own, whoever speaks."""
    half = RATE
    recording = plane_wave(noise, 0.5)
    recording[:, half:] = plane_wave(noise, -2.5)[:, half:]
    own = rng.normal(size=recording.shape).astype(np.float32) * 0.1
    times = np.array([0.5, 1.5])
    heard = beamform(recording + own, RATE, ARRAY, times, np.array([0.5, -2.5]))
    left = (heard - noise)[1000:-1000]
    assert 10 * np.log10(np.mean(own**2) / np.mean(left**2)) == pytest.approx(8.45, abs=0.5)
