import io
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording

from asrkit.data.audio import audio_size, is_audio, read_audio, read_channels, read_cut, stream_audio, stream_channels
from asrkit.errors import InputError


def tone(rate: int, seconds: float = 1.0, frequency: float = 300.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16000), 16000)
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_formats_and_rates_and_channels(tmp_path, suffix, rate):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(rate), np.zeros(rate, np.float32)], axis=1), rate)
    samples = read_audio(path, 16000)
    assert samples.dtype == torch.float32
    assert len(samples) == pytest.approx(16000, abs=20)
    middle = slice(4000, 12000)
    error = (samples[middle] - 0.5 * torch.from_numpy(tone(16000))[middle]).square().mean().sqrt()
    assert error < 0.01
    assert is_audio(path)


def test_a_part_of_a_file(wav):
    whole = read_audio(wav, 16000)
    assert torch.equal(read_audio(wav, 16000, start=0.25, duration=0.5), whole[4000:12000])


@pytest.mark.parametrize("rate", [16000, 22050])
def test_channels(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(rate), tone(rate, frequency=200), np.zeros(rate, np.float32)], axis=1), rate)
    channels = read_channels(path, 16000, start=0.25, duration=0.5)
    assert channels.shape == (3, 8000) and audio_size(path) == (1.0, 3)
    torch.testing.assert_close(channels.mean(dim=0), read_audio(path, 16000, start=0.25, duration=0.5))
    assert channels[1].square().mean() > 0.04 and not channels[2].any()


@pytest.mark.parametrize("rate", [16000, 22050])
def test_stream_of_channels(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(rate, 2.0), tone(rate, 2.0, frequency=200)], axis=1), rate)
    chunks = torch.cat(list(stream_channels(path, 16000, 0.3)), dim=1)
    torch.testing.assert_close(chunks, read_channels(path, 16000), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("seconds", [0.01, 0.3, 5.0])
def test_stream_equals_the_whole(tmp_path, rate, seconds):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(rate, 2.0), rate)
    chunks = list(stream_audio(path, 16000, seconds))
    assert max(len(chunk) for chunk in chunks) <= max(2 * seconds * 16000, 2000)
    torch.testing.assert_close(torch.cat(chunks), read_audio(path, 16000), atol=1e-4, rtol=0)


def test_stream_of_standard_input(monkeypatch):
    pcm = np.array([0, 16384, -32768, 32767], dtype="<i2").tobytes() + b"\x01"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm)))
    chunks = list(stream_audio("-", 16000, 3 / 16000))
    assert [len(chunk) for chunk in chunks] == [3, 1]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm)))
    (both,) = stream_channels("-", 16000, 1.0, channels=2)
    assert both.tolist() == [[0.0, -1.0], [0.5, 32767 / 32768]]
    assert torch.cat(chunks).tolist() == [0.0, 0.5, -1.0, 32767 / 32768]


def test_empty_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(InputError, match="standard input"):
        list(stream_audio("-", 16000, 1.0))


def missing(path):
    path.unlink()


def empty_file(path):
    path.write_bytes(b"")


def no_samples(path):
    soundfile.write(path, np.zeros(0, np.float32), 16000)


def text(path):
    path.write_text("this is no audio at all\n" * 100)


def not_a_number(path):
    samples = tone(16000)
    samples[9000] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")


def infinite(path):
    samples = tone(16000)
    samples[9000] = np.inf
    soundfile.write(path, samples, 16000, subtype="FLOAT")


def truncated_wav(path):
    path.write_bytes(path.read_bytes()[:10000])


def truncated_flac(path):
    soundfile.write(path, tone(16000), 16000, format="FLAC")
    path.write_bytes(path.read_bytes()[:5000])


def truncated_mp3(path):
    soundfile.write(path, tone(16000, 3.0), 16000, format="MP3")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def truncated_ogg(path):
    soundfile.write(path, tone(16000), 16000, format="OGG")
    path.write_bytes(path.read_bytes()[:2000])


def header_only(path):
    path.write_bytes(path.read_bytes()[:44])


@pytest.mark.parametrize(
    "damage",
    [
        missing, empty_file, no_samples, text, not_a_number, infinite, header_only,
        truncated_wav, truncated_flac, truncated_mp3, truncated_ogg,
    ],
)  # fmt: skip
def test_bad_files_are_named(wav, damage):
    damage(wav)
    for read in (lambda: read_audio(wav, 16000), lambda: list(stream_audio(wav, 16000, 0.1))):
        with pytest.raises(InputError) as error:
            read()
        assert str(wav) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_folder_is_no_audio(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_audio(tmp_path, 16000)


def test_wav_of_unknown_length_from_a_pipe(wav):
    """Programs that write into a pipe cannot go back and promise 2**32 - 1 bytes."""
    data = bytearray(wav.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    wav.write_bytes(data)
    assert len(read_audio(wav, 16000)) == 16000


def test_part_past_the_end(wav):
    with pytest.raises(InputError, match=r"a\.wav: holds 1\.000 s of audio, not 1\.250 s"):
        read_audio(wav, 16000, start=0.75, duration=0.5)


def test_part_past_the_end_by_a_rounding(wav):
    assert len(read_audio(wav, 16000, start=0.5, duration=0.501)) == 8000


def test_cut_of_a_file_that_became_shorter(wav):
    cut = MonoCut("utterance-7", 0.2, 0.8, 0, recording=Recording.from_file(wav))
    assert len(read_cut(cut, 8000)) == 6400
    soundfile.write(wav, tone(16000, 0.5), 16000)
    with pytest.raises(InputError, match=r"cut utterance-7: .*a\.wav: holds 0\.500 s"):
        read_cut(cut, 16000)


def test_cut_that_only_lhotse_can_read(wav):
    cut = MonoCut("a", 0, 1.0, 0, recording=Recording.from_file(wav))
    mixed = cut.mix(cut, offset_other_by=0.5)
    samples = read_cut(mixed, 8000)
    assert len(samples) == 12000
    torch.testing.assert_close(samples[1000:3000], read_cut(cut, 8000)[1000:3000], atol=1e-3, rtol=0)


def test_channel_of_a_cut(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(16000), -tone(16000)], axis=1), 16000)
    recording = Recording.from_file(path)
    right = read_cut(MonoCut("right", 0, 1.0, 1, recording=recording), 16000)
    torch.testing.assert_close(right, -torch.from_numpy(tone(16000)), atol=1e-4, rtol=0)


def test_missing_file_of_a_mixture_is_one_line(wav):
    cut = MonoCut("a", 0, 1.0, 0, recording=Recording.from_file(wav))
    mixed = cut.mix(cut, offset_other_by=0.5)
    wav.unlink()
    with pytest.raises(InputError, match=r"a\.wav") as error:
        read_cut(mixed, 16000)
    assert "\n" not in str(error.value)
