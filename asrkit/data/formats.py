"""Hypothesis files: `nbest.jsonl`, Kaldi text, CTM, JSON, SRT from `NBest`; RTTM, STM, SegLST from `Segment`; UEM and
`tracks.jsonl` of meetings.

`nbest.jsonl` holds one utterance a line and everything the search knows; the other formats are made from it:

    {"utterance": "utt-1", "duration": 1.2, "hyps": [{"text": "hello", "score": -0.7,
     "scores": {"acoustic": -0.7}, "tokens": ["▁hello"], "token_times": [0.4],
     "words": [{"text": "hello", "start": 0.4, "end": 0.8, "confidence": 0.95}]}]}

Times are seconds from the start of the recording. "text" is there for people and tools: readers take it from "words".

`tracks.jsonl` holds one meeting a line, the azimuths of its speakers in radians, null where they are not known:

    {"recording": "m1", "step": 0.1, "azimuths": {"ann": [0.5, 0.51], "bob": [null, -2.0]}}
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.types import Hypothesis, NBest, Segment, Tracks, Word

SUBTITLE_SECONDS = 7.0
SUBTITLE_CHARACTERS = 42
OTHER_RTTM = {  # NIST's other types of line, which say nothing of who speaks
    "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH",
    "FILLER", "EDIT", "IP", "SU", "CB", "A/P", "SPKR-INFO",
}  # fmt: skip


# One utterance as the text of each format


def nbest_line(nbest: NBest) -> str:
    """Return the line of `nbest.jsonl`, without its end."""
    hyps = [_hypothesis_record(hyp) for hyp in nbest.hyps]
    return json.dumps({"utterance": nbest.utterance, "duration": nbest.duration, "hyps": hyps}, ensure_ascii=False)


def text_line(nbest: NBest) -> str:
    """Return Kaldi's line `<utterance> <words of the best hypothesis>`."""
    return f"{nbest.utterance} {_best(nbest).text}".rstrip()


def ctm(nbest: NBest) -> str:
    """Return CTM lines `<recording> 1 <start> <duration> <word> [<confidence>]`, one a word of the best hypothesis."""
    return "\n".join(
        f"{nbest.utterance} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text}"
        + ("" if word.confidence is None else f" {word.confidence:.3f}")
        for word in _best(nbest).words
    )


def json_text(nbest: NBest) -> str:
    """Return the best hypothesis as indented JSON for programs: text, words with times and confidence."""
    best = _hypothesis_record(_best(nbest))
    keep = {"utterance": nbest.utterance, "duration": nbest.duration, "text": best["text"], "words": best["words"]}
    return json.dumps(keep, ensure_ascii=False, indent=2)


def srt(nbest: NBest) -> str:
    """Return SubRip subtitles of the best hypothesis: one line each of at most 42 characters and 7 seconds.

    A single word beyond either limit stands alone; one longer than 7 s is shown for 7 s.
    """
    blocks = []
    for number, line in enumerate(_subtitles(_best(nbest).words), start=1):
        end = min(line[-1].end, line[0].start + SUBTITLE_SECONDS)
        text = " ".join(word.text for word in line)
        blocks.append(f"{number}\n{_srt_time(line[0].start)} --> {_srt_time(end)}\n{text}\n")
    return "\n".join(blocks)


FORMATS: dict[str, Callable[[NBest], str]] = {
    "text": text_line,
    "json": json_text,
    "ctm": ctm,
    "srt": srt,
    "nbest": nbest_line,
}


# Files


