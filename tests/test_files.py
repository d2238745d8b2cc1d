import errno
import os
import stat

import pytest

from asrkit.errors import InputError
from asrkit.files import atomic_write


def test_text_and_bytes(tmp_path):
    with atomic_write(tmp_path / "new folder" / "a.txt") as out:
        out.write("é\n")
    with atomic_write(tmp_path / "b.bin", "wb") as out:
        out.write(b"\0")
    assert (tmp_path / "new folder" / "a.txt").read_bytes() == "é\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\0"


def test_old_content_stays_until_the_block_ends_and_when_it_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as out:
        out.write("new")
        out.flush()
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(InputError, match="model.pt: cannot be written: No space left on device"),
        atomic_write(path) as out,
    ):
        out.write("new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="b.txt: cannot be written"), atomic_write(tmp_path / "a" / "b.txt"):
        pass


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as out:
            out.write("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
