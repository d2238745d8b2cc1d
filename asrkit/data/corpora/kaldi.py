"""Kaldi data directories: `wav.scp`, `text`, and where they are there `segments` and `utt2spk`."""

from collections.abc import Callable, Iterable
from pathlib import Path

from lhotse import MonoCut, Recording
from lhotse.cut import Cut

from asrkit.data.manifests import save_cuts
from asrkit.data.utterances import map_files, read_recording, utterance_cut
from asrkit.errors import InputError
from asrkit.files import atomic_write


def prepare(out: Path, data_dirs: list[Path], normalise: Callable[[str], str] = str.strip) -> None:
    """Make `<out>/<name>.jsonl.gz` of each data directory, after its last name, with normalised transcripts.

    Raises:
        InputError: as `read_kaldi_directory`, two directories have the same name, or a transcript is empty.
    """
    if len({folder.resolve().name for folder in data_dirs}) < len(data_dirs):
        raise InputError(f"two data directories of one name: {', '.join(map(str, data_dirs))}")
    sets = {folder.resolve().name: read_kaldi_directory(folder) for folder in data_dirs}
    for folder, cuts in zip(data_dirs, sets.values(), strict=True):
        if not (folder / "text").exists():
            raise InputError(f"{folder / 'text'}: no such file")
        for cut in cuts:
            cut.supervisions[0].text = normalise(cut.supervisions[0].text)
            if not cut.supervisions[0].text:
                raise InputError(f"{folder / 'text'}: utterance {cut.id} has no words")
    for name, cuts in sets.items():
        save_cuts(cuts, out / f"{name}.jsonl.gz")


def is_kaldi_directory(path: Path | str) -> bool:
    return (Path(path) / "wav.scp").is_file()


def read_kaldi_directory(folder: Path | str) -> list[MonoCut]:
    """The utterances of a data directory; texts are empty where there is no `text`.

    Relative paths in `wav.scp` are looked up under the directory, under its parent, and from where we are. Pipes
    ("sox ... |") are refused: data never executes code.

    Raises:
        InputError: a file is absent, a line broken, an utterance in one file but not in another, or audio unreadable.
    """
    folder = Path(folder)
    paths = {key: _audio_path(folder, key, value) for key, value in _read_table(folder / "wav.scp").items()}
    recordings = dict(
        zip(paths, map_files(lambda key: read_recording(paths[key], key), paths, f"read {folder}"), strict=True)
    )
    segments = _read_segments(folder / "segments", recordings) or {key: (key, 0.0, None) for key in recordings}
    texts = _read_optional(folder / "text", segments, lambda utterance: "")
    speakers = _read_optional(folder / "utt2spk", segments, lambda utterance: utterance)
    return [
        utterance_cut(recordings[recording], utterance, texts[utterance], speakers[utterance], start, end)
        for utterance, (recording, start, end) in segments.items()
    ]


def write_kaldi_directory(cuts: Iterable[Cut], folder: Path) -> None:
    """Write `wav.scp`, `segments`, `text` and `utt2spk` of cuts whose audio is in files.

    Raises:
        InputError: a cut's audio is not one file, or a file cannot be written.
    """
    tables: dict[str, dict[str, str]] = {"wav.scp": {}, "segments": {}, "text": {}, "utt2spk": {}}
    for cut in cuts:
        sources = cut.recording.sources
        if len(sources) != 1 or sources[0].type != "file":
            raise InputError(f"cut {cut.id}: its audio is not one file, so wav.scp cannot name it")
        supervision = cut.supervisions[0]
        tables["wav.scp"][cut.recording.id] = str(sources[0].source)
        tables["segments"][cut.id] = f"{cut.recording.id} {cut.start:.4f} {cut.end:.4f}"
        tables["text"][cut.id] = supervision.text
        tables["utt2spk"][cut.id] = supervision.speaker or cut.id
    for name, table in tables.items():
        with atomic_write(folder / name) as out:
            out.writelines(f"{key} {value}\n" for key, value in sorted(table.items()))


def _audio_path(folder: Path, recording: str, path: str) -> Path:
    if path.startswith("|") or path.endswith("|"):
        raise InputError(f"{folder / 'wav.scp'}: {recording}: commands are refused: write the audio to a file first")
    places = [place / path for place in (folder, folder.absolute().parent, Path())]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{folder / 'wav.scp'}: {recording}: no such file: {path}")
    return found


def _read_segments(file: Path, recordings: dict[str, Recording]) -> dict[str, tuple[str, float, float | None]]:
    segments: dict[str, tuple[str, float, float | None]] = {}
    if not file.exists():
        return segments
    for utterance, value in _read_table(file).items():
        try:
            recording, start, end = value.split()
            segments[utterance] = recording, float(start), None if float(end) == -1 else float(end)  # -1: to the end
        except ValueError:
            raise InputError(f"{file}: {utterance}: expected '<recording> <start> <end>', found '{value}'") from None
        if recording not in recordings:
            raise InputError(f"{file}: {utterance}: recording {recording} is not in wav.scp")
    return segments


def _read_optional(file: Path, utterances: Iterable[str], default: Callable[[str], str]) -> dict[str, str]:
    """A table that has all utterances and no other, or the default of each where the file does not exist."""
    utterances = set(utterances)
    if not file.exists():
        return {utterance: default(utterance) for utterance in utterances}
    table = _read_table(file)
    if different := sorted(utterances ^ table.keys()):
        where = "not in it" if different[0] in utterances else "in it but not in segments or wav.scp"
        raise InputError(f"{file}: utterance {different[0]} is {where} ({len(different)} such utterances)")
    return table


def _read_table(file: Path) -> dict[str, str]:
    """Lines `key value`, the value being the rest of the line."""
    table: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    for number, line in enumerate((line.replace("\t", " ") for line in lines), start=1):
        key, _, value = line.strip().partition(" ")
        if not key or (not value and file.name != "text"):
            raise InputError(f"{file}: line {number}: expected '<key> <value>', found '{line}'")
        if key in table:
            raise InputError(f"{file}: line {number}: {key} is there twice")
        table[key] = value.strip()
    if not table:
        raise InputError(f"{file}: no lines")
    return table
