import numpy as np
import pytest
from lhotse.supervision import AlignmentItem

from asrkit.data.manifests import save_cuts
from asrkit.data.statistics import describe
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.data.validation import problems
from asrkit.errors import InputError


@pytest.fixture
def make(tmp_path, write_wav):
    def cut(name, text="one two", words=None, **wav):
        return utterance_cut(read_recording(write_wav(tmp_path / f"{name}.wav", **wav)), name, text, name, words=words)

    return cut


def found(cuts, tmp_path):
    save_cuts(cuts, tmp_path / "a.jsonl")
    return [problem.partition("a.jsonl: ")[2] for problem in problems(tmp_path / "a.jsonl")]


def test_nothing_is_wrong(make, tmp_path):
    words = [AlignmentItem("one", 0.1, 0.3), AlignmentItem("two", 0.5, 0.5)]
    assert found([make("a", words=words), make("b")], tmp_path) == []


@pytest.mark.parametrize(
    "words, message",
    [
        ([("one", 0.1, 0.3)], "the words of the alignment are not those of the text"),
        ([("one", 0.1, 0.3), ("two", 0.8, 0.5)], "word 'two' from 0.8 s to 1.3 s is out of order or outside the cut"),
        ([("one", 0.5, 0.3), ("two", 0.1, 0.2)], "word 'two' from 0.1 s to 0.3 s is out of order or outside the cut"),
        ([("one", -0.5, 0.3), ("two", 0.1, 0.2)], "word 'one' from -0.5 s to -0.2 s is out of order"),
    ],
)
def test_wrong_alignments(make, tmp_path, words, message):
    (problem,) = found([make("a", words=[AlignmentItem(*word) for word in words])], tmp_path)
    assert problem.startswith(f"line 1: a: {message}")


def test_every_problem_is_listed(make, tmp_path, write_wav):
    cuts = [make(name) for name in ("gone", "good", "short", "rate", "text", "late", "twice")]
    cuts += [make("silent", samples=np.zeros(8000)), make("nan", samples=np.array([0.1, np.nan] * 4000))]
    cuts[3].supervisions[0].text = "x"
    cuts[4].supervisions[0].text = " "
    cuts[5].supervisions[0].duration = 1.5
    cuts[6].supervisions = cuts[6].supervisions * 2
    cuts.append(make("good"))
    (tmp_path / "gone.wav").unlink()
    write_wav(tmp_path / "short.wav", 0.5)
    write_wav(tmp_path / "rate.wav", 1.0, 16000)
    lines = found(cuts, tmp_path)
    for number, name, message in [
        (1, "gone", "no such file"),
        (3, "short", "lasts 0.500 s, not 1.000 s"),
        (3, "short", "holds 0.500 s of audio, not 1.000 s"),
        (4, "rate", "has 16000 Hz, not 8000"),
        (5, "text", "empty text"),
        (6, "late", "supervision from 0.0 s to 1.5 s"),
        (7, "twice", "2 supervisions; exactly one is expected"),
        (8, "silent", "all samples are zero"),
        (9, "nan", "not finite numbers"),
        (10, "good", "a second cut of this id"),
    ]:
        assert any(line.startswith(f"line {number}: {name}: ") and message in line for line in lines), message
    assert len(lines) == 10


def test_broken_lines_do_not_hide_the_others(make, tmp_path):
    save_cuts([make("a"), make("b", text="")], tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([lines[0], "{", lines[1]]))
    problem, other = problems(tmp_path / "a.jsonl")
    assert "line 2: not a cut" in problem and "line 3: b: empty text" in other


def test_empty_and_missing_manifests(tmp_path):
    assert found([], tmp_path) == ["no cuts"]
    with pytest.raises(InputError, match="none.jsonl: No such file"):
        list(problems(tmp_path / "none.jsonl"))


def test_statistics(make):
    cuts = [make("a", "one two two"), make("b", "three", seconds=2.0), make("c", "one", seconds=3.0)]
    cuts[2].supervisions[0].speaker = "a"
    made = describe(cuts, lambda word: word != "two")
    assert (made.utterances, made.speakers, made.words, made.vocabulary) == (3, 2, 5, 3)
    assert made.hours == pytest.approx(6 / 3600)
    assert (made.durations[0], made.durations[3], made.durations[-1]) == (1.0, 2.0, 3.0)
    assert made.unknown == {"two": 2}
