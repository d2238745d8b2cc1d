"""Diarisation scores against counting frames under every matching of the speakers."""

import itertools
import math
import sys

import numpy as np
import pytest

from asrkit.errors import InputError
from asrkit.scoring.diarisation import (
    attribution_report,
    azimuth_errors,
    azimuth_report,
    diarisation_comparison,
    diarisation_report,
    merge,
    score_meeting,
)
from asrkit.types import Segment, Tracks

FRAME = 0.1  # seconds; all times of the tests are multiples of it


@pytest.fixture(scope="module", autouse=True)
def metrics():
    return pytest.importorskip("pyannote.metrics", reason="pyannote.metrics is not installed (extra 'meetings')")


def talk(seed, speakers, turns=12):
    """Turns at random, overlapping each other, also of one and the same speaker."""
    generator = np.random.default_rng(seed)
    starts, lengths = generator.integers(0, 200, turns), generator.integers(1, 40, turns)
    return [
        Segment("m", FRAME * start, FRAME * (start + length), f"{generator.integers(speakers)}")
        for start, length in zip(starts, lengths, strict=True)
    ]


def frames(segments, evaluated=(0.0, 30.0)):
    """Return speaker -> (T,) bool."""
    count = round(30 / FRAME)
    outside = np.ones(count, bool)
    outside[round(evaluated[0] / FRAME) : round(evaluated[1] / FRAME)] = False
    table = {}
    for segment in segments:
        speaks = table.setdefault(segment.speaker, np.zeros(count, bool))
        speaks[round(segment.start / FRAME) : round(segment.end / FRAME)] = True
    return {speaker: speaks & ~outside for speaker, speaks in table.items() if np.any(speaks & ~outside)}


def counted(refs, hyps, collar=0.0, skip_overlap=False, evaluated=(0.0, 30.0)):
    """Return (speech, missed, false alarm, confusion) in seconds and the JER, by frames and permutations."""
    truth, guess = frames(refs, evaluated), frames(hyps, evaluated)
    keep = np.ones(round(30 / FRAME), bool)
    for speaks in frames(refs).values():
        for edge in np.flatnonzero(np.diff(speaks, prepend=False, append=False)):
            keep[max(0, edge - round(collar / FRAME)) : edge + round(collar / FRAME)] = False
    r = np.array(list(truth.values())).reshape(len(truth), -1) & keep
    h = np.array(list(guess.values())).reshape(len(guess), -1) & keep
    if skip_overlap:
        r, h = r[:, r.sum(0) < 2], h[:, r.sum(0) < 2]
    r, h = r[r.any(1)], h[h.any(1)]
    size = max(len(r), len(h))
    both = np.zeros((size, size))
    both[: len(r), : len(h)] = r.astype(int) @ h.T.astype(int)
    best = max(itertools.permutations(range(size)), key=lambda order: both[range(size), order].sum())
    correct = both[range(size), best].sum()
    spoken, found = r.sum(0), h.sum(0)
    times = (
        spoken.sum(),
        np.maximum(spoken - found, 0).sum(),
        np.maximum(found - spoken, 0).sum(),
        np.minimum(spoken, found).sum() - correct,
    )
    jaccard = []
    for speaker, match in zip(r, best, strict=False):
        other = h[match] if match < len(h) and (speaker & h[match]).any() else np.zeros_like(speaker)
        jaccard.append(1 - (speaker & other).sum() / (speaker | other).sum())
    return np.array(times) * FRAME, 100 * np.mean(jaccard)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "options",
    [{}, {"collar": 0.3}, {"skip_overlap": True}, {"collar": 0.2, "skip_overlap": True}, {"evaluated": (4.0, 16.5)}],
)
def test_rates_are_those_of_frames(seed, options):
    refs, hyps = talk(seed, 3), talk(seed + 100, 4)
    times, jer = counted(refs, hyps, **options)
    if "evaluated" in options:
        options = {"evaluated": [(4.0, 10.0), (10.0, 16.5)]}
    score = score_meeting("m", refs, hyps, **options)
    assert (score.speech, score.missed, score.false_alarm, score.confusion) == pytest.approx(times)
    if score.scored_speakers:
        assert diarisation_report([score])["jer"] == pytest.approx(jer, rel=1e-6)


def test_order_and_names_and_cuts_do_not_matter():
    refs, hyps = talk(1, 3), talk(2, 3)
    once = score_meeting("m", refs, hyps)
    halves = [
        piece
        for s in reversed(hyps)
        for piece in (
            Segment("m", s.start, (s.start + s.end) / 2, f"x{s.speaker}"),
            Segment("m", (s.start + s.end) / 2, s.end, f"x{s.speaker}"),
            Segment("m", s.end, s.end, "nobody"),
        )
    ]
    again = score_meeting("m", refs[::-1], halves)
    assert (again.missed, again.false_alarm, again.confusion, again.found) == pytest.approx(
        (once.missed, once.false_alarm, once.confusion, once.found)
    )
    assert again.matches == {f"x{name}": speaker for name, speaker in once.matches.items()}


def test_merge():
    pieces = [Segment("m", 2, 3, "a"), Segment("m", 0, 2, "a"), Segment("m", 0.5, 1, "a"), Segment("m", 1, 4, "b")]
    assert merge([*pieces, Segment("m", 9, 9, "a")]) == [Segment("m", 0, 3, "a"), Segment("m", 1, 4, "b")]


