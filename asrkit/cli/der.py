"""`asrkit der`: who spoke when, scored: diarisation error rate, Jaccard error rate, speakers, azimuths.

Usage:
    asrkit der --refs data/meetings/ref.rttm --hyps exp/kalman/hyp.rttm --out exp/kalman
    asrkit der --refs data/ami/rttm --hyps exp/ami/rttm --uem data/ami/test.uem --collar 0.25 --out exp/ami
    asrkit der --refs ref.rttm --hyps hyp.rttm --out exp/a --tracks tracks.jsonl --found_tracks exp/a/tracks.jsonl
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asrkit.cli.main import command_line, run
from asrkit.data.formats import read_rttm, read_seglst, read_tracks, read_uem
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.scoring.diarisation import (
    MeetingScore,
    attribution_report,
    azimuth_errors,
    azimuth_report,
    diarisation_comparison,
    diarisation_report,
    score_meeting,
)
from asrkit.types import Segment, Tracks

Meetings = dict[str, list[Segment]]


def der(
    *,
    refs: list[Path],
    hyps: list[Path],
    out: Path,
    uem: Path | None = None,
    collar: float = 0.0,
    skip_overlap: bool = False,
    baseline: Path | None = None,
    tracks: Path | None = None,
    found_tracks: Path | None = None,
) -> None:
    """Print the diarisation error rate over all recordings, with its 95% interval, and write score.json.

    Where segments of both sides have words (SegLST): also the word error rate of words with their speakers (cpWER).

    Args:
        refs: references: RTTM files, folders of them, or SegLST files (.json).
        hyps: hypotheses of the same recordings, in the same formats.
        out: folder for score.json.
        uem: UEM file: only the recordings and stretches in it are scored.
        collar: seconds on each side of every boundary of the reference that are not scored (NIST's collar, half of
            pyannote's).
        skip_overlap: do not score where several speakers of the reference speak at once.
        baseline: hypotheses of another system: tells how far the difference could be chance.
        tracks: tracks.jsonl with the true azimuths of the speakers.
        found_tracks: tracks.jsonl with the azimuths that were found.
    """
    if collar < 0:
        raise InputError(f"--collar must not be below 0, not {collar:g}")
    if (tracks is None) != (found_tracks is None):
        raise InputError("--tracks and --found_tracks go together")
    truth, guess = read_meetings(refs), read_meetings(hyps)
    stretches = read_uem(uem) if uem else None
    names = sorted(stretches if stretches is not None else truth)
    if not names:
        raise InputError(f"{uem or refs[0]}: nothing to score")

    def scored(found: Meetings, files: list[Path]) -> list[MeetingScore]:
        _check(found, names, truth, files)
        return [
            score_meeting(
                name,
                truth.get(name, ()),
                found.get(name, ()),
                collar=collar,
                skip_overlap=skip_overlap,
                evaluated=stretches and stretches[name],
            )
            for name in names
        ]

    scores = scored(guess, hyps)
    figures: dict[str, Any] = {
        "command": command_line(),
        "references": list(map(str, refs)),
        "hypotheses": list(map(str, hyps)),
        "collar": collar,
        "overlap": "skipped" if skip_overlap else "scored",
        "missing": [name for name in names if name not in guess],
        **diarisation_report(scores),
    }
    if tracks and found_tracks:
        figures["azimuth"] = _azimuths(scores, truth, tracks, found_tracks)
    if all(any(segment.text for own in side.values() for segment in own) for side in (truth, guess)):
        figures["words"] = attribution_report({name: truth.get(name, []) for name in names}, guess)
    if baseline:
        others = scored(read_meetings([baseline]), [baseline])
        figures["baseline"] = {"hypotheses": str(baseline), **diarisation_comparison(others, scores)}
    with atomic_write(out / "score.json") as file:
        json.dump(figures, file, indent=1, ensure_ascii=False)
        file.write("\n")
    _print_summary(figures)


def read_meetings(paths: Iterable[Path]) -> Meetings:
    """Return recording -> segments of RTTM and SegLST files and of folders of RTTM files.

    Raises:
        InputError: a broken file, a folder that has none, or a recording that is in two files.
    """
    meetings: Meetings = {}
    origin: dict[str, Path] = {}
    for path in paths:
        files = sorted(path.rglob("*.rttm")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: no .rttm file in this folder")
        for file in files:
            for segment in read_seglst(file) if file.suffix == ".json" else read_rttm(file):
                first = origin.setdefault(segment.recording, file)
                if first != file:
                    raise InputError(f"{file}: recording '{segment.recording}' is in {first}, too")
                meetings.setdefault(segment.recording, []).append(segment)
    return meetings


def _check(found: Meetings, names: list[str], truth: Meetings, files: list[Path]) -> None:
    """Warn of recordings that the hypotheses lack.

    Raises:
        InputError: they have one that the references lack.
    """
    where = ", ".join(map(str, files))
    unknown = [name for name in found if name not in truth and name not in names]
    if unknown:
        raise InputError(f"{where}: recording '{unknown[0]}' is not in the references")
    missing = [name for name in names if name not in found]
    if missing:
        listed = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        print(
            f"warning: {where}: {len(missing)} of {len(names)} recordings are missing, their speech counts as missed: "
            f"{listed}",
            file=sys.stderr,
        )


def _azimuths(scores: list[MeetingScore], truth: Meetings, tracks: Path, found_tracks: Path) -> dict[str, Any]:
    """Return the azimuth errors.

    Raises:
        InputError: a broken file, or a recording or a speaker without true azimuths.
    """
    true, found = read_tracks(tracks), read_tracks(found_tracks)
    errors = []
    for score in scores:
        if score.recording not in true:
            raise InputError(f"{tracks}: no recording '{score.recording}'")
        known = true[score.recording]
        unknown = set(score.matches.values()) - set(known.azimuths)
        if unknown:
            raise InputError(f"{tracks}: recording '{score.recording}' has no speaker '{min(unknown)}'")
        guess = found.get(score.recording, Tracks(score.recording, known.step, {}))
        errors.append(azimuth_errors(score.matches, truth.get(score.recording, ()), known, guess))
    return azimuth_report(errors)


def _print_summary(figures: dict[str, Any]) -> None:
    count = figures["meetings"]
    scored = f"collar {figures['collar']:g} s, overlap {figures['overlap']}, {count} meeting{'s' * (count != 1)}"
    parts = ", ".join(
        f"{name.replace('_', ' ')} {_show(figures[name])}" for name in ("missed", "false_alarm", "confusion")
    )
    print(f"%DER {_show(figures['der'])} [ {parts} ], 95% interval {_range(figures['interval'])}; {scored}")
    print(f"%JER {_show(figures['jer'])}, 95% interval {_range(figures['jer_interval'])}")
    print(f"speakers found - true: {figures['speaker_bias']:+.2f}, absolute {figures['speaker_error']:.2f} in the mean")
    if azimuth := figures.get("azimuth"):
        print(
            f"azimuth error, median and 90th percentile: {_show(azimuth['median'])}° ({_show(azimuth['p90'])}°); "
            f"a track for {_show(azimuth['covered'])}% of the speech"
        )
    if words := figures.get("words"):
        print(f"%cpWER {_show(words['cpwer'])}, 95% interval {_range(words['interval'])}, {words['words']} words")
    if other := figures.get("baseline"):
        print(_comparison_line(other))


def _comparison_line(other: dict[str, Any]) -> str:
    line = f"against {other['hypotheses']} (%DER {_show(other['der'])})"
    if "difference" not in other:  # no speech to compare
        return line
    low, high = other["interval"]
    return (
        f"{line}: {other['difference']:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}, "
        f"matched-pairs p = {other['p_value']:.2g}; meetings better, same, worse: "
        f"{other['wins']}, {other['ties']}, {other['losses']}"
    )


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def main(argv: list[str]) -> None:
    run(der, argv)
