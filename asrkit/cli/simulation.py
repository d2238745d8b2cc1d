"""`asrkit data simulate`: sets of simulated meetings."""

import json
import multiprocessing
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import MonoCut, MultiCut, SupervisionSegment
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.supervision import AlignmentItem

from asrkit.config import read_config, write_config
from asrkit.data.audio import read_cut
from asrkit.data.corpora.source import is_prepared, preparation
from asrkit.data.formats import read_rttm, write_rttm, write_tracks
from asrkit.data.manifests import load_cuts, save_cuts
from asrkit.data.utterances import read_recording
from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.simulation import Meeting, SimulationConfig, Speech, simulate
from asrkit.diarisation.turns import TurnTaking, fit_turns
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.progress import progress
from asrkit.types import Segment, Tracks, Word

FLAC_CHANNELS = 8  # that the format can hold
ENOUGH = 2.0  # times a speaker's share of a meeting


def simulate_set(
    out: Path,
    *,
    speech: list[Path],
    meetings: int = 20,
    seed: int = 0,
    name: str = "meeting",
    speakers: list[str] = (),  # type: ignore[assignment]
    array: Path | None = None,
    rttm: list[Path] = (),  # type: ignore[assignment]
    simulation: SimulationConfig = SimulationConfig(),  # noqa: B008 - frozen
    jobs: int | None = None,
) -> None:
    """Simulate meetings from speech of single speakers: audio of all microphones, and all that is true of it.

    Each meeting has its own room, reverberation time and speakers, drawn from its seed. The same seed gives the same
    turns, words, room and first seats in every motion and noise. Speech of one "session", a custom field of the
    supervisions, is used up before that of another, so that a voice is the same all through. Written are
    meetings.jsonl.gz (turns, and words where the speech has their times), audio/, ref.rttm, tracks.jsonl (where
    everyone is) and array.yaml. Called again after an interruption it goes on; nothing is done again when `out` holds
    the set of the same options.

    Args:
        out: where the set is written.
        speech: manifests of the speech; each cut has one speaker.
        meetings: how many.
        seed: of the first meeting; the second has the next, and so on.
        name: what the meetings are called, before their seed.
        speakers: those that may take part; by default all with twice their share of the speech.
        array: YAML file of the microphones; six on a circle of 4.25 cm and one in its middle by default.
        rttm: real turns to take the statistics of turn-taking from; those of the AMI corpus by default.
        simulation: what the meetings are like.
        jobs: processes; by default one for each core.
    """
    options = {
        "speech": speech,
        "meetings": meetings,
        "seed": seed,
        "name": name,
        "speakers": list(speakers),
        "array": array,
        "rttm": list(rttm),
        "simulation": asdict(simulation),
    }
    if is_prepared(out, "simulation", options):
        return
    if meetings < 1 or seed < 0:
        raise InputError("--meetings must be at least 1, and --seed at least 0")
    geometry = read_config(ArrayGeometry, [array] if array else [])
    statistics = fit_turns(segment for file in rttm for segment in read_rttm(file)) if rttm else TurnTaking()
    cuts = _cuts_of_speakers(speech, speakers)
    if not speakers:  # those who would run out of words need not be there
        enough = ENOUGH * simulation.duration / simulation.speakers
        cuts = {name: own for name, own in cuts.items() if sum(cut.duration for cut in own) >= enough}
    if len(cuts) < simulation.speakers:
        raise InputError(f"{simulation.speakers} speakers are wanted, but {len(cuts)} have enough speech")
    make = partial(_make, out, name, cuts, simulation, geometry, statistics, json.dumps(options, default=str))
    with preparation(out, "simulation", options):
        seeds = range(seed, seed + meetings)
        with _mapped(make, seeds, jobs or os.cpu_count() or 1) as made:
            records = list(progress(made, f"simulate {out.name}", total=meetings))
        _write_set(records, geometry, out)
    shutil.rmtree(out / "unfinished", ignore_errors=True)


# Details


def _cuts_of_speakers(speech: list[Path], speakers: list[str]) -> dict[str, list[Cut]]:
    cuts: dict[str, list[Cut]] = defaultdict(list)
    for manifest in speech:
        for cut in load_cuts(manifest, lazy=True):
            if len(cut.supervisions) != 1 or not cut.supervisions[0].speaker:
                raise InputError(f"{manifest}: cut {cut.id}: expected one supervision, with a speaker")
            cuts[cut.supervisions[0].speaker].append(cut)
    for speaker in speakers:
        if speaker not in cuts:
            raise InputError(f"--speakers: no speaker {speaker}; there are {', '.join(sorted(cuts))}")
    return {speaker: cuts[speaker] for speaker in sorted(speakers or cuts)}


