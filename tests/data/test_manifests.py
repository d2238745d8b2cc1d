import gzip
import json

import pytest

from asrkit.data.manifests import load_cuts, read_texts, save_cuts
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.errors import InputError


@pytest.fixture
def cuts(tmp_path, write_wav):
    recording = read_recording(write_wav(tmp_path / "rec.wav", seconds=2.0))
    return [utterance_cut(recording, f"utt-{i}", f"text é {i}", "anna", 0.5 * i, 0.5 * i + 0.5) for i in range(3)]


@pytest.mark.parametrize("name", ["a.jsonl", "new/a.jsonl.gz"])
@pytest.mark.parametrize("lazy", [False, True])
def test_saved_cuts_load(cuts, tmp_path, name, lazy):
    save_cuts(cuts, tmp_path / name)
    loaded = load_cuts(tmp_path / name, lazy)
    assert loaded.is_lazy == lazy
    assert list(loaded) == cuts == list(loaded)
    assert list(read_texts(tmp_path / name)) == ["text é 0", "text é 1", "text é 2"]
    assert loaded.subset(first=1).to_eager()[0].load_audio().shape == (1, 4000)


def test_the_same_cuts_give_the_same_bytes(cuts, tmp_path):
    save_cuts(cuts, tmp_path / "a.jsonl.gz")
    save_cuts(iter(cuts), tmp_path / "b.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_failing_source_leaves_the_old_manifest(cuts, tmp_path):
    def broken():
        yield cuts[0]
        raise InputError("bad")

    save_cuts(cuts, tmp_path / "a.jsonl.gz")
    with pytest.raises(InputError, match="bad"):
        save_cuts(broken(), tmp_path / "a.jsonl.gz")
    assert len(load_cuts(tmp_path / "a.jsonl.gz")) == 3


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "not a cut: JSONDecodeError"),
        ("{", "not a cut: JSONDecodeError"),
        ("[1]", "not a cut"),
        ('{"id": "x", "start": 0, "duration": 1, "channel": 0}', "not a cut"),
        ('{"id": "x", "type": "MonoCut"}', "not a cut"),
        ('{"id": "x", "type": "Cat"}', "not a cut"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_broken_line_is_named(cuts, tmp_path, line, message, lazy):
    path = tmp_path / "a.jsonl"
    save_cuts(cuts, path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=f"a.jsonl: line 4: {message}"):
        list(load_cuts(path, lazy))


def test_cut_past_the_end_of_its_recording(cuts, tmp_path):
    cuts[1].duration = 5.0
    save_cuts(cuts, tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="a.jsonl: line 2: cut utt-1 ends at 5.5 s, its recording at 2.0 s"):
        load_cuts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("lazy", [False, True])
def test_missing_empty_and_damaged_files(cuts, tmp_path, lazy):
    with pytest.raises(InputError, match="none.jsonl: No such file"):
        load_cuts(tmp_path / "none.jsonl", lazy)
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="empty.jsonl.gz: no cuts"):
        load_cuts(tmp_path / "empty.jsonl.gz", lazy)
    (tmp_path / "plain.jsonl.gz").write_text("not packed")
    with pytest.raises(InputError, match="plain.jsonl.gz: damaged gzip file"):
        load_cuts(tmp_path / "plain.jsonl.gz", lazy)
    save_cuts(cuts, tmp_path / "a.jsonl.gz")
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-20])
    with pytest.raises(InputError, match="cut.jsonl.gz: damaged gzip file"):
        list(load_cuts(tmp_path / "cut.jsonl.gz", lazy))


@pytest.mark.parametrize("change", [{"type": "command"}, {"type": "url"}, {"source": "pipe:touch executed"}])
@pytest.mark.parametrize("place", ["recording", "custom"])
def test_manifest_that_would_execute_commands_is_refused(cuts, tmp_path, monkeypatch, change, place):
    monkeypatch.chdir(tmp_path)
    data = cuts[0].to_dict()
    recording = json.loads(json.dumps(data["recording"]))
    recording["sources"][0].update({"source": "touch executed", **change})
    if place == "custom":
        data["custom"] = {"reference": recording}
    else:
        data["recording"] = recording
    (tmp_path / "a.jsonl").write_text(json.dumps(data))
    with pytest.raises(InputError, match="a.jsonl: line 1: audio .*refused"):
        load_cuts(tmp_path / "a.jsonl")
    assert not (tmp_path / "executed").exists()


def test_texts_of_plain_files(tmp_path):
    (tmp_path / "a.txt").write_text("one two\n\n three \n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"four\n"))
    assert list(read_texts(tmp_path / "a.txt")) == ["one two", "three"]
    assert list(read_texts(tmp_path / "a.txt.gz")) == ["four"]
    (tmp_path / "a.jsonl").write_text('{"supervisions": [{}]}\n')
    with pytest.raises(InputError, match="a.jsonl: line 1: not a cut with text"):
        list(read_texts(tmp_path / "a.jsonl"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="latin.txt: not UTF-8"):
        list(read_texts(tmp_path / "latin.txt"))
