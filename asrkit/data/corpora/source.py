"""Where a corpus comes from: a directory, `$ASRKIT_CORPORA`, or its public origin; and whether it is prepared."""

import json
import os
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.progress import progress_bar


def find_corpus(folder: str, corpus_dir: Path | None) -> Path | None:
    """`corpus_dir` where given, else `$ASRKIT_CORPORA/<folder>` where that exists, else None.

    Raises:
        InputError: `corpus_dir` is no directory.
    """
    if corpus_dir is not None:
        if not corpus_dir.is_dir():
            raise InputError(f"{corpus_dir}: no such directory")
        return corpus_dir.absolute()
    found = Path(os.environ.get("ASRKIT_CORPORA", "/nonexistent")) / folder
    return found.absolute() if found.is_dir() else None


def download_archive(url: str, folder: Path) -> Path:
    """Fetch a tar archive and unpack it into `folder`, unless that is there already; return `folder`.

    Raises:
        InputError: the download fails (names the address and the way around it) or the archive is damaged.
    """
    if folder.is_dir():
        return folder
    archive = folder.with_name(folder.name + ".tar.gz")
    if not archive.exists():
        _download(url, archive)
    unpacked = folder.with_name(folder.name + ".unpacking")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        archive.unlink()
        raise InputError(f"{archive}: cannot be unpacked: {error}") from error
    unpacked.rename(folder)
    archive.unlink()
    return folder


def is_prepared(out: Path, corpus: str, options: dict[str, Any]) -> bool:
    """Whether `out` holds the corpus, prepared to the end with the same options."""
    mark = out / f"{corpus}.json"
    return mark.exists() and mark.read_text(encoding="utf-8") == _mark(options)


@contextmanager
def preparation(out: Path, corpus: str, options: dict[str, Any]) -> Iterator[None]:
    """Mark `out` as prepared when the block ends well, and not before."""
    (out / f"{corpus}.json").unlink(missing_ok=True)
    yield
    with atomic_write(out / f"{corpus}.json") as file:
        file.write(_mark(options))


def _mark(options: dict[str, Any]) -> str:
    return json.dumps(options, default=str, indent=1) + "\n"


def _download(url: str, file: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=30) as response, atomic_write(file, "wb") as out:
            size = int(response.headers.get("Content-Length", 0)) or None
            with progress_bar(size, f"download {file.name}", unit="B") as bar:
                while block := response.read(1 << 20):
                    out.write(block)
                    bar.update(len(block))
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{url}: download failed ({reason}); give the corpus with --corpus_dir") from error
