"""Diarisation while a meeting goes on: turns are told as they close."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from asrkit.diarisation.embedding import Embedder, window_bounds
from asrkit.diarisation.enrolment import enrolled_speakers
from asrkit.diarisation.frontend import check, observe_cells
from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.observations import Observations
from asrkit.diarisation.particle_filter import Decision, OnlineFilter
from asrkit.diarisation.pipeline import DiarisationConfig
from asrkit.diarisation.plda import Plda
from asrkit.diarisation.voice_activity import Interval, cells, union
from asrkit.types import Segment

HISTORY = 20.0  # seconds in which speech is looked for each time
STEP = 0.5  # seconds of new audio worth looking at
SURE = 0.4  # seconds after which it is known whether there was speech


class OnlineDiariser:
    """One recording that comes bit by bit, heard in constant memory by the particle filter.

    A turn is told once the next has been decided, or a pause: the filter's lag later at least, after which a cell is
    decided, and half a window of an embedding and half a second more.

    Args:
        recording: its name.
        find_speech: from samples (T,) and their rate to intervals of speech.
        enrolled: name -> raw embeddings (M, D) of people who may be there. Others may be too, and are numbered.
    """

    def __init__(
        self,
        recording: str,
        embedder: Embedder,
        plda: Plda,
        find_speech: Callable[[np.ndarray, int], list[Interval]],
        geometry: ArrayGeometry | None,
        config: DiarisationConfig,
        enrolled: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.recording, self._embedder, self._plda = recording, embedder, plda
        self._find_speech, self._geometry, self._config = find_speech, geometry, config
        known = {name: plda.project(embeddings) for name, embeddings in (enrolled or {}).items()}
        self._names = list(known)
        self._strangers: dict[int, str] = {}  # number -> name
        speakers = enrolled_speakers(known) if known else None
        self._filter = OnlineFilter(plda.between, config.particle_filter, speakers)
        self._samples = np.zeros((0, 0), np.float32)
        self._start = 0.0  # seconds, of the samples that are kept
        self._fresh = 0.0  # seconds that have not been looked at
        self._done = 0.0  # until when cells have been observed
        self._undecided: list[Interval] = []
        self._turn: Segment | None = None

    def accept(self, samples: np.ndarray) -> list[Segment]:
        """Take the next samples (C, T) float32 in [-1, 1]; return the turns that have closed.

        Raises:
            InputError: the channels are not as many as the array's microphones, or samples are not numbers.
        """
        rate = self._embedder.sampling_rate
        check(samples, rate, self._embedder, self._geometry)
        kept = self._samples[:, -round(HISTORY * rate) :]
        self._start += (self._samples.shape[1] - kept.shape[1]) / rate
        self._samples = np.concatenate([kept, samples], axis=1) if kept.size else samples
        self._fresh += samples.shape[1] / rate
        return self._advance(self._config.frontend.window / 2 + SURE) if self._fresh >= STEP else []

    def finish(self) -> list[Segment]:
        """Return the turns that are left, once there is no more audio."""
        turns = self._advance(0.0) if self._samples.size else []
        turns += [turn for decision in self._filter.finish() if (turn := self._note(decision))]
        return [*turns, self._turn] if self._turn else turns

    def _advance(self, margin: float) -> list[Segment]:
        """Observe what lies before the last `margin` seconds; return the turns that have closed."""
        rate, self._fresh = self._embedder.sampling_rate, 0.0
        spoken = union(self._find_speech(self._samples.mean(axis=0), rate))
        horizon = self._samples.shape[1] / rate - margin
        seen = self._observe(spoken, self._done - self._start, horizon)
        self._undecided += zip(seen.starts.tolist(), seen.ends.tolist(), strict=True)
        decisions = self._filter.accept(replace(seen, embeddings=self._plda.project(seen.embeddings)))
        turns = [turn for decision in decisions if (turn := self._note(decision))]
        if self._turn and not self._undecided and self._done > self._turn.end + SURE:
            turns.append(self._turn)
            self._turn = None
        return turns

    def _observe(self, spoken: Sequence[Interval], first: float, horizon: float) -> Observations:
        """Return the cells of speech from `first` on that have ended by `horizon`; seconds in the samples kept."""
        step = self._config.frontend.cell
        fresh = [(max(start, first), end) for start, end in spoken if end > first]
        # An interval that goes on beyond the horizon gives whole cells only; the rest of it is for the next time.
        inside = [(start, end if end <= horizon else start + (horizon - start) // step * step) for start, end in fresh]
        starts, ends = cells([interval for interval in inside if interval[1] > interval[0]], step)
        windows = window_bounds(starts, ends, spoken, self._config.frontend.window)
        early = max(0.0, first - self._config.frontend.window)  # what lies before is not heard again
        samples = self._samples[:, round(early * self._embedder.sampling_rate) :]
        times = starts - early, ends - early, windows - early
        seen = observe_cells(samples, self._embedder, *times, self._geometry, self._config.frontend)
        self._done = self._start + max(horizon - step, ends[-1] if len(ends) else 0.0, first)
        return replace(seen, starts=starts + self._start, ends=ends + self._start)

    def _note(self, decision: Decision) -> Segment | None:
        """Add a cell to the turn that is open; return the one that it closes."""
        start, end = self._undecided.pop(0)
        if decision.person < len(self._names):
            speaker = self._names[decision.person]
        else:
            speaker = self._strangers.setdefault(decision.speaker, f"speaker{len(self._strangers) + 1}")
        last = self._turn
        if last and last.speaker == speaker and start - last.end < self._config.frontend.cell / 2:
            self._turn = replace(last, end=end)
            return None
        self._turn = Segment(self.recording, start, end, speaker)
        return last
