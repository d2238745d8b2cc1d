"""What is known of people's voices before a meeting.

A meeting hears them from afar. Embeddings of close speech lie so far from what it hears that people are taken for one
another; those of the same speech in drawn rooms lie nearer, and are enrolled beside them. However long an enrolment
is, it is of one day and one microphone, so it counts as a few cells of the meeting only.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.signal import oaconvolve

from asrkit.diarisation.embedding import Embedder, window_bounds
from asrkit.diarisation.frontend import FrontendConfig
from asrkit.diarisation.particle_filter import Speakers
from asrkit.diarisation.voice_activity import Interval, cells

WORTH = 5.0  # cells of the meeting
DECAYS = (0.25, 0.4, 0.6)  # seconds in which the sound of each drawn room falls by 60 dB
DIRECT = (-4.0, 4.0)  # decibels of the direct sound over the reverberation
EARLIEST = 0.004  # seconds until the first echo
NOISE = -20.0  # decibels


def enrol(samples: np.ndarray, intervals: Sequence[Interval], embedder: Embedder, config: FrontendConfig) -> np.ndarray:
    """Return raw embeddings (M, D) of intervals of somebody's speech (T,), as it is and as it would sound in rooms."""
    rate = embedder.sampling_rate
    starts, ends = window_bounds(*cells(intervals, config.cell), intervals, config.window).T
    return np.concatenate([embedder(heard, starts, ends) for heard in (samples, *in_rooms(samples, rate))])


def in_rooms(samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    """Yield speech (T,) as it would sound in rooms: echoes that decay, which to the ear are noise, and more noise."""
    rng = np.random.default_rng(0)
    for decay in DECAYS:
        echoes = rng.standard_normal(round(decay * rate)) * 10 ** (-3 * np.arange(round(decay * rate)) / rate / decay)
        echoes[: round(EARLIEST * rate)] = 0
        echoes *= 10 ** (-rng.uniform(*DIRECT) / 20) / np.linalg.norm(echoes)
        echoes[0] = 1  # the direct sound
        heard = oaconvolve(samples, echoes)[: len(samples)]
        heard += 10 ** (NOISE / 20) * heard.std() * rng.standard_normal(len(heard))
        yield (heard * (np.abs(samples).max() / np.abs(heard).max())).astype(np.float32)


def enrolled_speakers(enrolled: Mapping[str, np.ndarray]) -> Speakers:
    """Return what is known of the voices of people from their projected embeddings (M, d)."""
    counts = np.array([min(WORTH, len(embeddings)) for embeddings in enrolled.values()])
    means = np.stack([embeddings.mean(axis=0) for embeddings in enrolled.values()])
    return Speakers(counts, counts[:, None] * means)
