import json
import os

import pytest

from asrkit.data.formats import (
    ctm,
    json_text,
    nbest_line,
    nbest_writer,
    read_nbest,
    read_partials,
    read_text,
    srt,
    text_line,
    write_nbest,
    write_rttm,
    write_seglst,
    write_stm,
)
from asrkit.errors import InputError
from asrkit.types import Hypothesis, NBest, Segment, Word

WORDS = (Word("guten", 0.1, 0.4), Word("tag", 0.45, 1.0 / 3 + 0.5, 0.875))


def make(utterance="utt-1", words=WORDS):
    best = Hypothesis(("▁guten", "▁tag"), (0.12, 0.48), words, -1.5, {"acoustic": -1.25, "lm": -0.5})
    return NBest(utterance, 1.2, (best, Hypothesis((), (), (), -9.0)))


def test_nbest_comes_back_equal(tmp_path):
    records = [make(), make("größer"), NBest("nothing", 0.0, ())]
    write_nbest(records, tmp_path / "nbest.jsonl")
    assert list(read_nbest(tmp_path / "nbest.jsonl")) == records
    assert "größer" in (tmp_path / "nbest.jsonl").read_text(encoding="utf-8")


def test_streaming_writer_keeps_what_was_done(tmp_path):
    file = tmp_path / "new" / "nbest.jsonl"
    with pytest.raises(KeyboardInterrupt), nbest_writer(file) as write:
        write(make("u1"))
        assert [record.utterance for record in read_nbest(file)] == ["u1"]  # before the file is closed
        write(make("u2"))
        raise KeyboardInterrupt
    assert [record.utterance for record in read_nbest(file)] == ["u1", "u2"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full to stand for a full disk")
def test_full_disk_names_the_file():
    with pytest.raises(InputError, match="/dev/full: cannot be written: No space left"), nbest_writer("/dev/full") as w:
        w(make())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{half", "not an nbest record"),
        ("[1, 2]", "not an nbest record"),
        ('{"utterance": "u", "duration": 1.0}', "no key 'hyps'"),
        (nbest_line(make()).replace('"start"', '"begin"'), "begin"),
        (nbest_line(make()).replace('"duration": 1.2', '"duration": "long"'), "long"),
    ],
)
def test_broken_nbest_names_file_and_line(tmp_path, line, problem):
    file = tmp_path / "nbest.jsonl"
    file.write_text(f"{nbest_line(make())}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"nbest.jsonl: line 3: .*{problem}"):
        list(read_nbest(file))


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(InputError, match="none.jsonl: No such file"):
        list(read_nbest(tmp_path / "none.jsonl"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="binary: not UTF-8"):
        read_text(tmp_path / "binary")


def test_text(tmp_path):
    (tmp_path / "text").write_text("u1 hello  world\nu2\n\nu3 yes\n")
    assert read_text(tmp_path / "text") == {"u1": "hello world", "u2": "", "u3": "yes"}
    (tmp_path / "text").write_text("u1 a\nu1 b\n")
    with pytest.raises(InputError, match="line 2: utterance 'u1' comes twice"):
        read_text(tmp_path / "text")


def test_lines_of_one_utterance():
    assert text_line(make()) == "utt-1 guten tag"
    assert text_line(NBest("silence", 1.0, ())) == "silence"
    assert ctm(make()).splitlines() == ["utt-1 1 0.100 0.300 guten", "utt-1 1 0.450 0.383 tag 0.875"]
    parsed = json.loads(json_text(make()))
    assert parsed["text"] == "guten tag" and parsed["words"][1]["confidence"] == 0.875


def test_srt_times_and_limits():
    words = tuple(Word(f"word{n:02}", 3661.5 + n, 3662.25 + n) for n in range(20))
    blocks = srt(make(words=words)).strip().split("\n\n")
    assert blocks[0].splitlines()[:2] == ["1", "01:01:01,500 --> 01:01:07,250"]
    texts = [block.splitlines()[2] for block in blocks]
    assert " ".join(texts).split() == [word.text for word in words]
    assert all(len(text) <= 42 for text in texts)


def test_srt_line_lasts_seven_seconds_at_most():
    words = (Word("hm", 0.0, 1.0), Word("yes", 6.5, 7.5), Word("long", 10.0, 30.0))
    blocks = [block.splitlines() for block in srt(make(words=words)).strip().split("\n\n")]
    assert [block[2] for block in blocks] == ["hm", "yes", "long"]
    assert blocks[2][1] == "00:00:10,000 --> 00:00:17,000"


def test_segment_files(tmp_path):
    segments = [Segment("meeting", 0.5, 2.25, "ann", "good morning"), Segment("meeting", 2.0, 3.0, "bob")]
    write_rttm(segments, tmp_path / "m.rttm")
    write_stm(segments, tmp_path / "m.stm")
    write_seglst(segments, tmp_path / "m.json")
    assert (tmp_path / "m.rttm").read_text().splitlines()[0] == (
        "SPEAKER meeting 1 0.500 1.750 <NA> <NA> ann <NA> <NA>"
    )
    assert (tmp_path / "m.stm").read_text().splitlines() == [
        "meeting 1 ann 0.500 2.250 good morning",
        "meeting 1 bob 2.000 3.000",
    ]
    assert json.loads((tmp_path / "m.json").read_text())[0] == {
        "session_id": "meeting",
        "speaker": "ann",
        "start_time": 0.5,
        "end_time": 2.25,
        "words": "good morning",
    }


def test_partials(tmp_path):
    file = tmp_path / "partials.jsonl"
    file.write_text('{"utterance": "u1", "partials": [[0.5, "a"], [1, "a b"]]}\n{"utterance": "u2", "partials": []}\n')
    assert read_partials(file) == {"u1": [(0.5, "a"), (1.0, "a b")], "u2": []}


@pytest.mark.parametrize("line", ["{half", "[]", '{"utterance": "u1"}', '{"utterance": "u1", "partials": [[0.5]]}'])
def test_broken_partials_are_named(tmp_path, line):
    (tmp_path / "partials.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(InputError, match="partials.jsonl: line 2: no partial results"):
        read_partials(tmp_path / "partials.jsonl")
