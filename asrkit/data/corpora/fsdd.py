"""Connected digits from the Free Spoken Digit Dataset: recorded human speech with exact word times.

The corpus (https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) has 50 recordings of each digit by
each of 6 speakers, 8 kHz; recordings 0-4 are its official test set. Digit strings are made by joining recordings of one
speaker, so the times of the words are known.
"""

import io
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from lhotse import MonoCut
from lhotse.supervision import AlignmentItem

from asrkit.data.corpora.source import download_archive, find_corpus, is_prepared, preparation
from asrkit.data.manifests import save_cuts
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.errors import InputError
from asrkit.progress import progress

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/26eb9aaf76e81b692f806f9140c2d2777410d7a1.tar.gz"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE = 8000

LONGEST = 7  # digits in a string
GAP = (0.0, 0.25)  # seconds between digits
MARGIN = (0.1, 0.5)  # seconds before the first digit and after the last
FADE = 0.005  # seconds; the recordings are cut hard, and a click would mark every joint

RECORDINGS = {"train": range(5, 45), "dev": range(45, 50), "test": range(0, 5), "test_heldout": range(0, 50)}
STRINGS = {"dev": 200, "test": 500, "test_heldout": 500}


class Clip(NamedTuple):
    """One recorded digit; `samples` is float32, `index` the number of the recording."""

    digit: int
    speaker: str
    index: int
    samples: np.ndarray


def prepare(
    out: Path, *, corpus_dir: Path | None = None, hours: float = 5.0, held_out_speaker: str = "theo", seed: int = 0
) -> None:
    """Join recorded digits into strings of one to seven: the sets train, dev, test and test_heldout.

    train uses recordings 5-44, dev 45-49 and test the official 0-4 of the same speakers; test_heldout uses all
    recordings of a speaker who is in no other set. Each recording of a set is used equally often. Nothing is done again
    when `out` holds the corpus with the same options.

    Args:
        out: where the manifests and the audio are written.
        corpus_dir: the corpus; else $ASRKIT_CORPORA/fsdd is used, else it is downloaded.
        hours: length of the training set.
        held_out_speaker: the speaker of test_heldout.
        seed: of the random strings and gaps.

    Raises:
        InputError: the corpus is absent, incomplete or damaged, or has no such speaker; nothing is written then.
    """
    options = {"corpus_dir": corpus_dir, "hours": hours, "held_out_speaker": held_out_speaker, "seed": seed}
    if is_prepared(out, "fsdd", options):
        return
    corpus = find_corpus("fsdd", corpus_dir) or download_archive(URL, out / "download" / "fsdd")
    clips = read_clips(corpus)
    speakers = sorted({clip.speaker for clip in clips})
    if held_out_speaker not in speakers:
        raise InputError(f"--held_out_speaker {held_out_speaker}: not in {corpus}, which has {', '.join(speakers)}")
    if hours <= 0:
        raise InputError(f"--hours {hours}: must be positive")
    with preparation(out, "fsdd", options):
        for number, (name, indices) in enumerate(RECORDINGS.items()):
            held_out = name == "test_heldout"
            chosen = [c for c in clips if c.index in indices and (c.speaker == held_out_speaker) == held_out]
            limit = {"seconds": 3600 * hours} if name == "train" else {"count": STRINGS[name]}
            strings = digit_strings(chosen, np.random.default_rng([seed, number]))
            cuts = _write_audio(_take(strings, **limit), out.absolute() / "wav" / name, name)
            save_cuts(cuts, out / f"{name}.jsonl.gz")


def read_clips(corpus: Path) -> list[Clip]:
    """Read all recordings, `<digit>_<speaker>_<index>.wav` or `.flac`.

    Raises:
        InputError: a recording is unreadable or not 8 kHz mono, or a speaker lacks one that a set needs.
    """
    clips = []
    for file in progress(sorted(corpus.rglob("recordings/*")), "read fsdd"):
        if parts := re.fullmatch(r"(\d)_(\w+)_(\d+)\.(wav|flac)", file.name):
            clips.append(Clip(int(parts[1]), parts[2], int(parts[3]), _read_samples(file)))
    present = {clip[:3] for clip in clips}
    speakers = sorted({clip.speaker for clip in clips})
    missing = [(d, s, i) for d in range(10) for s in speakers for i in range(50) if (d, s, i) not in present]
    if not clips or missing:
        absent = "{}_{}_{}".format(*missing[0]) if clips else "<digit>_<speaker>_<index>"
        raise InputError(f"{corpus}: not the complete corpus: no recordings/{absent}.wav or .flac")
    return clips


