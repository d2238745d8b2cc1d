"""`asrkit diarise`: who spoke when in a meeting, and with a microphone array where.

Usage:
    asrkit diarise meeting.wav --model exp/speaker --array array.yaml --out exp/meeting
    asrkit diarise phone.flac --model exp/speaker --speakers 2                           # one channel: no places
    asrkit diarise meeting.wav --model exp/speaker --enrol anna=anna.wav ben=ben.wav     # names instead of numbers
    arecord -f S16_LE -r 16000 -c 7 | asrkit diarise - --online --model exp/speaker --array array.yaml
    asrkit diarise data/test/meetings.jsonl.gz --model exp/speaker --array data/test/array.yaml \
        --speech data/test/ref.rttm --observations exp/observations --out exp/ahc --method ahc
"""

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
from lhotse.cut import Cut
from tqdm import tqdm

from asrkit.cli.main import command_line, run
from asrkit.cli.speaker import load_embedder
from asrkit.cli.train import split_overrides
from asrkit.config import read_config
from asrkit.data.audio import audio_size, is_audio, read_audio, read_channels, stream_audio, stream_channels
from asrkit.data.formats import read_rttm, rttm_line, write_rttm, write_seglst, write_tracks
from asrkit.data.manifests import is_manifest, load_cuts
from asrkit.diarisation.embedding import Embedder
from asrkit.diarisation.enrolment import enrol as enrol_speech
from asrkit.diarisation.frontend import observe
from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.observations import Observations, concatenate, load_observations
from asrkit.diarisation.online import OnlineDiariser
from asrkit.diarisation.page import page
from asrkit.diarisation.pipeline import Diarisation, DiarisationConfig
from asrkit.diarisation.pipeline import diarise as diarise_recording
from asrkit.diarisation.plda import Plda, load_plda
from asrkit.diarisation.voice_activity import Interval, energy_activity, silero_activity, union
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.progress import progress
from asrkit.types import Segment

ACTIVITY = {"silero": silero_activity, "energy": energy_activity}
BLOCK = 300.0  # seconds of all channels that are in memory at once
MARGIN = 1.0  # seconds around them
READ = 30.0  # seconds of one channel that are read at a time
ONLINE_LAG = 2.0  # seconds
LIVE = 0.1  # seconds read at a time from what somebody is waiting for
LONGEST_EMBEDDED = 1800.0  # seconds of sound that are part of a page
WRITTEN = 1 << 16  # samples encoded at a time; millions overflow libsndfile's stack

log = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    options, overrides = split_overrides(argv)

    def diarise(
        inputs: list[str],
        *,
        model: str,
        plda: Path | None = None,
        array: Path | None = None,
        out: Path | None = None,
        conf: list[Path] = (),  # type: ignore[assignment]
        method: str | None = None,
        speech: Path | None = None,
        observations: Path | None = None,
        speakers: int | None = None,
        min_speakers: int = 1,
        max_speakers: int | None = None,
        enrol: list[str] = (),  # type: ignore[assignment]
        pages: bool = True,
        online: bool = False,
        lag: float | None = None,
    ) -> None:
        """Find out who spoke when in audio files, folders of them, or the recordings of manifests.

        Every key of the configuration is an option too, for instance `--ahc.threshold 2`. A recording that cannot be
        read is reported and left out; the exit status then is 1.

        Args:
            inputs: recordings.
            model: speaker embedder: experiment directory, ONNX file, or the word resemblyzer.
            plda: file of `asrkit speaker plda`; by default plda.npz in the experiment directory.
            array: YAML file with the microphones of all recordings, the first channel's first; without it there are no
                places.
            out: folder for hyp.rttm, hyp.json (SegLST), tracks.jsonl, diarise.json (speed) and a page to look at for
                each recording; without it RTTM is printed.
            conf: YAML files; later ones win.
            method: particle_filter, tracked, ahc or spectral, in place of the configuration's.
            speech: RTTM file that tells when anybody speaks, instead of finding it out.
            observations: folder of what has been observed of recordings: taken from there, or put there.
            speakers: how many there are.
            min_speakers: how many there are at least.
            max_speakers: how many there are at most.
            enrol: name=file of people whose voices are known.
            pages: write pages.
            online: print the turns of one recording, or of 16-bit PCM on standard input ("-", channels interleaved) at
                the embedder's rate, as they close; by the particle filter.
            lag: seconds after which the particle filter decides who spoke; 2 when online, else all is heard first.
        """
        shorthands = {"method": method, "particle_filter.lag": ONLINE_LAG if online and lag is None else lag}
        given = {name: value for name, value in shorthands.items() if value is not None}
        config = read_config(DiarisationConfig, conf, overrides | given)
        least, most = speaker_bounds(speakers, min_speakers, max_speakers)
        job = Job(
            embedder=load_embedder(model),
            geometry=read_config(ArrayGeometry, [array]) if array else None,
            config=config,
            speech=read_speech(speech) if speech else None,
            cache=observations,
        )
        backend = load_plda(plda or Path(model) / "plda.npz")
        voices = {name: job.enrolled(file) for name, file in (split_enrolment(word) for word in enrol)}
        if online:
            for turn in online_turns(job, inputs, backend, voices):
                print(rttm_line(turn), flush=True)
            return
        cluster = partial(diarise_recording, plda=backend, config=config, least=least, most=most, enrolled=voices)
        sources = [source for name in inputs for source in find_recordings(name)]
        summary = Summary()
        found: list[Diarisation] = []
        for source, result in diarised(
            progress(sources, "diarising", unit="recording") if out else sources, job, cluster, summary
        ):
            if out is None:
                print(*map(rttm_line, result.segments), sep="\n")
                continue
            found.append(result)
            if pages:
                write_page(result, source, job.embedder.sampling_rate, out / "pages")
        if out:
            write_results(found, summary, config, out)
        if summary.failed:
            sys.exit(1)

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    run(diarise, options)


