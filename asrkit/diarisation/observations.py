"""What is seen of a recording: a speaker embedding and an azimuth in each short cell of speech."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from asrkit.errors import InputError
from asrkit.files import atomic_write


@dataclass(frozen=True)
class Observations:
    """N cells of speech of one recording, in order of time and not overlapping.

    `embeddings` are raw, or projected so that each speaker's own spread is the identity (`Plda.project`). A single
    channel has no azimuths: all are NaN, and `spectra` has no bins (A = 0).
    """

    starts: np.ndarray
    """(N,) seconds."""
    ends: np.ndarray
    """(N,) seconds."""
    embeddings: np.ndarray
    """(N, D) float32."""
    azimuths: np.ndarray
    """(N,) radians in [-pi, pi): the direction from which most power comes; NaN where it is not known."""
    variances: np.ndarray
    """(N,) squared radians: how uncertain each azimuth is."""
    spectra: np.ndarray
    """(N, A) float32: coherence of the microphones, at most 1, for sound from azimuth -pi + 2 pi a / A."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, cells: np.ndarray | slice) -> "Observations":
        """Return some of the cells."""
        return type(self)(**{field.name: getattr(self, field.name)[cells] for field in fields(self)})

    def save(self, file: Path | str) -> None:
        with atomic_write(file, "wb") as out:
            np.savez(out, **{field.name: getattr(self, field.name) for field in fields(self)})


def load_observations(file: Path | str) -> Observations:
    """Read what `Observations.save` wrote.

    Raises:
        InputError: the file cannot be read, or is none of these.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = Observations(**{field.name: arrays[field.name] for field in fields(Observations)})
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, BadZipFile) as error:
        raise InputError(f"{file}: not observations: {error}") from error
    if any(getattr(found, field.name).shape[:1] != found.starts.shape for field in fields(found)):
        raise InputError(f"{file}: not observations: its arrays do not fit each other")
    return found


def concatenate(parts: Sequence[Observations]) -> Observations:
    """Join the observations of consecutive parts of a recording; there is at least one part."""
    return Observations(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Observations)})
