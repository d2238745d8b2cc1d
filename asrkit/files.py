"""Writing files so that a reader never sees half of one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from asrkit.errors import InputError


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path` and rename it to `path` when the block ends well.

    The data reach the disk (fsync) before the name does, so a killed process or a full disk leaves the old file, or
    none, but never a truncated one.

    Raises:
        InputError: the file cannot be written (no such folder, no permission, disk full); names the path.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private; a data file follows the umask
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def written_folder(folder: Path | str) -> Iterator[Path]:
    """Give a folder beside `folder`, whose contents go there when the block ends well, and nowhere otherwise.

    What of the same name is there is replaced.

    Raises:
        InputError: it cannot be written; names it.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    with temporary as name:
        yield Path(name)
        try:
            folder.mkdir(exist_ok=True)
            for file in Path(name).iterdir():
                if file.is_dir():
                    shutil.rmtree(folder / file.name, ignore_errors=True)
                os.replace(file, folder / file.name)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
