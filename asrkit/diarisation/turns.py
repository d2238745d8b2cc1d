"""Who speaks when in a meeting: statistics of turn-taking, and turns drawn from them.

A turn follows the ones that began before it: after a gap, or while the last of them is still going on.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from asrkit.errors import InputError
from asrkit.types import Segment

LEVELS = np.linspace(0.05, 0.95, 10)
PAUSE = 0.2  # seconds at least between two turns of one speaker
SELDOM = 0.01  # share of returns that were never seen


@dataclass(frozen=True)
class TurnTaking:
    """How people take turns. The defaults are those of 170 meetings of the AMI corpus, words only (82,973 turns).

    `gaps`, `overlaps` and `durations` are seconds, each the 5th, 15th, … 95th percentile; what lies beyond is left out.
    """

    gaps: tuple[float, ...] = (0.09, 0.25, 0.41, 0.61, 0.86, 1.13, 1.38, 1.73, 2.43, 4.94)
    """Silence before a turn that does not overlap."""
    overlaps: tuple[float, ...] = (0.14, 0.49, 0.86, 1.34, 1.97, 2.86, 4.13, 6.2, 9.8, 19.3)
    """From the start of an overlapping turn to the end of those before it."""
    durations: tuple[float, ...] = (0.22, 0.33, 0.47, 0.75, 1.21, 1.88, 2.86, 4.51, 7.61, 17.01)
    """Of turns."""
    returns: tuple[float, ...] = (0.223, 0.32, 0.283, 0.188, 0.046)
    """Share of turns by the one who began the last turn, by the one before that, and so on, where there is one."""
    overlap: float = 0.136
    """Share of the time with speech in which more than one speaks."""


class Turn(NamedTuple):
    """One speaker (a number from 0) from `start` to `end` (seconds)."""

    speaker: int
    start: float
    end: float


def fit_turns(segments: Iterable[Segment]) -> TurnTaking:
    """Measure the turn-taking of some recordings.

    Raises:
        InputError: too few turns to measure a figure from.
    """
    gaps, overlaps, durations, places = [], [], [], []
    speech = crowded = 0.0
    for _, turns in groupby(sorted(segments, key=_by_start), key=lambda segment: segment.recording):
        floor = _Floor()
        for turn in turns:
            durations.append(turn.end - turn.start)
            if floor.recent:
                (gaps if turn.start > floor.latest else overlaps).append(abs(turn.start - floor.latest))
            if turn.speaker in floor.recent:
                places.append((floor.recent.index(turn.speaker), len(floor.recent)))
            floor.add(turn.speaker, turn.start, turn.end)
        speech += floor.speech
        crowded += floor.crowded
    if not (gaps and overlaps and places):
        raise InputError("too few turns to measure turn-taking: a gap, an overlap and a speaker's return are needed")
    return TurnTaking(
        gaps=_quantiles(gaps),
        overlaps=_quantiles(overlaps),
        durations=_quantiles(durations),
        returns=_shares(places),
        overlap=round(crowded / speech, 3),
    )


def sample_turns(
    statistics: TurnTaking,
    rng: np.random.Generator,
    *,
    speakers: int,
    duration: float,
    lengths: tuple[float, float],
    overlap: float | None = None,
    speak: Callable[[int, float], float] = lambda speaker, wanted: wanted,
) -> list[Turn]:
    """Draw the turns of one meeting, in order of their starts; at most two speak at once, and everyone speaks.

    Args:
        statistics: of the gaps, overlaps, lengths and returns.
        rng: what is drawn comes from it.
        speakers: how many there are.
        duration: seconds of the meeting.
        lengths: shortest and longest turn, seconds.
        overlap: share of the time with speech in which two speak; that of the statistics by default.
        speak: tells how long (seconds) a speaker's turn is who was asked for so many seconds.

    Raises:
        InputError: the meeting is too short for everyone to speak.
    """
    overlap = statistics.overlap if overlap is None else overlap
    patience = lengths[1] + statistics.gaps[-1]  # the longest that one more turn takes
    turns: list[Turn] = []
    floor = _Floor()
    while True:
        silent = [speaker for speaker in range(speakers) if speaker not in floor.recent]
        overlaps = floor.crowded < overlap * floor.speech
        if silent and duration - floor.latest < (len(silent) + 1) * patience:
            speaker = int(rng.choice(silent))
        else:
            speaker = _next_speaker(statistics, floor, silent, overlaps, rng)
        length = speak(speaker, _draw(statistics.durations, rng, *lengths))
        own = max((turn.end + PAUSE for turn in turns if turn.speaker == speaker), default=0.0)
        earliest = max(floor.second, floor.start, own)
        if overlaps and earliest < floor.latest:
            start = floor.latest - _draw(statistics.overlaps, rng, 0.0, floor.latest - earliest)
        else:
            start = max(floor.latest + _draw(statistics.gaps, rng), own)
        start = round(start, 3)
        turn = Turn(speaker, start, round(start + length, 4))
        if turn.end > duration:
            break
        turns.append(turn)
        floor.add(*turn)
    if silent:
        raise InputError(f"{duration} s are too short for turns of all {speakers} speakers")
    return turns


# Details


class _Floor:
    """What has been said so far, turn after turn in the order of their starts."""

    def __init__(self) -> None:
        self.recent: list[Any] = []  # speakers, the one who began last first
        self.holder: Any = None  # who speaks until `latest`
        self.start = self.second = self.latest = 0.0  # of the last turn; until when two speak, and until when one does
        self.speech = self.crowded = 0.0  # seconds in which somebody speaks, and in which more than one does

    def add(self, speaker: Any, start: float, end: float) -> None:
        self.recent = [speaker, *(other for other in self.recent if other != speaker)]
        self.speech += max(0.0, end - max(start, self.latest))
        self.crowded += max(0.0, min(end, self.latest) - max(start, self.second))
        self.start, self.second = start, max(self.second, min(end, self.latest))
        if end > self.latest:
            self.holder, self.latest = speaker, end


def _by_start(segment: Segment) -> tuple[str, float]:
    return segment.recording, segment.start


def _quantiles(values: list[float]) -> tuple[float, ...]:
    return tuple(np.round(np.quantile(values, LEVELS), 2).tolist())


def _shares(places: list[tuple[int, int]]) -> tuple[float, ...]:
    """Return the share of each place among the (place, number of places) in which it could be taken."""
    taken, numbers = np.array(places).T
    could = [np.count_nonzero(numbers > place) for place in range(taken.max() + 1)]
    return tuple(np.round(np.bincount(taken) / could, 3).tolist())


def _draw(quantiles: tuple[float, ...], rng: np.random.Generator, least: float = 0.0, most: float = math.inf) -> float:
    """Draw one of the values from `least` to `most`."""
    low, high = np.interp([least, most], quantiles, LEVELS)
    return float(np.clip(np.interp(rng.uniform(low, high), LEVELS, quantiles), least, most))


def _next_speaker(
    statistics: TurnTaking, floor: _Floor, silent: list[int], overlaps: bool, rng: np.random.Generator
) -> int:
    """Draw the next speaker by how recently each spoke, another than the present one if the turn is to overlap.

    Those who are still `silent` are as those who spoke longest ago.
    """
    order = [*floor.recent, *silent]
    shares = [statistics.returns[min(place, len(statistics.returns) - 1)] for place in range(len(order))]
    weights = np.maximum(shares, SELDOM) * [not (overlaps and speaker == floor.holder) for speaker in order]
    return int(rng.choice(order, p=weights / weights.sum()))
