"""Reading and writing manifests: one lhotse cut a line, `data/<corpus>/<set>.jsonl.gz`."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.lazy import LazyManifestIterator
from lhotse.serialization import deserialize_item

from asrkit.errors import InputError
from asrkit.files import atomic_write

END_TOLERANCE = 0.025  # seconds by which a cut may pass the end of its recording: codecs pad, durations are rounded


def load_cuts(path: Path | str, lazy: bool = False) -> CutSet:
    """Read a manifest; with `lazy`, line by line at each pass over it, so that it need not fit into memory.

    A manifest from a stranger executes nothing: lhotse's "command" and "pipe:" audio sources are refused.

    Raises:
        InputError: no such file, no cuts, or a broken line (when it is reached, if `lazy`); names file and line.
    """
    manifest = _Manifest(path)
    cuts = CutSet(manifest if lazy else [cut for cut in manifest])  # list(manifest) would read it twice, for its length
    if next(iter(cuts), None) is None:
        raise InputError(f"{path}: no cuts")
    return cuts


def save_cuts(cuts: Iterable[Cut], path: Path | str) -> None:
    """Write a manifest, gzipped when its name ends in .gz; the same cuts give the same bytes.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path, "wb") as raw:
        if Path(path).suffix != ".gz":
            raw.writelines(_encode(cut) for cut in cuts)
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=5, fileobj=raw, mtime=0) as packed:
            packed.writelines(_encode(cut) for cut in cuts)


def is_manifest(path: Path | str) -> bool:
    return str(path).endswith((".jsonl", ".jsonl.gz"))


def read_texts(path: Path | str) -> Iterator[str]:
    """The texts of a manifest, or else the non-empty lines of a text file; either may be gzipped.

    Raises:
        InputError: the file cannot be read, or a line of the manifest is broken; names file and line.
    """
    for _, text in read_numbered_texts(path):
        yield text


def read_numbered_texts(path: Path | str) -> Iterator[tuple[int, str]]:
    """As `read_texts`, each with the number of its line (from 1), for messages."""
    for number, line in _lines(path):
        if not is_manifest(path):
            if line := line.strip():
                yield number, line
            continue
        try:
            texts = [supervision["text"] for supervision in json.loads(line)["supervisions"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: line {number}: not a cut with text: {_reason(error)}") from error
        for text in texts:
            yield number, text


def read_lines(path: Path | str) -> Iterator[tuple[int, Cut | InputError]]:
    """Each line's number (from 1) and its cut, or what is wrong with it.

    Raises:
        InputError: the file itself cannot be read.
    """
    for number, line in _lines(path):
        try:
            yield number, _decode(line)
        except InputError as error:
            yield number, error


class _Manifest(LazyManifestIterator):
    """lhotse's lazy manifest, with errors that name the line."""

    def __iter__(self) -> Iterator[Cut]:
        for number, cut in read_lines(self.path):
            if isinstance(cut, InputError):
                raise InputError(f"{self.path}: line {number}: {cut}") from cut
            yield cut

    def __len__(self) -> int:
        return sum(1 for _ in _lines(self.path))


def _decode(line: str) -> Cut:
    try:
        data = json.loads(line)
        _refuse_commands(data)
        cut = deserialize_item(data)
    except InputError:
        raise
    except Exception as error:  # lhotse meets a broken line with whatever its constructors raise
        raise InputError(f"not a cut: {_reason(error)}") from error
    if not isinstance(cut, Cut):
        raise InputError(f"not a cut but a {type(cut).__name__}")
    recording = getattr(cut, "recording", None)
    if recording is not None and cut.end > recording.duration + END_TOLERANCE:
        raise InputError(f"cut {cut.id} ends at {cut.end} s, its recording at {recording.duration} s")
    return cut


def _encode(cut: Cut) -> bytes:
    return json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n"


def _refuse_commands(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _refuse_commands(item)
    elif isinstance(node, dict):
        if "source" in node and node.get("type") not in ("file", "memory", "shar"):
            raise InputError(f"audio source of type '{node.get('type')}' is refused; only files are read")
        for key, value in node.items():
            if key in ("source", "storage_path", "storage_key") and str(value).startswith("pipe:"):
                raise InputError("audio from a 'pipe:' is refused; only files are read")
            if key != "alignment":
                _refuse_commands(value)


def _lines(path: Path | str) -> Iterator[tuple[int, str]]:
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged gzip file: {_reason(error)}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
