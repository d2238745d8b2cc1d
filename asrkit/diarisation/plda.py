"""Probabilistic linear discriminant analysis of speaker embeddings: the two-covariance model (Brümmer, ICASSP 2010).

An embedding is its speaker's own point plus a deviation, both Gaussian. In the projected space deviations have
identity covariance and speakers are N(0, diag(between)), so that every score is a sum over dimensions.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.linalg import eigh

from asrkit.errors import InputError
from asrkit.files import atomic_write


@dataclass(frozen=True)
class Plda:
    """Maps raw embeddings, scaled to unit length, to the space of the model. Its arrays are float64."""

    mean: np.ndarray
    """(D,) of embeddings of unit length."""
    transform: np.ndarray
    """(D, d)."""
    between: np.ndarray
    """(d,) variance of the speakers where a speaker's own variance is 1, largest first."""

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """Map raw embeddings (N, D) to (N, d).

        Raises:
            InputError: the embeddings are not of the size that the model was trained on.
        """
        if embeddings.shape[1:] != self.mean.shape:
            raise InputError(f"embeddings are {embeddings.shape}, but the PLDA was trained on size {len(self.mean)}")
        return (unit_length(embeddings) - self.mean) @ self.transform

    def save(self, file: Path | str) -> None:
        with atomic_write(file, "wb") as out:
            np.savez(out, **{field.name: getattr(self, field.name) for field in fields(self)})


def load_plda(file: Path | str) -> Plda:
    """Read what `Plda.save` wrote.

    Raises:
        InputError: the file cannot be read, or is no PLDA.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            plda = Plda(**{field.name: arrays[field.name].astype(np.float64) for field in fields(Plda)})
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, BadZipFile) as error:
        raise InputError(f"{file}: not a PLDA: {error}") from error
    if plda.mean.ndim != 1 or plda.transform.shape != plda.mean.shape + plda.between.shape:
        raise InputError(f"{file}: not a PLDA: its arrays do not fit each other")
    return plda


def fit_plda(embeddings: np.ndarray, speakers: np.ndarray, dim: int) -> Plda:
    """Fit the model to raw embeddings (N, D) of labelled speakers (N,), keeping the `dim` most telling directions.

    Both covariances are estimated by the method of moments (analysis of variance with unequal groups), so discriminant
    directions and variances come from one generalised eigenproblem. There are at most as many directions as speakers
    less one, and only those in which speakers differ are kept.

    Raises:
        InputError: there are fewer than two speakers, or none with two embeddings, or values that are not finite.
    """
    embeddings = np.asarray(embeddings, np.float64)
    names, labels, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.max() < 2:
        raise InputError("PLDA needs embeddings of at least two speakers, and more than one of a speaker")
    if dim < 1 or not np.isfinite(embeddings).all():
        raise InputError("PLDA needs finite embeddings and at least one dimension")
    embeddings = unit_length(embeddings)
    mean = embeddings.mean(axis=0)
    centres = np.zeros((len(names), len(mean)))
    np.add.at(centres, labels, embeddings - mean)
    centres /= counts[:, None]
    within = _within_covariance(embeddings - mean - centres[labels], len(names))
    scatter = (centres.T * counts) @ centres / (len(names) - 1)
    # A scatter of centres is within + size * between on average, where size is that of speakers as if all were equal.
    size = (counts.sum() - (counts**2).sum() / counts.sum()) / (len(names) - 1)
    ratios, directions = eigh(scatter, within)
    between = (ratios[::-1] - 1) / size
    kept = min(dim, len(names) - 1, int((between > 0).sum()))
    if not kept:
        raise InputError("PLDA: the speakers do not differ")
    return Plda(mean, directions[:, ::-1][:, :kept], between[:kept])


def speaker_evidence(counts: np.ndarray, sums: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Return log p of groups of projected embeddings, each of one unknown speaker, less what all groupings share.

    What is left out is the log density under N(0, I) of each embedding on its own. Merging groups a and b gains
    E(a + b) - E(a) - E(b).

    Args:
        counts: (...,) embeddings in each group; fractions count embeddings that are not independent.
        sums: (..., d) of the group's embeddings, weighted alike.
        between: (d,) variance of the speakers.
    """
    growth = 1 + np.asarray(counts)[..., None] * between
    return 0.5 * (between * sums**2 / growth - np.log(growth)).sum(axis=-1)


# Details


def unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Scale embeddings (N, D) to length 1; those of length 0 stay."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths > 0, lengths, 1.0)


def _within_covariance(deviations: np.ndarray, speakers: int) -> np.ndarray:
    """Return the covariance of deviations (N, D) from their speaker, shrunk to a sphere as far as they are few."""
    freedom, size = len(deviations) - speakers, deviations.shape[1]
    covariance = deviations.T @ deviations / freedom
    variance = max(np.trace(covariance) / size, np.finfo(np.float64).eps)
    share = size / (size + freedom)
    return (1 - share) * covariance + share * variance * np.eye(size)
