import pytest

from asrkit.scoring.phrases import phrase_counts, phrase_report, recall_gain
from asrkit.scoring.wer import align

PHRASES = {("quinn",), ("anna", "novak")}


@pytest.mark.parametrize(
    ("ref", "hyp", "counts"),
    [
        ("call anna novak and quinn", "call anna novak and quinn", (2, 2, 2)),
        ("call anna novak", "call anna know vac", (1, 0, 0)),
        ("call anna novak", "call anna the novak", (1, 0, 0)),  # a word inserted within the phrase
        ("call anna", "call anna novak", (0, 0, 1)),
        ("quinn quinn", "quinn", (2, 1, 1)),
        ("", "quinn", (0, 0, 1)),
    ],
)
def test_counts(ref, hyp, counts):
    assert phrase_counts(align("u", ref, hyp), PHRASES) == counts


def test_report():
    alignments = [align("1", "hello quinn", "hello quinn"), align("2", "quinn please", "win please")]
    figures = phrase_report(alignments, ["quinn", "anna novak"])
    assert (figures["recall"], figures["precision"], figures["occurrences"]) == (50.0, 100.0, 2)
    assert figures["recall_interval"] == (0.0, 100.0)
    assert phrase_report(alignments, ["vega"])["recall"] is None


def test_gain_is_paired():
    before = [align(str(i), "hello quinn", "hello quinn" if i % 2 else "hello win") for i in range(40)]
    after = [align(str(i), "hello quinn", "hello quinn" if i % 4 else "hello win") for i in range(40)]
    gain = recall_gain(before, after, ["quinn"])
    assert gain["points"] == 25 and 0 < gain["low"] < 25 < gain["high"] and gain["p_value"] < 0.01
    assert recall_gain(before, after, ["vega"]) is None
    whole = recall_gain(before, after, ["quinn"], {str(i): "one speaker" for i in range(40)})
    assert whole["low"] == whole["high"] == 25
