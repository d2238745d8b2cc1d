"""Recordings on disk, and the cut of one utterance in them: what every corpus preparer makes."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

from asrkit.data.manifests import END_TOLERANCE
from asrkit.errors import InputError
from asrkit.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_recording(file: Path, identifier: str | None = None) -> Recording:
    """Describe an audio file (its header alone is read); `identifier` defaults to its stem.

    Raises:
        InputError: no such file, not audio, or no samples in it; names the file.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        info = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{file}: not readable as audio: {error.error_string}") from error
    if info.frames <= 0:
        raise InputError(f"{file}: no samples")
    return Recording(
        id=identifier or file.stem,
        sources=[AudioSource("file", list(range(info.channels)), str(file.absolute()))],
        sampling_rate=info.samplerate,
        num_samples=info.frames,
        duration=info.frames / info.samplerate,
    )


def utterance_cut(
    recording: Recording,
    identifier: str,
    text: str,
    speaker: str,
    start: float = 0.0,
    end: float | None = None,
    words: list[AlignmentItem] | None = None,
) -> MonoCut:
    """The cut of one utterance in the first channel of a recording, from `start` to `end` (seconds; default its end).

    The times of `words` count from `start`.

    Raises:
        InputError: the utterance is empty or not within the recording.
    """
    end = recording.duration if end is None else end
    if not 0 <= start < end <= recording.duration + END_TOLERANCE:
        raise InputError(f"utterance {identifier}: {start} s to {end} s is not within its {recording.duration:.3f} s")
    duration = min(end, recording.duration) - start
    supervision = SupervisionSegment(
        id=identifier,
        recording_id=recording.id,
        start=0.0,
        duration=duration,
        text=text,
        speaker=speaker,
        alignment={"word": words} if words else None,
    )
    channel = min(recording.channel_ids)
    return MonoCut(identifier, start, duration, channel=channel, recording=recording, supervisions=[supervision])


def map_files(function: Callable[[Item], Result], items: Iterable[Item], description: str) -> list[Result]:
    """`function` of each item, in order, by threads that wait for the disk together."""
    items = list(items)
    with ThreadPoolExecutor(8) as pool:
        return list(progress(pool.map(function, items), description, total=len(items)))
