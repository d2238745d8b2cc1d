import shutil

import numpy as np
import pytest
import soundfile

from asrkit.data.corpora import librispeech
from asrkit.data.manifests import load_cuts
from asrkit.data.validation import problems
from asrkit.errors import InputError


def add_chapter(corpus, part, speaker, chapter, suffix=".flac", texts=("HELLO WORLD", "DON'T GO")):
    folder = corpus / part / speaker / chapter
    folder.mkdir(parents=True)
    lines = []
    for number, text in enumerate(texts):
        utterance = f"{speaker}-{chapter}-{number:04d}"
        soundfile.write(folder / f"{utterance}{suffix}", 0.1 * np.sin(np.arange(16000)), 16000)
        lines.append(f"{utterance} {text}\n")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


def test_official_parts(tmp_path):
    for part, speaker in [("train-clean-5", "12"), ("dev-clean", "7"), ("test-other", "8")]:
        folder = add_chapter(tmp_path / "corpus", part, speaker, "34")
    (folder / "8-34.alignment.txt").write_text('8-34-0000 ",HELLO,,WORLD," "0.1,0.4,0.5,0.9,1.0"\n')
    add_chapter(tmp_path / "corpus", "train-clean-100", "13", "34")
    librispeech.prepare(tmp_path / "out", corpus_dir=tmp_path / "corpus")
    assert {path.name: len(load_cuts(path)) for path in (tmp_path / "out").glob("*.jsonl.gz")} == {
        "train.jsonl.gz": 4,
        "dev.jsonl.gz": 2,
        "dev-clean.jsonl.gz": 2,
        "test-other.jsonl.gz": 2,
    }
    first, second = load_cuts(tmp_path / "out" / "test-other.jsonl.gz")
    assert (first.id, first.duration) == ("8-34-0000", 1.0)
    assert (first.supervisions[0].text, first.supervisions[0].speaker) == ("hello world", "8")
    assert [tuple(word)[:3] for word in first.supervisions[0].alignment["word"]] == [
        ("hello", 0.1, 0.3),
        ("world", 0.5, 0.4),
    ]
    assert (second.supervisions[0].text, second.supervisions[0].alignment) == ("don't go", None)
    assert list(problems(tmp_path / "out" / "test-other.jsonl.gz")) == []


def test_chosen_parts(tmp_path):
    for part in ("train-clean-5", "dev-clean-2"):
        add_chapter(tmp_path / "corpus", part, "12", "34")
    librispeech.prepare(tmp_path / "out", corpus_dir=tmp_path / "corpus", parts=["train-clean-5"])
    assert [path.name for path in (tmp_path / "out").glob("*.gz")] == ["train.jsonl.gz"]
    with pytest.raises(
        InputError, match="corpus: no part dev-clean; it has train-clean-5, dev-clean-2|dev-clean-2, train"
    ):
        librispeech.prepare(tmp_path / "out", corpus_dir=tmp_path / "corpus", parts=["dev-clean"])
    with pytest.raises(InputError, match="--test_speakers: this copy has a training part"):
        librispeech.prepare(tmp_path / "out", corpus_dir=tmp_path / "corpus", test_speakers=["12"])


def test_done_work_is_not_done_again(tmp_path):
    add_chapter(tmp_path / "corpus", "train-clean-5", "12", "34")
    for _ in range(2):
        librispeech.prepare(tmp_path / "out", corpus_dir=tmp_path / "corpus")
        shutil.rmtree(tmp_path / "corpus", ignore_errors=True)
    with pytest.raises(InputError, match="corpus: no such directory"):
        librispeech.prepare(tmp_path / "out", corpus_dir=tmp_path / "corpus", parts=["dev-clean"])
    assert len(load_cuts(tmp_path / "out" / "train.jsonl.gz")) == 2


def speakers_of(out):
    return {
        name: {cut.supervisions[0].speaker for cut in load_cuts(out / f"{name}.jsonl.gz")}
        for name in ("train", "dev", "test")
    }


def test_partial_copy_is_divided_by_speakers(tmp_path):
    for speaker in range(1, 13):
        add_chapter(tmp_path / "corpus", "dev-clean", str(speaker), "1", ".mp3")
    librispeech.prepare(tmp_path / "a", corpus_dir=tmp_path / "corpus")
    sets = speakers_of(tmp_path / "a")
    assert sets == {"test": {"1", "5", "9"}, "dev": {"2", "12"}, "train": {"3", "4", "6", "7", "8", "10", "11"}}
    librispeech.prepare(tmp_path / "b", corpus_dir=tmp_path / "corpus", test_speakers=["2", "3"])
    assert speakers_of(tmp_path / "b")["test"] == {"2", "3"}
    with pytest.raises(InputError, match="--test_speakers: no speaker 99; there are 1, 2"):
        librispeech.prepare(tmp_path / "b", corpus_dir=tmp_path / "corpus", test_speakers=["99"])


def break_text(folder):
    (folder / "1-2.trans.txt").write_text("1-2-0000\n")


def break_encoding(folder):
    (folder / "1-2.trans.txt").write_bytes(b"1-2-0000 CAF\xc9\n")


def remove_audio(folder):
    (folder / "1-2-0001.flac").unlink()


def cut_audio(folder):
    (folder / "1-2-0001.flac").write_bytes((folder / "1-2-0001.flac").read_bytes()[:30])


def remove_transcripts(folder):
    (folder / "1-2.trans.txt").unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (break_text, "1-2.trans.txt: line 1: expected '<utterance> <words>', found '1-2-0000'"),
        (break_encoding, "1-2.trans.txt or its alignment"),
        (remove_audio, "1-2.trans.txt: line 2: no 1-2-0001.flac or .mp3 or .wav beside it"),
        (cut_audio, "1-2-0001.flac"),
        (remove_transcripts, "train-clean-5: no transcripts"),
    ],
)
def test_damaged_corpus_writes_nothing(tmp_path, damage, message):
    add_chapter(tmp_path / "corpus", "dev-clean", "7", "1")
    damage(add_chapter(tmp_path / "corpus", "train-clean-5", "1", "2"))
    with pytest.raises(InputError, match=message) as caught:
        librispeech.prepare(tmp_path / "out", corpus_dir=tmp_path / "corpus")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_corpus(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no part of LibriSpeech"):
        librispeech.prepare(tmp_path / "out", corpus_dir=tmp_path / "empty")

    def unreachable(*args):
        raise OSError("no route to host")

    monkeypatch.delenv("ASRKIT_CORPORA", raising=False)
    monkeypatch.setattr(librispeech, "download_librispeech", unreachable)
    with pytest.raises(InputError, match=r"LibriSpeech: download failed \(no route to host\).*--corpus_dir"):
        librispeech.prepare(tmp_path / "out")


def test_real_partial_copy(corpora, tmp_path, monkeypatch):
    monkeypatch.setenv("ASRKIT_CORPORA", str(corpora))
    librispeech.prepare(tmp_path)
    sets = speakers_of(tmp_path)
    assert sum(map(len, sets.values())) == len(set.union(*sets.values())) == 20
    cuts = [cut for name in sets for cut in load_cuts(tmp_path / f"{name}.jsonl.gz")]
    assert len(cuts) == 1313
    assert sum(cut.duration for cut in cuts) / 3600 == pytest.approx(2.70, abs=0.01)
    assert {character for cut in cuts for character in cut.supervisions[0].text} <= set("abcdefghijklmnopqrstuvwxyz' ")