@dataclass(frozen=True)
class Source:
    """A recording, and its name."""

    name: str
    path: Path


@dataclass
class Summary:
    """What a run has cost: seconds of audio, and processor seconds a part."""

    duration: float = 0.0
    observe: float = 0.0
    cluster: float = 0.0
    failed: int = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        setattr(self, part, getattr(self, part) + time.process_time() - start)


@dataclass
class Job:
    """How recordings become observations."""

    embedder: Embedder
    geometry: ArrayGeometry | None
    config: DiarisationConfig
    speech: dict[str, list[Interval]] | None
    cache: Path | None

    def observe(self, source: Source) -> Observations:
        """Return what is observed of a recording, from the cache if it is there."""
        file = self.cache / f"{source.name}.npz" if self.cache else None
        if file and file.exists():
            return load_observations(file)
        if self.speech is None:
            intervals = self.find_speech(source.path)
        elif (intervals := self.speech.get(source.name)) is None:
            raise InputError(f"{source.path}: the file of --speech has nothing of '{source.name}'")
        found = self.observe_speech(source.path, intervals)
        if file:
            found.save(file)
        return found

    def find_speech(self, path: Path) -> list[Interval]:
        rate = self.embedder.sampling_rate
        return ACTIVITY[self.config.frontend.activity](mono(path, rate), rate)

    def observe_speech(self, path: Path, intervals: Sequence[Interval]) -> Observations:
        """Observe the intervals of a recording of any length, some of them at a time."""
        rate, (duration, _) = self.embedder.sampling_rate, audio_size(path)
        parts = []
        for block in blocks([(start, min(end, duration)) for start, end in intervals if start < duration]):
            first, last = (
                (block[0][0], block[-1][1]) if block else (0.0, 0.0)
            )  # without speech there is one empty block
            first, last = max(0.0, first - MARGIN), min(duration, last + MARGIN)
            samples = read_channels(path, rate, first, last - first).numpy()
            shifted = [(start - first, end - first) for start, end in block]
            try:
                seen = observe(samples, rate, shifted, self.embedder, self.geometry, self.config.frontend)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            parts.append(replace(seen, starts=seen.starts + first, ends=seen.ends + first))
        return concatenate(parts)

    def enrolled(self, file: Path) -> np.ndarray:
        """Return the embeddings (M, D) of somebody's speech."""
        rate, frontend = self.embedder.sampling_rate, self.config.frontend
        samples = read_audio(file, rate).numpy()
        intervals = union(ACTIVITY[frontend.activity](samples, rate))
        if not intervals:
            raise InputError(f"{file}: no speech in it to enrol")
        return enrol_speech(samples, intervals, self.embedder, frontend)


def mono(path: Path, rate: int) -> np.ndarray:
    """Return the mean (S,) of all channels, which never are in memory together."""
    return np.concatenate([block.numpy() for block in stream_audio(path, rate, READ)])


def diarised(
    sources: Iterable[Source], job: Job, cluster: Callable[[str, Observations], Diarisation], summary: Summary
) -> Iterator[tuple[Source, Diarisation]]:
    """Yield each recording that can be read with what is found in it; report the others on standard error."""
    for source in sources:
        try:
            with summary.timed("observe"):
                seen = job.observe(source)
            with summary.timed("cluster"):
                result = cluster(source.name, seen)
        except InputError as error:
            summary.failed += 1
            tqdm.write(f"asrkit diarise: {error}", file=sys.stderr)  # clear of the progress bar
            continue
        summary.duration += audio_size(source.path)[0]
        yield source, result


