"""Is a manifest fit for training and scoring? Each utterance is looked at, its audio decoded."""

from collections.abc import Iterator
from pathlib import Path

import soundfile
from lhotse import Recording
from lhotse.cut import Cut

from asrkit.data.audio import read_cut
from asrkit.data.manifests import END_TOLERANCE, read_lines
from asrkit.errors import InputError
from asrkit.progress import progress


def problems(path: Path | str) -> Iterator[str]:
    """What is wrong with a manifest, one problem a line; nothing where all is well.

    Raises:
        InputError: the file itself cannot be read.
    """
    seen: set[str] = set()
    checked: set[str] = set()  # recordings
    number = 0
    for number, cut in progress(read_lines(path), f"validate {Path(path).name}"):
        if isinstance(cut, InputError):
            yield f"{path}: line {number}: {cut}"
            continue
        found = [*_supervision_problems(cut), *_recording_problems(cut.recording, checked), *_audio_problems(cut)]
        if cut.id in seen:
            found.insert(0, "a second cut of this id")
        seen.add(cut.id)
        yield from (f"{path}: line {number}: {cut.id}: {problem}" for problem in found)
    if not number:
        yield f"{path}: no cuts"


def _supervision_problems(cut: Cut) -> Iterator[str]:
    if len(cut.supervisions) != 1:
        yield f"{len(cut.supervisions)} supervisions; exactly one is expected"
        return
    supervision = cut.supervisions[0]
    text = (supervision.text or "").split()
    if not text:
        yield "empty text"
    if supervision.start < -END_TOLERANCE or supervision.end > cut.duration + END_TOLERANCE:
        yield f"supervision from {supervision.start} s to {supervision.end} s, the cut has {cut.duration} s"
    for kind, items in (supervision.alignment or {}).items():
        if kind == "word" and [item.symbol for item in items] != text:
            yield "the words of the alignment are not those of the text"
        previous = 0.0
        for item in items:
            if item.duration < 0 or item.start < previous - END_TOLERANCE or item.end > cut.duration + END_TOLERANCE:
                yield f"{kind} '{item.symbol}' from {item.start} s to {item.end} s is out of order or outside the cut"
                break
            previous = item.start


def _recording_problems(recording: Recording, checked: set[str]) -> Iterator[str]:
    """Compare what the manifest says of a recording with its file, once a recording."""
    if recording.id in checked:
        return
    checked.add(recording.id)
    for source in recording.sources:
        if source.type != "file":
            continue
        try:
            info = soundfile.info(str(source.source))
        except (soundfile.LibsndfileError, OSError):
            continue  # decoding will say so
        if info.samplerate != recording.sampling_rate:
            yield f"{source.source} has {info.samplerate} Hz, not {recording.sampling_rate}"
        elif abs(info.frames / info.samplerate - recording.duration) > END_TOLERANCE:
            yield f"{source.source} lasts {info.frames / info.samplerate:.3f} s, not {recording.duration:.3f} s"


def _audio_problems(cut: Cut) -> Iterator[str]:
    try:
        samples = read_cut(cut, cut.sampling_rate)
    except InputError as error:
        yield str(error).removeprefix(f"cut {cut.id}: ")
        return
    if not samples.any():
        yield "all samples are zero"
