"""Audio files and a table of their transcripts: the way in for one's own data.

The table is a TSV file with a header. Its columns `path` and `text` are required; `speaker`, `start` and `end`
(seconds) are not. A file may have several rows, each an utterance.
"""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lhotse import MonoCut

from asrkit.data.manifests import save_cuts
from asrkit.data.utterances import map_files, read_recording, utterance_cut
from asrkit.errors import InputError

COLUMNS = ("path", "text", "speaker", "start", "end")


def prepare(out: Path, tables: list[Path], normalise: Callable[[str], str] = str.strip) -> None:
    """Make `<out>/<name>.jsonl.gz` of each `<name>.tsv`, with normalised transcripts.

    Raises:
        InputError: as `read_table`, or two tables have the same name.
    """
    if len({table.stem for table in tables}) < len(tables):
        raise InputError(f"two tables of one name: {', '.join(map(str, tables))}")
    sets = {table.stem: read_table(table, normalise) for table in tables}
    for name, cuts in sets.items():
        save_cuts(cuts, out / f"{name}.jsonl.gz")


def read_table(table: Path, normalise: Callable[[str], str] = str.strip) -> list[MonoCut]:
    """The utterances of a table; paths are relative to its folder. A speaker that is not given is "unknown".

    Raises:
        InputError: the table, its header, a row or an audio file is wrong; names file and line.
    """
    rows = _read_rows(table)
    paths = sorted({row["path"] for row in rows})
    identifiers = _identifiers(paths)
    audio = map_files(lambda path: read_recording(table.parent / path, identifiers[path]), paths, f"read {table.stem}")
    recordings = dict(zip(paths, audio, strict=True))
    rows_of, seen = Counter(row["path"] for row in rows), Counter()
    cuts = []
    for number, row in enumerate(rows, start=2):
        try:
            text = normalise(row["text"])
            if not text:
                raise InputError("no text")
            recording = recordings[row["path"]]
            seen[row["path"]] += 1
            suffix = f"-{seen[row['path']]:04d}" if rows_of[row["path"]] > 1 else ""
            start, end = _seconds(row, "start") or 0.0, _seconds(row, "end")
            cuts.append(utterance_cut(recording, recording.id + suffix, text, row["speaker"] or "unknown", start, end))
        except InputError as error:
            raise InputError(f"{table}: line {number}: {error}") from error
    return cuts


def _read_rows(table: Path) -> list[dict[str, str]]:
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{table}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    header, *rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if lines else [[]]
    wrong = [name for name in ("path", "text") if name not in header] + [n for n in header if n not in COLUMNS]
    if wrong or len(set(header)) < len(header):
        found = ", ".join(header)
        raise InputError(f"{table}: line 1: the header has path, text and perhaps speaker, start, end; found: {found}")
    if not rows:
        raise InputError(f"{table}: no rows")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise InputError(f"{table}: line {number}: {len(row)} columns, but {len(header)} in the header")
    return [dict.fromkeys(COLUMNS, "") | dict(zip(header, row, strict=True)) for row in rows]


def _identifiers(paths: list[str]) -> dict[str, str]:
    """A name for each path: its stem, or where two files share that, the whole path."""
    stems = Counter(Path(path).stem for path in paths)
    return {path: Path(path).stem if stems[Path(path).stem] == 1 else path.replace("/", "-") for path in paths}


def _seconds(row: dict[str, str], column: str) -> float | None:
    try:
        return float(row[column]) if row[column] else None
    except ValueError:
        raise InputError(f"{column} is not a number of seconds: '{row[column]}'") from None
