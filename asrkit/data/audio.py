"""Audio files, cuts and streams as float32 samples in [-1, 1], one channel, at the rate that is asked for."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from lhotse import MonoCut
from lhotse.cut import Cut
from torch import Tensor

from asrkit.data.manifests import END_TOLERANCE
from asrkit.errors import InputError

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au", ".sph"}
UNKNOWN_SIZE = 0x7FFFF000  # bytes; programs that write WAV into a pipe promise this many or more


def is_audio(path: Path | str) -> bool:
    """Tell by the suffix whether a file is audio that `read_audio` may read."""
    return Path(path).suffix.lower() in SUFFIXES


def read_audio(path: Path | str, sampling_rate: int, start: float = 0.0, duration: float | None = None) -> Tensor:
    """Return the samples (S,) of an audio file of any rate and number of channels, or `duration` seconds of it.

    Raises:
        InputError: the file is missing, no audio, empty, truncated, holds a sample that is not a number, or ends before
            `start + duration`; names the file.
    """
    samples, rate = _read(path, start, duration)
    return resample(_mono(samples, path), rate, sampling_rate)


def read_channels(path: Path | str, sampling_rate: int, start: float = 0.0, duration: float | None = None) -> Tensor:
    """Return all channels (C, S) of an audio file, as `read_audio` does their mean; not finite samples are kept."""
    samples, rate = _read(path, start, duration)
    return resample(samples, rate, sampling_rate).T


def audio_size(path: Path | str) -> tuple[float, int]:
    """Return the duration (seconds) of an audio file, and its number of channels.

    Raises:
        InputError: as `read_audio`.
    """
    with _open(path) as file:
        return file.frames / file.samplerate, file.channels


def read_cut(cut: Cut, sampling_rate: int) -> Tensor:
    """Return the samples (S,) of a cut. Plain files are read here; mixtures, archives and the like by lhotse.

    Raises:
        InputError: as `read_audio`; names the cut and the file.
    """
    if isinstance(cut, MonoCut) and _is_plain(cut):
        try:
            return read_audio(cut.recording.sources[0].source, sampling_rate, cut.start, cut.duration)
        except InputError as error:
            raise InputError(f"cut {cut.id}: {error}") from error
    try:
        samples = cut.load_audio()  # (C, S)
    except Exception as error:  # lhotse raises what its many backends raise
        raise InputError(f"cut {cut.id}: {str(error).splitlines()[0]}") from error
    return resample(_mono(samples.T, f"cut {cut.id}"), cut.sampling_rate, sampling_rate)


def stream_audio(path: Path | str, sampling_rate: int, seconds: float) -> Iterator[Tensor]:
    """Yield an audio file in chunks (S,) of about `seconds`, in constant memory.

    The path "-" is standard input: raw PCM, 16 bits, little-endian, one channel, at `sampling_rate`.

    Raises:
        InputError: as `read_audio`.
    """
    for chunk in stream_channels(path, sampling_rate, seconds):
        yield torch.from_numpy(_mono(chunk.T.numpy(), path))


def stream_channels(path: Path | str, sampling_rate: int, seconds: float, channels: int = 1) -> Iterator[Tensor]:
    """Yield all channels (C, S) of an audio file, as `stream_audio` does their mean; not finite samples are kept.

    Standard input has so many `channels`, interleaved.
    """
    if str(path) == "-":
        yield from _stream_pcm(round(seconds * sampling_rate), channels)
        return
    with _open(path) as file:
        resampler = soxr.ResampleStream(file.samplerate, sampling_rate, file.channels, dtype="float32")
        size = max(1, round(seconds * file.samplerate))
        done = 0
        while done < file.frames:
            chunk = file.read(size, dtype="float32", always_2d=True)  # (S, C)
            if len(chunk) == 0:
                raise InputError(f"{path}: truncated: {done} of {file.frames} samples")
            done += len(chunk)
            if file.samplerate != sampling_rate:
                chunk = resampler.resample_chunk(chunk, last=done == file.frames).reshape(-1, file.channels)
            if len(chunk):
                yield torch.from_numpy(chunk).T


def resample(samples: np.ndarray, from_rate: float, to_rate: float) -> Tensor:
    """Return samples (S,) or (S, C) at another rate; round ratios are faster."""
    return torch.from_numpy(samples if from_rate == to_rate else soxr.resample(samples, from_rate, to_rate))


def _stream_pcm(size: int, channels: int) -> Iterator[Tensor]:
    empty = True
    while chunk := sys.stdin.buffer.read(2 * channels * size):
        empty = False
        whole = len(chunk) // (2 * channels) * 2 * channels  # a writer that was killed may leave half a sample
        samples = np.frombuffer(chunk[:whole], dtype="<i2").reshape(-1, channels)
        yield torch.from_numpy(samples / np.float32(32768)).T
    if empty:
        raise InputError("standard input: no audio")


def _read(path: Path | str, start: float, duration: float | None) -> tuple[np.ndarray, int]:
    """Return samples (S, C) float32 of a part of a file, and its sampling rate."""
    with _open(path) as file:
        first = round(start * file.samplerate)
        wanted = file.frames - first if duration is None else round(duration * file.samplerate)
        if first + wanted > file.frames + END_TOLERANCE * file.samplerate:
            available = file.frames / file.samplerate
            raise InputError(f"{path}: holds {available:.3f} s of audio, not {start + duration:.3f} s")
        wanted = min(wanted, file.frames - first)
        file.seek(first)
        samples = file.read(wanted, dtype="float32", always_2d=True)
        if len(samples) < wanted:
            raise InputError(f"{path}: truncated: {first + len(samples)} of {file.frames} samples")
        return samples, file.samplerate


@contextmanager
def _open(path: Path | str) -> Iterator[soundfile.SoundFile]:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames == 0:
                raise InputError(f"{path}: no audio: zero samples, or cut off in its header")
            promise = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
            if promise and int(promise[2]) < int(promise[1]) < UNKNOWN_SIZE:
                raise InputError(f"{path}: truncated: {promise[2]} of {promise[1]} bytes")
            yield file
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: no readable audio: {error.error_string}") from error


def _mono(samples: np.ndarray, name: Path | str) -> np.ndarray:
    """Mix samples (S, C) down to (S,)."""
    samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(1)
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: holds samples that are not finite numbers")
    return samples


def _is_plain(cut: MonoCut) -> bool:
    recording = cut.recording
    return (
        recording is not None
        and not recording.transforms
        and recording.num_channels == 1
        and len(recording.sources) == 1
        and recording.sources[0].type == "file"
    )
