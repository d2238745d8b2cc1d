"""Who spoke when and where, scored: diarisation error rate, Jaccard error rate, number of speakers, azimuths.

The diarisation error rate (DER) is the time of speech that is missed, falsely found, or given to the wrong speaker,
over the time of speech of the reference; where people speak at once each counts. The Jaccard error rate (JER; DIHARD
II) is the mean over the speakers of the reference of 1 - overlap / union with the speaker found for them. Both come
from pyannote.metrics. The figures of several meetings are pooled: sums of times, or of speakers, over all meetings;
intervals are bootstrapped over meetings.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from asrkit.optional import needed
from asrkit.scoring import significance
from asrkit.types import Segment, Tracks

TIE = 0.05  # points of DER: a smaller difference in a meeting is none


@dataclass(frozen=True)
class MeetingScore:
    """The errors of one meeting; `speech`, `missed`, `false_alarm` and `confusion` are seconds."""

    recording: str
    speech: float
    missed: float
    false_alarm: float
    confusion: float
    jaccard: float
    """Sum of the Jaccard errors of the `scored_speakers`."""
    scored_speakers: int
    """Speakers of the reference who have speech left beside collars and what else is not scored."""
    speakers: int
    found: int
    """Speakers of the hypothesis."""
    matches: Mapping[str, str]
    """Speaker of the hypothesis -> speaker of the reference, one to one."""

    @property
    def errors(self) -> float:
        return self.missed + self.false_alarm + self.confusion


def score_meeting(
    recording: str,
    refs: Iterable[Segment],
    hyps: Iterable[Segment],
    *,
    collar: float = 0.0,
    skip_overlap: bool = False,
    evaluated: Sequence[tuple[float, float]] | None = None,
) -> MeetingScore:
    """Score the segments of one recording; those of one speaker that overlap or touch are taken as one.

    Args:
        recording: its name.
        refs: its reference segments, in any order.
        hyps: its hypothesis segments, in any order.
        collar: seconds on EACH side of every boundary of the reference that are not scored, as in NIST's md-eval
            (pyannote.metrics has the total width, twice as much).
        skip_overlap: score no stretch in which several speakers of the reference speak.
        evaluated: the stretches (seconds) that are scored; the whole recording by default.

    Raises:
        InputError: pyannote.metrics is not installed.
    """
    core, metrics = needed("pyannote.core", "meetings"), needed("pyannote.metrics.diarization", "meetings")
    refs, hyps = merge(refs), merge(hyps)
    if evaluated is None:
        evaluated = [(min([0.0, *(s.start for s in refs + hyps)]), max([0.0, *(s.end for s in refs + hyps)]))]
    region = core.Timeline([core.Segment(*stretch) for stretch in evaluated]).support()
    truth, guess = _annotation(refs, core), _annotation(hyps, core)
    options = {"collar": 2 * collar, "skip_overlap": skip_overlap}
    error_rate = metrics.DiarizationErrorRate(**options)
    times = error_rate.compute_components(truth, guess, uem=region)
    jaccard = metrics.JaccardErrorRate(**options).compute_components(truth, guess, uem=region)
    return MeetingScore(
        recording=recording,
        speech=times["total"],
        missed=times["missed detection"],
        false_alarm=times["false alarm"],
        confusion=times["confusion"],
        jaccard=float(jaccard["speaker error"]),
        scored_speakers=int(jaccard["speaker count"]),
        speakers=len(truth.crop(region).labels()),
        found=len(guess.crop(region).labels()),
        matches=error_rate.optimal_mapping(truth, guess, uem=region),
    )


def diarisation_report(scores: Sequence[MeetingScore]) -> dict[str, Any]:
    """Return the JSON-ready figures of all meetings and of each; rates are percent, "speech" is seconds.

    "missed", "false_alarm" and "confusion" add up to "der"; "interval" is its 95% interval, "jer_interval" that of
    "jer". "speaker_error" is the mean of |speakers found - true| over the meetings, "speaker_bias" of the difference
    itself. A rate is None where the reference has no speech.
    """
    errors, speech = np.array([score.errors for score in scores]), np.array([score.speech for score in scores])
    jaccard, counted = np.array([(score.jaccard, score.scored_speakers) for score in scores]).T
    more = np.array([score.found - score.speakers for score in scores])
    return {
        **_rates(scores),
        "interval": _interval(errors, speech),
        "jer_interval": _interval(jaccard, counted),
        "interval_over": "meeting",
        "meetings": len(scores),
        "speaker_error": float(np.abs(more).mean()),
        "speaker_bias": float(more.mean()),
        "by": {
            "meeting": {
                score.recording: _rates([score]) | {"speakers": score.speakers, "found": score.found}
                for score in scores
            }
        },
    }


def diarisation_comparison(baseline: Sequence[MeetingScore], scores: Sequence[MeetingScore]) -> dict[str, Any]:
    """Return the JSON-ready difference in DER from a baseline on the same meetings (below zero: better than it).

    "wins", "ties" and "losses" count the meetings in which the DER is lower, within TIE points, and higher.
    """
    before, after = (np.array([score.errors for score in system]) for system in (baseline, scores))
    speech = np.array([score.speech for score in scores])
    points = 100 * (after - before) / np.maximum(speech, 1e-9)
    wins, losses = int(np.sum(points < -TIE)), int(np.sum(points > TIE))
    counts = {"wins": wins, "ties": len(points) - wins - losses, "losses": losses}
    difference = asdict(significance.compare(before, after, speech)) if speech.any() else {}
    return {"der": _rates(baseline)["der"], **difference, **counts}


def azimuth_errors(
    matches: Mapping[str, str], refs: Iterable[Segment], true: Tracks, found: Tracks
) -> tuple[np.ndarray, int]:
    """Compare tracks while their speakers speak, at every step of the true ones.

    Args:
        matches: speaker of `found` -> speaker of `true` (`MeetingScore.matches`).
        refs: reference segments of the recording.
        true: where the speakers are.
        found: where they were found; at each time the nearest value counts.

    Returns:
        (M,) absolute errors in radians, at most pi, wherever a track is known, and the number of steps in which
        somebody speaks, once a speaker, known or not.
    """
    speaking = {name: _speaking(segments, true.step) for name, segments in _by_speaker(refs).items()}
    errors = [np.zeros(0)]
    for name, speaker in matches.items():
        track, truth = (np.asarray(values, float) for values in (found.azimuths.get(name, ()), true.azimuths[speaker]))
        steps = speaking[speaker][speaking[speaker] < len(truth)]
        nearest = np.round(steps * true.step / found.step).astype(int)
        within = nearest < len(track)
        deviation = truth[steps[within]] - track[nearest[within]]
        errors.append(np.abs((deviation + np.pi) % (2 * np.pi) - np.pi))
    joined = np.concatenate(errors)
    return joined[~np.isnan(joined)], sum(map(len, speaking.values()))


def azimuth_report(meetings: Sequence[tuple[np.ndarray, int]]) -> dict[str, float | None]:
    """Return the median and the 90th percentile of azimuth errors in DEGREES, and "covered": for how many percent of
    the time of speech a track is known.

    Args:
        meetings: what `azimuth_errors` returned for each.
    """
    errors = np.degrees(np.concatenate([np.zeros(0), *(errors for errors, _ in meetings)]))
    median, p90 = np.percentile(errors, [50, 90]).tolist() if len(errors) else (None, None)
    return {"median": median, "p90": p90, "covered": _percent(len(errors), sum(steps for _, steps in meetings))}


def attribution_report(
    refs: Mapping[str, Sequence[Segment]], hyps: Mapping[str, Sequence[Segment]], collar: float | None = None
) -> dict[str, Any]:
    """Return the JSON-ready word error rate of words with their speakers, by meeteval, with its 95% interval.

    Without `collar` it is cpWER (CHiME-6): the words of each speaker in one line, speakers matched so that the errors
    are fewest. With it tcpWER: a word may also be no further than `collar` seconds from where it is spoken.

    Args:
        refs: recording -> segments with text.
        hyps: recording -> segments with text; a recording that is missing has none.
        collar: seconds, or None.

    Raises:
        InputError: meeteval is not installed.
    """
    meeteval = needed("meeteval", "meetings")
    if collar is None:
        rate = meeteval.wer.cp_word_error_rate
    else:
        rate = functools.partial(meeteval.wer.time_constrained_minimum_permutation_word_error_rate, collar=collar)
    results = [rate(*(_seglst(side.get(name, ()), meeteval) for side in (refs, hyps))) for name in refs]
    errors, words = (np.array([getattr(result, key) for result in results]) for key in ("errors", "length"))
    name = "cpwer" if collar is None else "tcpwer"
    return {name: _percent(errors.sum(), words.sum()), "interval": _interval(errors, words), "words": int(words.sum())}


def merge(segments: Iterable[Segment]) -> list[Segment]:
    """Join the segments of each speaker that overlap or touch, and drop empty ones; metrics would count them twice."""
    merged: list[Segment] = []
    for own in _by_speaker(segments).values():
        for number, segment in enumerate(sorted(own, key=lambda s: s.start)):
            if number and segment.start <= merged[-1].end:
                merged[-1] = replace(merged[-1], end=max(merged[-1].end, segment.end))
            else:
                merged.append(segment)
    return merged


# Details


def _by_speaker(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    groups: dict[str, list[Segment]] = {}
    for segment in segments:
        if segment.end > segment.start:
            groups.setdefault(segment.speaker, []).append(segment)
    return groups


def _annotation(segments: Iterable[Segment], core: ModuleType) -> Any:
    annotation = core.Annotation()
    for track, segment in enumerate(segments):
        annotation[core.Segment(segment.start, segment.end), track] = segment.speaker
    return annotation


def _seglst(segments: Iterable[Segment], meeteval: ModuleType) -> Any:
    keys = ("speaker", "start_time", "end_time", "words")
    return meeteval.io.SegLST([dict(zip(keys, (s.speaker, s.start, s.end, s.text), strict=True)) for s in segments])


def _speaking(segments: Iterable[Segment], step: float) -> np.ndarray:
    """Return the steps (M,), in order and each once, at which one speaker speaks."""
    spans = [np.arange(math.ceil(s.start / step), math.ceil(s.end / step)) for s in segments]
    return np.unique(np.concatenate(spans))


def _rates(scores: Sequence[MeetingScore]) -> dict[str, float | None]:
    speech = sum(score.speech for score in scores)
    errors = {name: sum(getattr(score, name) for score in scores) for name in ("missed", "false_alarm", "confusion")}
    jaccard, speakers = sum(score.jaccard for score in scores), sum(score.scored_speakers for score in scores)
    rates = {"der": sum(errors.values())} | errors
    return {name: _percent(seconds, speech) for name, seconds in rates.items()} | {
        "jer": _percent(jaccard, speakers),
        "speech": speech,
    }


def _percent(part: float, whole: float) -> float | None:
    return 100 * float(part) / float(whole) if whole > 0 else None


def _interval(part: np.ndarray, whole: np.ndarray) -> tuple[float, float] | None:
    return significance.rate_interval(part, whole) if whole.any() else None
