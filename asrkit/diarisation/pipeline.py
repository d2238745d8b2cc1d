"""From what is observed of a recording to who spoke when and where: the methods, and what they share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from asrkit.diarisation.ahc import AhcConfig, agglomerate, relabel
from asrkit.diarisation.enrolment import enrolled_speakers
from asrkit.diarisation.frontend import FrontendConfig
from asrkit.diarisation.observations import Observations
from asrkit.diarisation.overlap import NOBODY, OverlapConfig, second_speakers
from asrkit.diarisation.particle_filter import ParticleConfig, Speakers, filter_speakers, known_speakers
from asrkit.diarisation.plda import Plda, speaker_evidence
from asrkit.diarisation.spectral import spectral_clustering
from asrkit.diarisation.tracked import TrackedConfig, locate_speakers, track_speakers
from asrkit.types import Segment, Tracks

TRACK_STEP = 0.1  # seconds
KNOWN_VARIANCE = 0.3  # squared radians, up to which a speaker's azimuth is said


@dataclass(frozen=True)
class DiarisationConfig:
    """The front end, the method, and the options of each method."""

    method: Literal["particle_filter", "tracked", "ahc", "spectral"] = "particle_filter"
    """Particle filter; VBx with tracks; agglomerative clustering; spectral clustering."""
    start: Literal["none", "ahc", "vbx"] = "none"
    """A first clustering that "tracked" and "particle_filter" refine."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    ahc: AhcConfig = field(default_factory=AhcConfig)
    tracked: TrackedConfig = field(default_factory=TrackedConfig)
    particle_filter: ParticleConfig = field(default_factory=ParticleConfig)
    overlap: OverlapConfig = field(default_factory=OverlapConfig)


@dataclass(frozen=True)
class Diarisation:
    """Who spoke when, in order of time, and where everybody was."""

    segments: list[Segment]
    tracks: Tracks


def diarise(
    recording: str,
    observations: Observations,
    plda: Plda,
    config: DiarisationConfig,
    least: int = 1,
    most: int | None = None,
    enrolled: Mapping[str, np.ndarray] | None = None,
) -> Diarisation:
    """Return the segments and tracks of one recording from raw observations.

    Args:
        least, most: number of speakers.
        enrolled: name -> raw embeddings (M, D) of people who may be there. Others may be too, and are numbered.

    Raises:
        InputError: the embeddings are not of the size that the PLDA was trained on.
    """
    cells = replace(observations, embeddings=plda.project(observations.embeddings))
    known = {name: plda.project(embeddings) for name, embeddings in (enrolled or {}).items()}
    labels = cluster(cells, plda.between, config, least, most, known)
    names = name_speakers(cells.embeddings, labels, plda.between, config.tracked.speakers.embedding_weight, known)
    azimuths, variances = locate_speakers(cells, labels, replace(config.tracked, location="tracked"))
    azimuths = np.where(variances > KNOWN_VARIANCE, np.nan, azimuths)
    others = second_speakers(cells, labels, azimuths, config.overlap)
    segments = to_segments(recording, cells, labels, names) + to_segments(recording, cells, others, names)
    segments.sort(key=lambda segment: (segment.start, segment.end))
    return Diarisation(segments, to_tracks(recording, cells, azimuths, names))


