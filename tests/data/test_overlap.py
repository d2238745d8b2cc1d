from asrkit.data.overlap import Overlap, find_overlaps

TEST = ["the cat sat on the mat", "dogs bark", "one two three four five six"]


def test_whole_sentences_and_long_strings():
    train = ["dogs bark", "then one two three four five came", "the cat sat on a mat", "", "the cat sat on the mat"]
    assert list(find_overlaps(TEST, train, length=4)) == [
        Overlap(1, 0, "dogs bark", True),
        Overlap(2, 1, "one two three four", False),
        Overlap(0, 2, "the cat sat on", False),
        Overlap(0, 4, "the cat sat on the mat", True),
    ]


def test_spacing_does_not_matter_and_short_strings_do_not_count():
    assert list(find_overlaps(TEST, [" dogs   bark "], 4)) == [Overlap(1, 0, "dogs bark", True)]
    assert list(find_overlaps(TEST, ["dogs bark loudly", "cat sat on", ""], 4)) == []


def test_two_test_sentences_in_one_line():
    found = find_overlaps(TEST, ["see the cat sat on one two three four five six"], 4)
    assert [(overlap.test, overlap.words) for overlap in found] == [(0, "the cat sat on"), (2, "one two three four")]


def test_other_text_is_streamed():
    def endless():
        while True:
            yield "dogs bark"

    assert next(find_overlaps(TEST, endless())).test == 1
