"""Small audio files for the tests of this folder."""

import numpy as np
import pytest
import soundfile


@pytest.fixture
def write_wav():
    """A function that writes a WAV or FLAC file of noise and returns its path."""

    def write(path, seconds=1.0, rate=8000, channels=1, samples=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if samples is None:
            samples = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
        subtype = "FLOAT" if np.isnan(samples).any() else None
        soundfile.write(path, samples, rate, subtype=subtype)
        return path

    return write
