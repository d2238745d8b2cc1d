"""LibriSpeech (https://www.openslr.org/12, CC BY 4.0), whole or a partial copy; transcripts in lower case."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lhotse import MonoCut
from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, download_librispeech, parse_alignments
from lhotse.supervision import AlignmentItem

from asrkit.data.corpora.source import find_corpus, is_prepared, preparation
from asrkit.data.manifests import save_cuts
from asrkit.data.utterances import map_files, read_recording, utterance_cut
from asrkit.errors import InputError

FOLDERS = ("LibriSpeech", "librispeech_dev_clean_20spk")  # under $ASRKIT_CORPORA, the first that exists
SUFFIXES = (".flac", ".mp3", ".wav")


class Line(NamedTuple):
    """One line of a `.trans.txt`, its audio, and its word times where the copy has them."""

    utterance: str
    text: str
    audio: Path
    words: list[AlignmentItem] | None


def prepare(
    out: Path,
    *,
    corpus_dir: Path | None = None,
    parts: list[str] = (),  # type: ignore[assignment]
    test_speakers: list[str] = (),  # type: ignore[assignment]
) -> None:
    """Make the manifests train (all its parts), dev (likewise), and each dev and test part by itself (test-other, ...).

    A copy with no training part is divided by speakers instead, into train, dev and test, so that recipes run on it.
    Mini LibriSpeech is taken too. Nothing is done again when `out` holds the corpus with the same options.

    Args:
        out: where the manifests are written.
        corpus_dir: the folder of the parts; else the one under $ASRKIT_CORPORA is used, else they are downloaded.
        parts: the parts to use, such as train-clean-100; all that are there by default.
        test_speakers: the test speakers of a copy without a training part; every fourth by default.

    Raises:
        InputError: the corpus, a part, an audio file or a transcript is absent or damaged; nothing is written then.
    """
    options = {"corpus_dir": corpus_dir, "parts": list(parts), "test_speakers": list(test_speakers)}
    if is_prepared(out, "librispeech", options):
        return
    corpus = next(filter(None, (find_corpus(folder, corpus_dir) for folder in FOLDERS)), None) or download(out, parts)
    present = [part for part in (*LIBRISPEECH, *MINI_LIBRISPEECH) if (corpus / part).is_dir()]
    for part in parts:
        if part not in present:
            raise InputError(f"{corpus}: no part {part}; it has {', '.join(present) or 'none'}")
    cuts = {part: _read_part(corpus / part) for part in parts or present}
    if not cuts:
        raise InputError(f"{corpus}: no part of LibriSpeech, such as dev-clean")
    if not any(part.startswith("train") for part in cuts):
        sets = split_by_speaker([cut for part in cuts.values() for cut in part], test_speakers)
    elif test_speakers:
        raise InputError("--test_speakers: this copy has a training part, so its own division is used")
    else:
        sets = {part: own for part, own in cuts.items() if not part.startswith("train")}
        for name in ("train", "dev"):
            sets[name] = [cut for part, own in cuts.items() if part.startswith(name) for cut in own]
    with preparation(out, "librispeech", options):
        for name, own in sets.items():
            if own:
                save_cuts(own, out / f"{name}.jsonl.gz")


def split_by_speaker(cuts: list[MonoCut], test_speakers: list[str]) -> dict[str, list[MonoCut]]:
    """Divide cuts into train, dev and test with no speaker in two of them.

    `test_speakers` defaults to every fourth speaker by number; of the others, every eighth is for dev.

    Raises:
        InputError: a test speaker is absent, or there are too few speakers.
    """
    speakers = sorted({cut.supervisions[0].speaker for cut in cuts}, key=lambda speaker: (len(speaker), speaker))
    for speaker in test_speakers:
        if speaker not in speakers:
            raise InputError(f"--test_speakers: no speaker {speaker}; there are {', '.join(speakers)}")
    test = set(test_speakers or speakers[::4])
    others = [speaker for speaker in speakers if speaker not in test]
    dev = set(others[::8])
    if len(others) < 2:
        raise InputError(f"{len(speakers)} speakers are too few for train, dev and test")
    sets: dict[str, list[MonoCut]] = {"train": [], "dev": [], "test": []}
    for cut in cuts:
        speaker = cut.supervisions[0].speaker
        sets["test" if speaker in test else "dev" if speaker in dev else "train"].append(cut)
    return sets


def _read_part(part: Path) -> list[MonoCut]:
    lines = [line for file in sorted(part.rglob("*.trans.txt")) for line in _read_transcript(file)]
    if not lines:
        raise InputError(f"{part}: no transcripts (*.trans.txt)")
    return map_files(_make_cut, lines, f"read {part.name}")


def _read_transcript(file: Path) -> Iterator[Line]:
    alignment_file = file.with_name(file.name.replace(".trans.", ".alignment."))
    try:
        alignments = parse_alignments(alignment_file) if alignment_file.exists() else {}
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{file} or its alignment: {error}") from error
    for number, line in enumerate(lines, start=1):
        utterance, _, text = line.strip().partition(" ")
        if not text:
            raise InputError(f"{file}: line {number}: expected '<utterance> <words>', found '{line}'")
        audio = next((path for s in SUFFIXES if (path := file.parent / (utterance + s)).exists()), None)
        if audio is None:
            raise InputError(f"{file}: line {number}: no {utterance}{' or '.join(SUFFIXES)} beside it")
        words = [item._replace(symbol=item.symbol.lower()) for item in alignments.get(utterance, []) if item.symbol]
        yield Line(utterance, text.lower(), audio, words)


def _make_cut(line: Line) -> MonoCut:
    speaker = line.utterance.partition("-")[0]
    return utterance_cut(read_recording(line.audio), line.utterance, line.text, speaker, words=line.words)


def download(out: Path, parts: list[str]) -> Path:
    try:
        return download_librispeech(out / "download", list(parts) or "librispeech")
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"LibriSpeech: download failed ({reason}); give the corpus with --corpus_dir") from error
