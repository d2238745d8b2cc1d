import numpy as np
import pytest
import soundfile

from asrkit.cli.main import main
from asrkit.data.manifests import load_cuts, read_texts


@pytest.fixture
def table(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.sin(np.arange(8000)), 8000)
    (tmp_path / "own.tsv").write_text("path\ttext\tspeaker\na.wav\tHello, “World”!\tanna\nb.wav\tDon't go-now\tben\n")
    return tmp_path / "own.tsv"


@pytest.fixture
def manifest(table, tmp_path):
    assert data("prepare", "folder", tmp_path / "data", "--tables", table) == 0
    return tmp_path / "data" / "own.jsonl.gz"


def data(*arguments):
    return main(["data", *map(str, arguments)])


def test_folder_is_normalised(manifest, table, tmp_path):
    assert list(read_texts(manifest)) == ["hello world", "don't go now"]
    assert data("prepare", "folder", tmp_path / "data", "--tables", table, "--case", "upper") == 0
    assert list(read_texts(manifest)) == ["HELLO WORLD", "DON'T GO NOW"]


def test_digits_are_reported_with_their_line(table, capsys, tmp_path):
    table.write_text("path\ttext\na.wav\tone\nb.wav\troom 12\n")
    assert data("prepare", "folder", tmp_path / "data", "--tables", table) == 1
    assert "own.tsv: line 3: digits in 'room 12': write numbers as they are spoken" in capsys.readouterr().err


def test_validate(manifest, tmp_path, capsys):
    assert data("validate", manifest) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "a.wav").unlink()
    assert data("validate", manifest) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{manifest}: line 1: a: {tmp_path}/a.wav: no such file\n"
    assert captured.err.endswith("asrkit data: 1 problem found\n")


def test_describe(manifest, tmp_path, capsys):
    (tmp_path / "text").write_text("hello world\n")
    assert main(["lang", "--text", str(tmp_path / "text"), "--type", "char", "--out", str(tmp_path / "lang")]) == 0
    assert data("describe", manifest, "--lang", tmp_path / "lang") == 0
    out = capsys.readouterr().out
    for line in (
        "utterances  2",
        "speakers    2",
        "words       5, 5 different",
        "unknown     3 words (60.00%): don't, go, now",
    ):
        assert line in out


def test_overlap(manifest, tmp_path, capsys):
    (tmp_path / "lm.txt").write_text("something else\nHello, world.\nyou don't go now dear\n")
    assert data("overlap", manifest, "--against", tmp_path / "lm.txt", "--length", 3) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"1\t{tmp_path}/lm.txt:2\tsentence\thello world",
        f"2\t{tmp_path}/lm.txt:3\t3 words\tdon't go now",
    ]
    assert "holds 1 of 2 test sentences whole, and 3 words or more of 1 others" in captured.err
    assert data("overlap", manifest, "--against", tmp_path / "lm.txt", "--length", 0) == 1


def test_to_kaldi_and_back(manifest, tmp_path):
    assert data("export-kaldi", manifest, tmp_path / "kaldi") == 0
    assert data("prepare", "kaldi", tmp_path / "again", "--data_dirs", tmp_path / "kaldi") == 0
    before, after = load_cuts(manifest), load_cuts(tmp_path / "again" / "kaldi.jsonl.gz")
    assert [(cut.id, cut.duration, cut.supervisions[0].text) for cut in after] == [
        (cut.id, cut.duration, cut.supervisions[0].text) for cut in before
    ]


def test_bad_input_is_one_line(tmp_path, capsys):
    assert data("describe", tmp_path / "none.jsonl.gz") == 1
    assert capsys.readouterr().err == f"asrkit data: {tmp_path}/none.jsonl.gz: No such file or directory\n"
    assert data("prepare", "fsdd", tmp_path / "out", "--corpus_dir", tmp_path / "none") == 1
    assert "none: no such directory" in capsys.readouterr().err
