"""The microphone as a stream of samples."""

from collections.abc import Iterator

import torch
from torch import Tensor

from asrkit.errors import InputError


def stream_microphone(sampling_rate: int, seconds: float) -> Iterator[Tensor]:
    """Yield what the default microphone hears in chunks (S,) of `seconds`, float in [-1, 1], without end.

    Raises:
        InputError: sounddevice or its PortAudio library is missing, or there is no microphone with this sampling rate.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise InputError(
            f"microphone: {error}: pip install 'asrkit[microphone]', and PortAudio from the system's packages"
        ) from error
    try:
        with sounddevice.InputStream(samplerate=sampling_rate, channels=1, dtype="float32") as microphone:
            while True:
                samples, _ = microphone.read(round(seconds * sampling_rate))  # (S, 1)
                yield torch.from_numpy(samples[:, 0].copy())
    except sounddevice.PortAudioError as error:
        raise InputError(f"microphone: {error}") from error
