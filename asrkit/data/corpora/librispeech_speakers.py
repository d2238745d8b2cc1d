"""LibriSpeech (https://www.openslr.org/12, CC BY 4.0) without its transcripts, for speaker embeddings."""

import re
from pathlib import Path

from lhotse import MonoCut

from asrkit.data.corpora.librispeech import SUFFIXES, download
from asrkit.data.corpora.source import find_corpus, is_prepared, preparation
from asrkit.data.manifests import save_cuts
from asrkit.data.utterances import map_files, read_recording, utterance_cut
from asrkit.errors import InputError

PARTS = ("train-clean-100", "dev-clean")
FOLDERS = ("librispeech_train_clean_100_251spk", "librispeech_dev_clean_20spk")  # one for each part
NAME = re.compile(r"(\d+)-(\d+)-\d+")


def prepare(out: Path, *, train_dir: Path | None = None, held_out_dir: Path | None = None) -> None:
    """Make the manifests train, and dev and test of the first and the last half of the held-out speakers, by number.

    Audio is found by its name, `<speaker>-<chapter>-<utterance>.flac` (or .mp3, .wav), in any folder below; texts are
    empty. Nothing is done again when `out` holds the corpus with the same options.

    Args:
        out: where the manifests are written.
        train_dir: folder of the training speakers; else librispeech_train_clean_100_251spk or LibriSpeech under
            $ASRKIT_CORPORA is used, else train-clean-100 is downloaded.
        held_out_dir: folder of other speakers; else librispeech_dev_clean_20spk or LibriSpeech, else dev-clean.

    Raises:
        InputError: a folder is absent, holds fewer than two speakers or one of both, or a file is not audio.
    """
    options = {"train_dir": train_dir, "held_out_dir": held_out_dir}
    if is_prepared(out, "librispeech_speakers", options):
        return
    directories = [_find(*place, out) for place in zip(PARTS, FOLDERS, (train_dir, held_out_dir), strict=True)]
    train, held_out = map(read_speakers, directories)
    if common := train.keys() & held_out.keys():
        raise InputError(f"{directories[1]}: speaker {min(common)} is in {directories[0]} too")
    numbers = sorted(held_out, key=int)
    half = len(numbers) // 2
    sets = {
        "train": list(train.values()),
        "dev": [held_out[number] for number in numbers[:half]],
        "test": [held_out[number] for number in numbers[half:]],
    }
    with preparation(out, "librispeech_speakers", options):
        for name, speakers in sets.items():
            save_cuts((cut for cuts in speakers for cut in cuts), out / f"{name}.jsonl.gz")


def read_speakers(folder: Path) -> dict[str, list[MonoCut]]:
    """Return speaker -> cuts of the audio below a folder.

    Raises:
        InputError: there are fewer than two speakers, or a file is not audio.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and NAME.fullmatch(file.stem))
    speakers: dict[str, list[MonoCut]] = {}
    for cut in map_files(_make_cut, files, f"read {folder.name}"):
        speakers.setdefault(cut.supervisions[0].speaker, []).append(cut)
    if len(speakers) < 2:
        raise InputError(f"{folder}: fewer than two speakers in files <speaker>-<chapter>-<utterance>.flac")
    return speakers


def _make_cut(file: Path) -> MonoCut:
    speaker, chapter = NAME.fullmatch(file.stem).groups()
    cut = utterance_cut(read_recording(file), file.stem, "", speaker)
    cut.supervisions[0].custom = {"session": chapter}
    return cut


def _find(part: str, folder: str, given: Path | None, out: Path) -> Path:
    found = find_corpus(folder, given)
    if found is None:
        found = (find_corpus("LibriSpeech", None) or download(out, [part])) / part
    return found
