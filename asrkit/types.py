"""Records that pass between rooms. Times are seconds from the start of the recording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """One word with its times (seconds) and, where it was recognised, how probably it is right (0 to 1)."""

    text: str
    start: float
    end: float
    confidence: float | None = None


@dataclass(frozen=True)
class Hypothesis:
    """One transcript of one utterance.

    `token_times` are emission times (seconds), one a token. `scores` keeps each scorer's own log-probability apart
    and unweighted ("acoustic", "lm", "internal_lm", …); `score` is their weighted total, by which
    hypotheses are ranked (divided by the number of tokens where there are no weights).
    """

    tokens: tuple[str, ...]
    token_times: tuple[float, ...]
    words: tuple[Word, ...]
    score: float
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True)
class NBest:
    """The hypotheses of one utterance, best first; `duration` in seconds."""

    utterance: str
    duration: float
    hyps: tuple[Hypothesis, ...]


@dataclass(frozen=True)
class Segment:
    """A stretch of one recording by one speaker; `text` where it has been recognised."""

    recording: str
    start: float
    end: float
    speaker: str
    text: str = ""


@dataclass(frozen=True)
class Tracks:
    """Where each speaker of one recording is: azimuths (radians, counter-clockwise from the x axis) every `step`
    seconds from the start of the recording, NaN where nothing is known."""

    recording: str
    step: float
    azimuths: Mapping[str, Sequence[float]]