@contextmanager
def _mapped(function: Any, items: Iterable[int], jobs: int) -> Iterator[Iterable]:
    """Yield `function` of each item, in order, by so many processes."""
    if jobs == 1:
        yield map(function, items)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool.map(function, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _make(
    out: Path,
    name: str,
    cuts: Mapping[str, list[Cut]],
    config: SimulationConfig,
    geometry: ArrayGeometry,
    statistics: TurnTaking,
    options: str,
    seed: int,
) -> dict[str, Any]:
    """Make one meeting, unless that was done before; return its cut and tracks, ready for JSON."""
    identifier = f"{name}-{seed:04d}"
    done = out / "unfinished" / f"{identifier}.json"
    if done.exists() and (record := json.loads(done.read_text(encoding="utf-8")))["options"] == options:
        return record
    rng = np.random.default_rng(seed)
    sources = {speaker: _read(_shuffled(own, rng), config.sampling_rate) for speaker, own in cuts.items()}
    meeting = simulate(sources, config, geometry, rng, statistics, identifier)
    suffix = "flac" if len(geometry) <= FLAC_CHANNELS else "wav"
    audio = out / "audio" / f"{identifier}.{suffix}"
    with atomic_write(audio, "wb") as file:
        soundfile.write(file, meeting.audio.T, config.sampling_rate, "PCM_16", format=suffix)
    cut = _meeting_cut(meeting, identifier, audio, config)
    azimuths = {speaker: track.tolist() for speaker, track in meeting.tracks.azimuths.items()}
    record = {"options": options, "cut": cut.to_dict(), "step": meeting.tracks.step, "azimuths": azimuths}
    with atomic_write(done) as file:
        json.dump(record, file)
    return record


def _shuffled(cuts: list[Cut], rng: np.random.Generator) -> list[Cut]:
    """Return a speaker's cuts in random order, but session by session: nobody sounds like two days in one meeting."""
    sessions = [(cut.supervisions[0].custom or {}).get("session", "") for cut in cuts]
    rank = dict(zip(sorted(set(sessions)), rng.permutation(len(set(sessions))), strict=True))
    return [cuts[i] for i in sorted(rng.permutation(len(cuts)), key=lambda i: rank[sessions[i]])]


def _read(cuts: Iterable[Cut], rate: int) -> Iterator[Speech]:
    for cut in cuts:
        words = (cut.supervisions[0].alignment or {}).get("word", ())
        yield Speech(
            read_cut(cut, rate).numpy(),
            [Word(word.symbol, word.start, word.end) for word in words if word.symbol],
        )


def _meeting_cut(meeting: Meeting, identifier: str, audio: Path, config: SimulationConfig) -> MonoCut | MultiCut:
    recording = read_recording(audio, identifier)
    channels = recording.channel_ids
    supervisions = [
        SupervisionSegment(
            id=f"{identifier}-{number:04d}",
            recording_id=identifier,
            start=segment.start,
            duration=segment.end - segment.start,
            channel=channels if len(channels) > 1 else 0,
            text=segment.text or None,
            speaker=segment.speaker,
            alignment={"word": [_alignment_item(word) for word in words]} if words else None,
        )
        for number, (segment, words) in enumerate(zip(meeting.segments, meeting.words, strict=True))
    ]
    custom = {"motion": config.motion, "snr": config.snr, **meeting.room._asdict()}
    common = {"recording": recording, "supervisions": supervisions, "custom": custom}
    if len(channels) == 1:
        return MonoCut(identifier, 0.0, recording.duration, channel=0, **common)
    return MultiCut(identifier, 0.0, recording.duration, channel=channels, **common)


def _alignment_item(word: Word) -> AlignmentItem:
    return AlignmentItem(word.text, round(word.start, 4), round(word.end - word.start, 4))


def _write_set(records: list[dict[str, Any]], geometry: ArrayGeometry, out: Path) -> None:
    cuts = [deserialize_item(record["cut"]) for record in records]
    segments = [Segment(cut.id, s.start, s.end, s.speaker) for cut in cuts for s in cut.supervisions]
    tracks = [Tracks(record["cut"]["id"], record["step"], record["azimuths"]) for record in records]
    save_cuts(cuts, out / "meetings.jsonl.gz")
    write_rttm(segments, out / "ref.rttm")
    write_tracks(tracks, out / "tracks.jsonl")
    write_config(geometry, out / "array.yaml")