def test_the_collar_is_on_each_side():
    refs, hyps = [Segment("m", 1, 3, "a")], [Segment("m", 1.25, 3.25, "x")]
    assert diarisation_report([score_meeting("m", refs, hyps)])["der"] == pytest.approx(25)
    score = score_meeting("m", refs, hyps, collar=0.25)
    assert (score.errors, score.speech) == pytest.approx((0, 1.5))


def test_silence_and_nothing_found():
    nothing = score_meeting("m", [], [])
    assert diarisation_report([nothing])["der"] is None
    false = score_meeting("m", [], [Segment("m", 1, 2, "x")])
    assert (false.speech, false.false_alarm, false.found) == (0, 1, 1)
    missed = score_meeting("n", [Segment("n", 1, 3, "a")], [])
    report = diarisation_report([false, missed])
    assert (report["der"], report["missed"], report["false_alarm"], report["jer"]) == pytest.approx((150, 100, 50, 100))
    assert (report["speaker_error"], report["speaker_bias"], report["meetings"]) == (1, 0, 2)
    assert report["by"]["meeting"]["m"]["der"] is None and report["by"]["meeting"]["n"]["der"] == 100


def test_figures_are_pooled_and_their_interval_is_over_meetings():
    scores = [score_meeting(f"{seed}", talk(seed, 3), talk(seed + 50, 3)) for seed in range(8)]
    report = diarisation_report(scores)
    assert report["der"] == pytest.approx(100 * sum(s.errors for s in scores) / sum(s.speech for s in scores))
    assert report["der"] == pytest.approx(report["missed"] + report["false_alarm"] + report["confusion"])
    low, high = report["interval"]
    rates = [figures["der"] for figures in report["by"]["meeting"].values()]
    assert min(rates) < low < report["der"] < high < max(rates)
    assert report["jer_interval"][0] < report["jer"] < report["jer_interval"][1]


def test_comparison_is_paired():
    refs = [[Segment("m", 0, 10, "a"), Segment("m", 10, 20, "b")] for _ in range(3)]
    cut = [(10, 12), (10, 10), (10, 9)]  # where each system changes from one speaker to the other
    systems = [
        [
            score_meeting("m", ref, [Segment("m", 0, ends[which], "x"), Segment("m", ends[which], 20, "y")])
            for ref, ends in zip(refs, cut, strict=True)
        ]
        for which in (0, 1)
    ]
    compared = diarisation_comparison(*systems)
    assert (compared["der"], compared["difference"]) == pytest.approx((0, 100 * 3 / 60))
    assert (compared["wins"], compared["ties"], compared["losses"]) == (0, 1, 2)
    assert diarisation_comparison(systems[1], systems[0])["wins"] == 2


def test_azimuth_errors_wrap_and_count_only_speech():
    true = Tracks("m", 0.1, {"a": np.full(100, 3.1), "b": np.linspace(0, 1, 100), "c": np.zeros(100)})
    found = Tracks("m", 0.2, {"x": np.full(50, -3.1), "y": np.r_[np.linspace(0, 1, 100)[:20:2], np.full(40, math.nan)]})
    refs = [Segment("m", 0, 1, "a"), Segment("m", 0.5, 1, "a"), Segment("m", 1, 3, "b"), Segment("m", 5, 6, "c")]
    errors, steps = azimuth_errors({"x": "a", "y": "b"}, refs, true, found)
    assert steps == 10 + 20 + 10 and len(errors) < 10 + 20
    assert errors[:10] == pytest.approx(2 * math.pi - 6.2) and errors[10:].max() <= 0.5 * 0.2 / 9.9 + 0.01
    report = azimuth_report([(errors, steps), (np.zeros(0), 0)])
    assert report["median"] == pytest.approx(math.degrees(np.median(errors)))
    assert report["covered"] == pytest.approx(100 * len(errors) / steps)
    assert azimuth_report([(np.zeros(0), 0)]) == {"median": None, "p90": None, "covered": None}


def test_words_with_their_speakers():
    pytest.importorskip("meeteval", reason="meeteval is not installed (extra 'meetings')")
    refs = {
        "m": [Segment("m", 0, 1, "a", "good morning"), Segment("m", 1, 2, "b", "hello")],
        "n": [Segment("n", 0, 1, "a", "yes")],
    }
    right = {"m": [Segment("m", 0, 1, "x", "good morning"), Segment("m", 1, 2, "y", "hello")]}
    swapped = {"m": [Segment("m", 0, 1, "x", "good"), Segment("m", 1, 2, "y", "morning hello")]}
    assert attribution_report(refs, right)["cpwer"] == pytest.approx(25)  # the word of n is missing
    assert attribution_report(refs, swapped)["cpwer"] == pytest.approx(75)
    late = {"m": [Segment("m", 30, 31, "x", "good morning"), Segment("m", 1, 2, "y", "hello")]}
    assert attribution_report(refs, late)["cpwer"] == pytest.approx(25)
    assert attribution_report(refs, late, collar=5.0)["tcpwer"] == pytest.approx(125)


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("pyannote.core", lambda: score_meeting("m", [], [])),
        ("meeteval", lambda: attribution_report({}, {})),
    ],
)
def test_what_is_not_installed_is_named(monkeypatch, module, use):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'asrkit\[meetings\]'"):
        use()


def test_no_warnings_and_no_state_between_meetings(recwarn):
    first = score_meeting("m", talk(1, 3), talk(2, 3))
    score_meeting("m", talk(3, 3), talk(4, 3))
    assert score_meeting("m", talk(1, 3), talk(2, 3)) == first
    assert not recwarn.list
