"""Speech against noise: levels, pauses, silence, and cells that divide intervals."""

import numpy as np
import pytest
import soxr
import torch

from asrkit.diarisation.voice_activity import cells, energy_activity, silero_activity, union

RATE = 16000
SPOKEN = [(1.0, 3.5), (5.0, 5.8), (7.0, 9.6)]


def bursts(rng, seconds: float = 12.0, snr: float = 25.0, gain: float = 1.0) -> np.ndarray:
    """Noise that is louder where somebody is said to speak, in syllables of a fifth of a second."""
    times = np.arange(round(seconds * RATE)) / RATE
    spoken = np.any([(times >= start) & (times < end) for start, end in SPOKEN], axis=0)
    loudness = np.where(spoken, 10 ** (snr / 20) * (0.6 + 0.4 * np.cos(2 * np.pi * 5 * times)), 0) + 1
    return (gain * 0.003 * loudness * rng.normal(size=len(times))).astype(np.float32)


@pytest.mark.parametrize("gain", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("snr", [15, 30])
def test_energy_finds_what_is_louder(rng, gain, snr):
    found = energy_activity(bursts(rng, snr=snr, gain=gain), RATE)
    np.testing.assert_allclose(found, SPOKEN, atol=0.2)


def test_energy_follows_noise_that_grows(rng):
    spoken = [(start + minute * 60, end + minute * 60) for minute in range(4) for start, end in SPOKEN]
    recording = np.concatenate([bursts(rng, 60.0) for _ in range(4)])
    found = energy_activity(recording * np.logspace(0, 1, len(recording), dtype=np.float32), RATE)
    np.testing.assert_allclose(found, spoken, atol=0.2)


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.1])
def test_silence_and_steady_noise_are_no_speech(rng, level):
    assert energy_activity((rng.normal(size=10 * RATE) * level).astype(np.float32), RATE) == []


@pytest.mark.parametrize("total", [0, 1, 159, 160, 1000])
def test_next_to_nothing_is_no_speech(total):
    assert energy_activity(np.ones(total, dtype=np.float32), RATE) == []


def test_silero_hears_speech_and_no_noise(rng, corpora):
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("silero_vad")
    file = min((corpora / "librispeech_train_clean_100_251spk").glob("*.flac"))
    speech, _ = soundfile.read(file, dtype="float32", frames=5 * RATE)
    threads = torch.get_num_threads()
    recording = np.concatenate([np.zeros(3 * RATE), speech, np.zeros(3 * RATE)]).astype(np.float32)
    recording += rng.normal(size=len(recording)).astype(np.float32) * 1e-3
    found = silero_activity(recording, RATE)
    assert found == silero_activity(recording, RATE)  # nothing is left of the first time
    assert torch.get_num_threads() == threads
    assert found[0][0] > 2.8 and found[-1][1] < 8.3
    assert sum(end - start for start, end in found) > 2.5
    assert silero_activity(recording[: 2 * RATE], RATE) == []
    slower = silero_activity(soxr.resample(recording, RATE, 12000), 12000)
    assert np.abs(np.array(slower) - found).max() < 0.3


def test_union_of_turns():
    assert union([(5, 6), (0, 2), (1, 3), (3, 4), (4.5, 4.5)]) == [(0, 4), (5, 6)]
    assert union([(0, 1), (1.2, 2), (3, 4)], pause=0.3) == [(0, 2), (3, 4)]
    assert union([(0, 9), (1, 2), (3, 4)]) == [(0, 9)]
    assert union([]) == []


@pytest.mark.parametrize("length", [0.01, 0.12, 0.25, 0.37, 0.38, 3.1, 60.0])
def test_cells_divide_an_interval(length):
    starts, ends = cells([(2.0, 2.0 + length)], 0.25)
    assert starts[0] == 2.0 and ends[-1] == 2.0 + length
    np.testing.assert_array_equal(starts[1:], ends[:-1])
    np.testing.assert_allclose(ends - starts, length / len(starts))
    assert len(starts) == 1 or 0.125 <= ends[0] - starts[0] <= 0.375


def test_no_intervals_have_no_cells():
    assert [len(part) for part in cells([])] == [0, 0]