@contextmanager
def nbest_writer(file: Path | str) -> Iterator[Callable[[NBest], None]]:
    """Open `nbest.jsonl` and yield a function that adds one utterance.

    Each line reaches the file at once, so that an interrupted decoding run keeps all that it finished.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        out = open(file, "w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from error

    def write(nbest: NBest) -> None:
        try:
            out.write(nbest_line(nbest) + "\n")
            out.flush()
        except OSError as error:
            raise InputError(f"{file}: cannot be written: {error.strerror}") from error

    try:
        yield write
    finally:
        with suppress(OSError):  # after a full disk closing fails again; what was flushed is safe
            out.close()


def write_nbest(records: Iterable[NBest], file: Path | str) -> None:
    """Write a complete `nbest.jsonl`, atomically."""
    write_lines(map(nbest_line, records), file)


def read_nbest(file: Path | str) -> Iterator[NBest]:
    """Yield the utterances of an `nbest.jsonl` one at a time.

    Raises:
        InputError: the file cannot be read, or a line is no such record; names the file and the line.
    """
    for number, line in _lines(file):
        try:
            yield _nbest_from(json.loads(line))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"no key {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{file}: line {number}: not an nbest record: {problem}") from error


def read_partials(file: Path | str) -> dict[str, list[tuple[float, str]]]:
    """Return utterance -> its partial results, (seconds of audio heard, all words so far), of a `partials.jsonl`.

    Raises:
        InputError: the file cannot be read, or a line is no such record; names the file and the line.
    """
    partials: dict[str, list[tuple[float, str]]] = {}
    for number, line in _lines(file):
        try:
            record = json.loads(line)
            partials[record["utterance"]] = [(float(time), str(text)) for time, text in record["partials"]]
        except (KeyError, TypeError, ValueError) as error:
            problem = f"no key {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{file}: line {number}: no partial results: {problem}") from error
    return partials


def read_text(file: Path | str) -> dict[str, str]:
    """Read Kaldi's `<utterance> <words>` lines; an utterance may have no words.

    Raises:
        InputError: the file cannot be read, or an utterance comes twice (named with its line).
    """
    texts: dict[str, str] = {}
    for number, line in _lines(file):
        utterance, *words = line.split()
        if utterance in texts:
            raise InputError(f"{file}: line {number}: utterance '{utterance}' comes twice")
        texts[utterance] = " ".join(words)
    return texts


def write_lines(lines: Iterable[str], file: Path | str) -> None:
    """Write a complete text file, atomically; empty items (an utterance without words in CTM) leave no line."""
    with atomic_write(file) as out:
        out.writelines(f"{line}\n" for line in lines if line)


def read_rttm(file: Path | str) -> list[Segment]:
    """Read the SPEAKER lines of NIST RTTM, in the order of the file; they may overlap. Comments start with `;`.

    Raises:
        InputError: the file cannot be read, or a line is none of RTTM; names the file and the line.
    """
    segments = []
    for number, line in _lines(file):
        fields = line.split()
        if fields[0].startswith(";") or fields[0] in OTHER_RTTM:
            continue
        try:
            if fields[0] != "SPEAKER" or not 8 <= len(fields) <= 10:
                raise ValueError("expected SPEAKER <recording> 1 <start> <duration> <NA> <NA> <speaker> <NA> <NA>")
            start, duration = _seconds(fields[3]), _seconds(fields[4])
            segments.append(_segment(fields[1], start, start + duration, fields[7]))
        except ValueError as error:
            raise InputError(f"{file}: line {number}: {error}") from error
    return segments


def read_uem(file: Path | str) -> dict[str, list[tuple[float, float]]]:
    """Read NIST UEM, `<recording> <channel> <start> <end>`: recording -> the stretches (seconds) that are scored.

    Raises:
        InputError: the file cannot be read, or a line is none of UEM; names the file and the line.
    """
    stretches: dict[str, list[tuple[float, float]]] = {}
    for number, line in _lines(file):
        fields = line.split()
        if fields[0].startswith(";"):
            continue
        try:
            recording, _, start, end = fields
            stretch = _segment(recording, _seconds(start), _seconds(end), "")
        except ValueError as error:
            problem = error if len(fields) == 4 else "expected <recording> <channel> <start> <end>"
            raise InputError(f"{file}: line {number}: {problem}") from error
        stretches.setdefault(recording, []).append((stretch.start, stretch.end))
    return stretches


def read_seglst(file: Path | str) -> list[Segment]:
    """Read SegLST, in the order of the file; they may overlap, and need not have words.

    Raises:
        InputError: the file cannot be read, or is no such list; names the file and the number of the segment.
    """
    try:
        records = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(records, list):
        raise InputError(f"{file}: expected a list of segments")
    return [_segment_from(record, f"{file}: segment {number}") for number, record in enumerate(records, start=1)]


def rttm_line(segment: Segment) -> str:
    """Return a line of NIST RTTM, `SPEAKER <recording> 1 <start> <duration> <NA> <NA> <speaker> <NA> <NA>`.

    Names have `_` for spaces.
    """
    times = f"{segment.start:.3f} {segment.end - segment.start:.3f}"
    return f"SPEAKER {_field(segment.recording)} 1 {times} <NA> <NA> {_field(segment.speaker)} <NA> <NA>"


def write_rttm(segments: Iterable[Segment], file: Path | str) -> None:
    """Write NIST RTTM, see `rttm_line`."""
    write_lines(map(rttm_line, segments), file)


def write_stm(segments: Iterable[Segment], file: Path | str) -> None:
    """Write NIST STM: `<recording> 1 <speaker> <start> <end> <text>`; names have `_` for spaces."""
    write_lines(
        (f"{_field(s.recording)} 1 {_field(s.speaker)} {s.start:.3f} {s.end:.3f} {s.text}".rstrip() for s in segments),
        file,
    )


def write_seglst(segments: Iterable[Segment], file: Path | str) -> None:
    """Write SegLST, the segment list in JSON of CHiME-7 and meeteval."""
    records = [
        {"session_id": s.recording, "speaker": s.speaker, "start_time": s.start, "end_time": s.end, "words": s.text}
        for s in segments
    ]
    with atomic_write(file) as out:
        json.dump(records, out, ensure_ascii=False, indent=1)
        out.write("\n")


def read_tracks(file: Path | str) -> dict[str, Tracks]:
    """Return recording -> where its speakers are, of a `tracks.jsonl`.

    Raises:
        InputError: the file cannot be read, or a line is no such record; names the file and the line.
    """
    tracks = {}
    for number, line in _lines(file):
        try:
            record = json.loads(line)
            azimuths = {
                str(speaker): [math.nan if azimuth is None else float(azimuth) for azimuth in values]
                for speaker, values in record["azimuths"].items()
            }
            step = float(record["step"])
            if not 0 < step < math.inf:
                raise ValueError(f"step must be above 0, not {step}")
            tracks[record["recording"]] = Tracks(str(record["recording"]), step, azimuths)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"no key {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{file}: line {number}: no tracks: {problem}") from error
    return tracks


def write_tracks(tracks: Iterable[Tracks], file: Path | str) -> None:
    """Write a complete `tracks.jsonl`, atomically; azimuths to a ten thousandth of a radian."""
    write_lines(
        (
            json.dumps(
                {
                    "recording": each.recording,
                    "step": each.step,
                    "azimuths": {
                        speaker: [None if math.isnan(azimuth) else round(float(azimuth), 4) for azimuth in values]
                        for speaker, values in each.azimuths.items()
                    },
                },
                ensure_ascii=False,
            )
            for each in tracks
        ),
        file,
    )


# Details


def _field(name: str) -> str:
    """Return a name as one field of a line."""
    return "_".join(name.split()) or "<NA>"


def _seconds(text: str | float) -> float:
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(f"'{text}' is no time")
    return seconds


def _segment(recording: str, start: float, end: float, speaker: str, text: str = "") -> Segment:
    if end < start:
        raise ValueError(f"a stretch that ends {start - end:g} s before it starts")
    return Segment(recording, start, end, speaker, text)


def _segment_from(record: dict[str, Any], place: str) -> Segment:
    """Return a segment of SegLST; CHiME writes its times as strings."""
    try:
        start, end = _seconds(record["start_time"]), _seconds(record["end_time"])
        return _segment(str(record["session_id"]), start, end, str(record["speaker"]), str(record.get("words") or ""))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"no key {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{place}: {problem}") from error


def _best(nbest: NBest) -> Hypothesis:
    return nbest.hyps[0] if nbest.hyps else Hypothesis((), (), (), 0.0)


def _hypothesis_record(hyp: Hypothesis) -> dict[str, Any]:
    return {
        "text": hyp.text,
        "score": hyp.score,
        "scores": hyp.scores,
        "tokens": hyp.tokens,
        "token_times": hyp.token_times,
        "words": [_word_record(word) for word in hyp.words],
    }


def _word_record(word: Word) -> dict[str, Any]:
    record = {"text": word.text, "start": word.start, "end": word.end}
    return record if word.confidence is None else record | {"confidence": word.confidence}


def _nbest_from(record: dict[str, Any]) -> NBest:
    hyps = tuple(
        Hypothesis(
            tokens=tuple(hyp["tokens"]),
            token_times=tuple(hyp["token_times"]),
            words=tuple(Word(**word) for word in hyp["words"]),
            score=float(hyp["score"]),
            scores=dict(hyp["scores"]),
        )
        for hyp in record["hyps"]
    )
    return NBest(str(record["utterance"]), float(record["duration"]), hyps)


def _lines(file: Path | str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of the lines that are not blank."""
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text: {error}") from error


def _subtitles(words: Iterable[Word]) -> Iterator[list[Word]]:
    line: list[Word] = []
    for word in words:
        characters = sum(len(other.text) + 1 for other in line) + len(word.text)
        if line and (characters > SUBTITLE_CHARACTERS or word.end - line[0].start > SUBTITLE_SECONDS):
            yield line
            line = []
        line.append(word)
    if line:
        yield line


def _srt_time(seconds: float) -> str:
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02},{milliseconds % 1000:03}"
