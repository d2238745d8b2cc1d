import pytest

from asrkit.errors import InputError
from asrkit.scoring.wer import (
    Errors,
    align,
    align_all,
    alignment_text,
    confusions,
    deleted_last_words,
    errors_by_group,
    errors_by_position,
    ser_line,
    sum_errors,
    wer_line,
)


@pytest.mark.parametrize(
    ("ref", "hyp", "expected"),
    [
        ("a b c", "a b c", Errors(3, 0, 0, 0)),
        ("a b c", "a x c", Errors(3, 0, 0, 1)),
        ("a b c", "a c", Errors(3, 0, 1, 0)),
        ("a b c", "a b b c", Errors(3, 1, 0, 0)),
        ("a b", "", Errors(2, 0, 2, 0)),
        ("", "a b", Errors(0, 2, 0, 0)),
        ("a b c d", "b c d e", Errors(4, 1, 1, 0)),  # two edits, where a position-wise match would count four
        ("über *** ß", "uber *** ß", Errors(3, 0, 0, 1)),  # a word of asterisks is a word, not a gap
    ],
)
def test_hand_counted_edits(ref, hyp, expected):
    assert align("u", ref, hyp).errors == expected


def test_kaldi_lines():
    refs = {"u1": "the cat sat on the mat", "u2": "hello world", "u3": "yes no"}
    hyps = {"u1": "the cat sat the big mat", "u2": "hello word", "u3": "yes no"}
    alignments = align_all(refs, hyps)
    # u1: "on" is deleted and "big" inserted; u2: one substitution; 3 errors in 10 words, 2 of 3 sentences wrong.
    assert wer_line(sum_errors(alignments)) == "%WER 30.00 [ 3 / 10, 1 ins, 1 del, 1 sub ]"
    assert ser_line(alignments) == "%SER 66.67 [ 2 / 3 ]"


def test_missing_hypothesis_is_deleted_and_extra_one_is_named():
    assert sum_errors(align_all({"u1": "a b", "u2": "c"}, {"u2": "c"})) == Errors(3, 0, 2, 0)
    with pytest.raises(InputError, match="'u9'"):
        align_all({"u1": "a"}, {"u1": "a", "u9": "b"})


def test_references_without_words_are_refused():
    with pytest.raises(InputError, match="no words"):
        align_all({"u1": "", "u2": " "}, {})


def test_errors_by_position():
    alignments = [
        align("u1", "a b c", "x b c"),  # first word wrong
        align("u2", "a b c", "y a b z c"),  # an insertion before the first word, another after the second
        align("u3", "a b c", "a"),  # two later words deleted
        align("u4", "a", "a"),
    ]
    first, others = errors_by_position(alignments)
    assert first == Errors(4, 1, 0, 1)
    assert others == Errors(6, 1, 2, 0)
    assert first + others == sum_errors(alignments)


def test_errors_by_group_are_sorted():
    alignments = [align("u1", "a b", "a"), align("u2", "a", "a"), align("u3", "a", "b")]
    groups = errors_by_group(alignments, {"u1": "zoe", "u2": "ann", "u3": "zoe"})
    assert list(groups.items()) == [("ann", Errors(1, 0, 0, 0)), ("zoe", Errors(3, 0, 1, 1))]


def test_confusions_are_ranked():
    alignments = [align("u1", "four two", "for two"), align("u2", "four", "for"), align("u3", "two", "too now")]
    found = confusions(alignments)
    assert found["substitutions"][0] == ("four", "for", 2)
    assert found["deletions"] == []
    assert sum(count for _, _, count in found["insertions"]) == 1
    assert len(confusions(alignments, most=1)["substitutions"]) == 1


def test_alignment_text_has_aligned_columns():
    text = alignment_text(align("utt-7", "turn on the lights", "turn off lights now"))
    assert text.splitlines() == [
        "utt-7  %WER 75.00 [ 3 / 4, 1 ins, 1 del, 1 sub ]",
        "  ref  turn  on   the  lights  ***",
        "  hyp  turn  off  ***  lights  now",
        "             S    D            I",
    ]


def test_alignment_text_wraps_long_utterances():
    words = " ".join(["word"] * 60)
    lines = alignment_text(align("u", words, words), columns=80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.split().count("word") for line in lines) == 120


def test_rate_without_words_is_nan():
    assert Errors().rate != Errors().rate


def test_deleted_last_words():
    refs = {"lost": "a b c", "silent": "a", "wrong": "a b", "longer": "a b", "first": "a b", "empty": ""}
    hyps = {"lost": "a b", "wrong": "a x", "longer": "a b c", "first": "b", "empty": "a"}
    assert deleted_last_words(align_all(refs, hyps)) == ["lost", "silent"]