def cluster(
    cells: Observations,
    between: np.ndarray,
    config: DiarisationConfig,
    least: int = 1,
    most: int | None = None,
    enrolled: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Return the speaker (N,) of each cell, numbered by first appearance, from projected embeddings.

    The particle filter starts from those who are `enrolled` (name -> projected embeddings), if any.
    """
    if not len(cells):
        return np.zeros(0, np.int64)
    if config.method == "spectral":
        return spectral_clustering(cells.embeddings, least, most)
    if config.method == "ahc":
        return agglomerate(cells, between, config.ahc, least, most)
    start = first_clustering(cells, between, config, least, most)
    if config.method == "tracked":
        return track_speakers(cells, between, start, config.tracked, least, most).labels
    speakers = None if start is None else known_speakers(cells.embeddings, start)
    if enrolled:
        speakers = enrolled_speakers(enrolled)
    births = start is None or bool(enrolled)  # the first clustering has found out how many there are
    filtering = config.particle_filter if most is None else replace(config.particle_filter, most_speakers=most)
    labels, _ = filter_speakers(cells, between, filtering, speakers, births)
    if len(np.unique(labels)) < least:
        labels = told_apart(cells, between, replace(config, particle_filter=filtering), least, most)
    return relabel(labels)


def told_apart(
    cells: Observations, between: np.ndarray, config: DiarisationConfig, least: int, most: int | None
) -> np.ndarray:
    """Return labels (N,) of at least as many speakers, for a particle filter that by itself finds fewer.

    Agglomerative clustering tells so many apart, whom the filter starts from; if it drops any, it stays out of it.
    """
    start = agglomerate(cells, between, config.ahc, least, most)
    labels, _ = filter_speakers(
        cells, between, config.particle_filter, known_speakers(cells.embeddings, start), births=False
    )
    return labels if len(np.unique(labels)) >= least else start


def first_clustering(
    cells: Observations, between: np.ndarray, config: DiarisationConfig, least: int, most: int | None
) -> np.ndarray | None:
    if config.start == "ahc":
        return agglomerate(cells, between, config.ahc, least, most)
    if config.start == "vbx":
        return track_speakers(cells, between, None, replace(config.tracked, location="none"), least, most).labels
    return None


def name_speakers(
    embeddings: np.ndarray,
    labels: np.ndarray,
    between: np.ndarray,
    weight: float,
    enrolled: Mapping[str, np.ndarray],
) -> list[str]:
    """Return the name of each of the K speakers of labels (N,): one who is enrolled, or else "speaker1" and so on.

    Those names are given that are likeliest all together, none twice, and only to whom they fit rather than a stranger.
    """
    found = scaled(known_speakers(embeddings, labels), weight)
    names = [f"speaker{k + 1}" for k in range(len(found.counts))]
    if not enrolled or not len(names):
        return names
    known = scaled(enrolled_speakers(enrolled), weight)
    together = speaker_evidence(
        found.counts[:, None] + known.counts, found.sums[:, None] + known.sums, between
    )  # (K, people)
    gains = together - speaker_evidence(*found, between)[:, None] - speaker_evidence(*known, between)
    for k, person in zip(*linear_sum_assignment(np.maximum(gains, 0), maximize=True), strict=True):
        if gains[k, person] > 0:
            names[k] = list(enrolled)[person]
    return names


def scaled(speakers: Speakers, weight: float) -> Speakers:
    """Return statistics in which each cell counts as `weight` observations."""
    return Speakers(weight * speakers.counts, weight * speakers.sums)


def to_segments(recording: str, cells: Observations, labels: np.ndarray, names: Sequence[str]) -> list[Segment]:
    """Return one segment for each stretch of adjoining cells of one speaker; there are none of NOBODY."""
    cells, labels = cells[labels != NOBODY], labels[labels != NOBODY]
    if not len(cells):
        return []
    begins = np.flatnonzero(np.r_[True, (np.diff(labels) != 0) | (cells.starts[1:] > cells.ends[:-1])])
    lasts = np.r_[begins[1:], len(labels)] - 1
    return [
        Segment(recording, float(cells.starts[first]), float(cells.ends[last]), names[labels[first]])
        for first, last in zip(begins, lasts, strict=True)
    ]


def to_tracks(recording: str, cells: Observations, azimuths: np.ndarray, names: Sequence[str]) -> Tracks:
    """Return the azimuths (N, K) at the middles of the cells as tracks at regular times."""
    if not len(cells):
        return Tracks(recording, TRACK_STEP, {})
    middles = (cells.starts + cells.ends) / 2
    times = TRACK_STEP * np.arange(math.ceil(cells.ends[-1] / TRACK_STEP))
    after = np.searchsorted(middles, times).clip(1, max(1, len(middles) - 1))
    after = np.minimum(after, len(middles) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(times - middles[before] < middles[after] - times, before, after)
    return Tracks(recording, TRACK_STEP, {name: azimuths[nearest, k].tolist() for k, name in enumerate(names)})