def online_turns(job: Job, inputs: Sequence[str], plda: Plda, voices: Mapping[str, np.ndarray]) -> Iterator[Segment]:
    """Yield the turns of a recording as they close."""
    if len(inputs) != 1:
        raise InputError("--online takes one recording")
    find_speech, rate = ACTIVITY[job.config.frontend.activity], job.embedder.sampling_rate
    name = "stdin" if inputs[0] == "-" else Path(inputs[0]).stem
    online = OnlineDiariser(name, job.embedder, plda, find_speech, job.geometry, job.config, voices)
    for samples in stream_channels(inputs[0], rate, LIVE, len(job.geometry) if job.geometry else 1):
        yield from online.accept(samples.numpy())
    yield from online.finish()


def blocks(intervals: Sequence[Interval], longest: float = BLOCK) -> list[list[Interval]]:
    """Divide intervals among stretches of at most `longest` seconds, between intervals if possible."""
    found: list[list[Interval]] = [[]]
    for start, end in union(intervals):
        if found[-1] and end - found[-1][0][0] > longest:
            found.append([])
        while end - start > longest:
            found[-1].append((start, start + longest))
            found.append([])
            start += longest
        found[-1].append((start, end))
    return found


def find_recordings(name: str) -> list[Source]:
    """Return the recordings that a word of the command line stands for.

    Raises:
        InputError: there are none, or one of a manifest is no plain file.
    """
    path = Path(name)
    if is_manifest(path):
        return [_recording_of(cut, path) for cut in load_cuts(path)]
    if not path.is_dir():
        return [Source(path.stem, path)]
    files = sorted(file for file in path.rglob("*") if is_audio(file))
    if not files:
        raise InputError(f"{path}: no audio files in this folder")
    return [Source(file.stem, file) for file in files]


def speaker_bounds(speakers: int | None, least: int, most: int | None) -> tuple[int, int | None]:
    """Return the least and the most speakers from the three options."""
    for name, value in {"speakers": speakers, "min-speakers": least, "max-speakers": most}.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be positive")
    if speakers is not None:
        return speakers, speakers
    if most is not None and most < least:
        raise InputError(f"--max-speakers {most}: below --min-speakers {least}")
    return least, most


def read_speech(rttm: Path) -> dict[str, list[Interval]]:
    """Return when anybody speaks in each recording of an RTTM file."""
    spoken: dict[str, list[Interval]] = {}
    for segment in read_rttm(rttm):
        spoken.setdefault(segment.recording, []).append((segment.start, segment.end))
    return {recording: union(intervals) for recording, intervals in spoken.items()}


def split_enrolment(word: str) -> tuple[str, Path]:
    name, equals, file = word.partition("=")
    if not (name and equals and file):
        raise InputError(f"--enrol {word}: must be name=file")
    return name, Path(file)


def write_results(found: Sequence[Diarisation], summary: Summary, config: DiarisationConfig, out: Path) -> None:
    segments = [segment for result in found for segment in result.segments]
    write_rttm(segments, out / "hyp.rttm")
    write_seglst(segments, out / "hyp.json")
    write_tracks([result.tracks for result in found], out / "tracks.jsonl")
    record = {"command": command_line(), **asdict(summary), "config": asdict(config)}
    record["seconds"] = summary.observe + summary.cluster
    with atomic_write(out / "diarise.json") as file:
        json.dump(record, file, indent=1)


def write_page(result: Diarisation, source: Source, rate: int, folder: Path) -> None:
    """Write a page with a recording's turns, tracks and sound; that of a long recording is in a file beside it."""
    samples = mono(source.path, rate)
    if len(samples) <= LONGEST_EMBEDDED * rate:
        encoded = io.BytesIO()
        write_ogg(samples, rate, encoded)
        audio: bytes | str = encoded.getvalue()
    else:
        audio = f"{source.name}.ogg"
        with atomic_write(folder / audio, "wb") as file:
            write_ogg(samples, rate, file)
    with atomic_write(folder / f"{source.name}.html") as file:
        file.write(page(source.name, result.segments, result.tracks, audio, len(samples) / rate))


def write_ogg(samples: np.ndarray, rate: int, file: IO[bytes]) -> None:
    with soundfile.SoundFile(file, "w", rate, 1, format="OGG", subtype="VORBIS") as sound:
        for first in range(0, len(samples), WRITTEN):
            sound.write(samples[first : first + WRITTEN])


def _recording_of(cut: Cut, manifest: Path) -> Source:
    files = [source for source in cut.recording.sources if source.type == "file"] if cut.has_recording else []
    if len(files) != 1 or len(cut.recording.sources) != 1:
        raise InputError(f"{manifest}: cut {cut.id}: not one audio file")
    return Source(cut.recording.id, Path(files[0].source))
