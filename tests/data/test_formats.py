import json
import math
import os

import pytest

from asrkit.data.formats import (
    ctm,
    json_text,
    nbest_line,
    nbest_writer,
    read_nbest,
    read_partials,
    read_rttm,
    read_seglst,
    read_text,
    read_tracks,
    read_uem,
    srt,
    text_line,
    write_nbest,
    write_rttm,
    write_seglst,
    write_stm,
    write_tracks,
)
from asrkit.errors import InputError
from asrkit.types import Hypothesis, NBest, Segment, Tracks, Word

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


MEETING = [
    Segment("m_1", 12.0, 14.5, "ann"),
    Segment("m_1", 0.25, 2.0, "größer"),
    Segment("m_1", 1.0, 1.0, "ann"),
    Segment("other", 0.0, 9999.875, "1"),
]


def test_segments_come_back_equal_unsorted_and_overlapping(tmp_path):
    write_rttm(MEETING, tmp_path / "m.rttm")
    assert read_rttm(tmp_path / "m.rttm") == MEETING
    with_words = [*MEETING, Segment("m_1", 3.0, 4.0, "ann", "guten tag")]
    write_seglst(with_words, tmp_path / "m.json")
    assert read_seglst(tmp_path / "m.json") == with_words


def test_names_with_spaces_stay_one_field(tmp_path):
    write_rttm([Segment("my meeting", 0.0, 1.0, "ann smith"), Segment("n", 0.0, 1.0, "")], tmp_path / "m.rttm")
    assert read_rttm(tmp_path / "m.rttm") == [Segment("my_meeting", 0, 1, "ann_smith"), Segment("n", 0, 1, "<NA>")]
    write_stm([Segment("my meeting", 0.0, 1.0, "ann smith", "two words")], tmp_path / "m.stm")
    assert (tmp_path / "m.stm").read_text() == "my_meeting 1 ann_smith 0.000 1.000 two words\n"


def test_rttm_as_others_write_it(tmp_path):
    (tmp_path / "m.rttm").write_text(
        ";; a comment\n"
        "SPKR-INFO m 1 <NA> <NA> <NA> unknown ann <NA> <NA>\n"
        "\n"
        "SPEAKER\tm  0 1.5 .5 <NA> <NA> ann <NA>\r\n"
        "NON-SPEECH m 1 2.0 0.3 <NA> noise <NA> <NA> <NA>\n"
    )
    assert read_rttm(tmp_path / "m.rttm") == [Segment("m", 1.5, 2.0, "ann")]
    (tmp_path / "empty.rttm").write_text("")
    assert read_rttm(tmp_path / "empty.rttm") == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("SPEAKER m 1 0.0 -0.5 <NA> <NA> ann <NA> <NA>", "ends 0.5 s before it starts"),
        ("SPEAKER m 1 soon 0.5 <NA> <NA> ann <NA> <NA>", "soon"),
        ("SPEAKER m 1 nan 0.5 <NA> <NA> ann <NA> <NA>", "'nan' is no time"),
        ("SPEAKER m 1 0 inf <NA> <NA> ann <NA> <NA>", "'inf' is no time"),
        ("SPEAKER m 1 0.0 0.5 <NA>", "expected SPEAKER"),
        ("SPEAKER m 1 0.0 0.5 <NA> <NA> ann smith <NA> <NA>", "expected SPEAKER"),
        ("utt-1 hello", "expected SPEAKER"),
    ],
)
def test_broken_rttm_names_file_and_line(tmp_path, line, problem):
    (tmp_path / "m.rttm").write_text(f"SPEAKER m 1 0 1 <NA> <NA> a <NA> <NA>\n\n{line}\n")
    with pytest.raises(InputError, match=f"m.rttm: line 3: .*{problem}"):
        read_rttm(tmp_path / "m.rttm")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{half", "not JSON"),
        ("{}", "expected a list"),
        ("[3]", "segment 1: "),
        ('[{"session_id": "m", "start_time": 0, "end_time": 1}]', "segment 1: no key 'speaker'"),
        ('[{"session_id": "m", "speaker": "a", "start_time": 2, "end_time": 1}]', "segment 1: .*ends 1 s before"),
        ('[{"session_id": "m", "speaker": "a", "start_time": null, "end_time": 1}]', "segment 1: "),
        ('[{"session_id": "m", "speaker": "a", "start_time": NaN, "end_time": 1}]', "segment 1: .*no time"),
    ],
)
def test_broken_seglst_names_file_and_segment(tmp_path, text, problem):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match=f"m.json: {problem}"):
        read_seglst(tmp_path / "m.json")


def test_seglst_as_chime_writes_it(tmp_path):
    record = {"session_id": "S02", "speaker": "P05", "start_time": "10.5", "end_time": "11.25", "words": "so"}
    (tmp_path / "m.json").write_text(json.dumps([record]))
    assert read_seglst(tmp_path / "m.json") == [Segment("S02", 10.5, 11.25, "P05", "so")]
    with pytest.raises(InputError, match="none.json: No such file"):
        read_seglst(tmp_path / "none.json")


def test_uem(tmp_path):
    (tmp_path / "a.uem").write_text(";; scored\nm 1 0.0 10.5\nn NA 3 4\nm 1 20 30\n")
    assert read_uem(tmp_path / "a.uem") == {"m": [(0.0, 10.5), (20.0, 30.0)], "n": [(3.0, 4.0)]}


@pytest.mark.parametrize(
    ("line", "problem"), [("m 1 5", "expected"), ("m 1 5 4", "ends 1 s before"), ("m 1 0 end", "end")]
)
def test_broken_uem_names_file_and_line(tmp_path, line, problem):
    (tmp_path / "a.uem").write_text(f"m 1 0 1\n{line}\n")
    with pytest.raises(InputError, match=f"a.uem: line 2: .*{problem}"):
        read_uem(tmp_path / "a.uem")


def test_tracks(tmp_path):
    tracks = Tracks("m", 0.1, {"ann": [0.5, -3.1415], "bob": [math.nan, 2.0]})
    write_tracks([tracks, Tracks("n", 0.5, {})], tmp_path / "t.jsonl")
    read = read_tracks(tmp_path / "t.jsonl")
    assert list(read) == ["m", "n"] and read["n"] == Tracks("n", 0.5, {})
    assert read["m"].azimuths["ann"] == [0.5, -3.1415]
    assert math.isnan(read["m"].azimuths["bob"][0]) and read["m"].azimuths["bob"][1] == 2.0
    assert "NaN" not in (tmp_path / "t.jsonl").read_text()  # which is no JSON


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{half", "Expecting|Expected"),
        ('{"recording": "m", "step": 0.1}', "no key 'azimuths'"),
        ('{"recording": "m", "step": 0, "azimuths": {}}', "step must be above 0"),
        ('{"recording": "m", "step": 0.1, "azimuths": {"a": ["north"]}}', "north"),
    ],
)
def test_broken_tracks_are_named(tmp_path, line, problem):
    (tmp_path / "t.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(InputError, match=f"t.jsonl: line 2: no tracks: .*{problem}"):
        read_tracks(tmp_path / "t.jsonl")