def digit_strings(clips: list[Clip], rng: np.random.Generator) -> Iterator[tuple[list[Clip], np.ndarray, list[float]]]:
    """Endless random strings of one speaker each: their clips, samples (T,) and the start time of each clip."""
    by_speaker = defaultdict(list)
    for clip in clips:
        by_speaker[clip.speaker].append(clip)
    decks = [(_deck(own, rng), _noise_level(own)) for _, own in sorted(by_speaker.items())]
    while True:
        for deck, level in decks:
            string = [next(deck) for _ in range(rng.integers(1, LONGEST + 1))]
            yield string, *_join(string, level, rng)


def _deck(clips: list[Clip], rng: np.random.Generator) -> Iterator[Clip]:
    while True:
        for position in rng.permutation(len(clips)):
            yield clips[position]


def _noise_level(clips: list[Clip]) -> float:
    """Root mean square of the quietest 10 ms, median over clips: the background between a speaker's digits."""
    frame = RATE // 100
    quietest = [
        np.sqrt(np.square(clip.samples[: len(clip.samples) // frame * frame].reshape(-1, frame)).mean(axis=1)).min()
        for clip in clips
    ]
    return float(np.median(quietest))


def _join(string: list[Clip], level: float, rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """Lay clips over background noise; return the samples and where each clip starts, in seconds."""
    gaps = [rng.uniform(*MARGIN), *rng.uniform(*GAP, size=len(string) - 1)]
    position, starts = 0, []
    for clip, gap in zip(string, gaps, strict=True):
        position += round(gap * RATE)
        starts.append(position)
        position += len(clip.samples)
    samples = level * rng.standard_normal(position + round(rng.uniform(*MARGIN) * RATE)).astype(np.float32)
    ramp = np.linspace(0, 1, round(FADE * RATE), dtype=np.float32)
    for clip, start in zip(string, starts, strict=True):
        faded = clip.samples.copy()
        faded[: len(ramp)] *= ramp
        faded[-len(ramp) :] *= ramp[::-1]
        samples[start : start + len(faded)] += faded
    return np.clip(samples, -1, 1), [start / RATE for start in starts]


def _take(strings: Iterable, seconds: float = float("inf"), count: int | None = None) -> Iterator:
    """The first strings: `count` of them, or as many as last `seconds`."""
    total = 0.0
    for number, string in enumerate(strings):
        if total >= seconds or number == count:
            return
        total += len(string[1]) / RATE
        yield string


def _write_audio(strings: Iterable, folder: Path, name: str) -> list[MonoCut]:
    """Write one WAV file a string into `folder`, which appears when it is complete; return the cuts."""
    unfinished = folder.with_name(f".{name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    made = []
    for number, (string, samples, starts) in enumerate(progress(strings, f"write fsdd {name}")):
        identifier = f"fsdd-{name}-{number:06d}"
        _write_wav(unfinished / f"{identifier}.wav", samples)
        made.append((identifier, folder / f"{identifier}.wav", string, starts))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return [_cut(*utterance) for utterance in made]


def _write_wav(file: Path, samples: np.ndarray) -> None:
    buffer = io.BytesIO()  # soundfile waits for the disk after each file that it writes itself
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
    try:
        file.write_bytes(buffer.getvalue())
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from error


def _cut(identifier: str, file: Path, string: list[Clip], starts: list[float]) -> MonoCut:
    words = [
        AlignmentItem(WORDS[clip.digit], start, len(clip.samples) / RATE)
        for clip, start in zip(string, starts, strict=True)
    ]
    text = " ".join(word.symbol for word in words)
    return utterance_cut(read_recording(file), identifier, text, string[0].speaker, words=words)


def _read_samples(file: Path) -> np.ndarray:
    try:
        samples, rate = soundfile.read(file, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise InputError(f"{file}: cannot be read: {error.error_string}") from error
    if rate != RATE or samples.ndim != 1 or len(samples) < 0.1 * RATE:
        raise InputError(f"{file}: expected 8 kHz mono audio of at least 0.1 s")
    return samples
