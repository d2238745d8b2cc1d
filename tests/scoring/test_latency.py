import pytest

from asrkit.scoring.latency import correct_words, latency_report, revised_words, spread, standing_times
from asrkit.scoring.wer import align, align_all
from asrkit.types import Word

# Of "turn on the lights": "on" is taken back as "off" and returns, and the last word changes.
CHANGES = [(0.6, "turn on"), (0.9, "turn off"), (1.2, "turn on the light"), (1.5, "turn on the lights")]


@pytest.mark.parametrize(
    ("partials", "times"),
    [
        (CHANGES, [0.6, 1.2, 1.2, 1.5]),
        ([(0.5, "a"), (0.8, ""), (1.1, "a b")], [1.1, 1.1]),
        ([(0.5, "b"), (0.8, "a b")], [0.8, 0.8]),  # "b" was there before, but at another place
        ([(0.5, "a b"), (0.8, "a")], [0.5]),
        ([(0.5, "a"), (0.8, "")], []),
    ],
)
def test_a_word_stands_since_it_came_for_good(partials, times):
    assert standing_times(partials) == times


@pytest.mark.parametrize(
    ("partials", "words"),
    [(CHANGES, 3), ([(0.5, "a b"), (0.8, "a")], 1), ([(0.5, "b c"), (0.8, "a b c")], 2), ([(0.5, "a b")], 0)],
)
def test_revised_words_are_not_at_their_place_in_the_next_result(partials, words):
    assert revised_words(partials) == words


def test_correct_words_have_their_places_in_both_texts():
    assert correct_words(align("u", "a b c d", "a x c y d")) == [(0, 0), (2, 2), (3, 4)]
    assert correct_words(align("u", "a b", "b c")) == [(1, 0)]


def test_report_of_an_example_by_hand():
    texts = {"u1": "turn on the lights", "u2": "yes", "u3": "no", "u4": ""}
    hyps = {"u1": "turn on the lights", "u2": "yeah", "u3": "", "u4": "oh"}
    ends = {"turn": 0.4, "on": 0.6, "the": 0.8, "lights": 1.2}
    refs = {"u1": [Word(text, end - 0.3, end) for text, end in ends.items()], "u2": [Word("yes", 0.2, 0.5)]}
    refs |= {"u3": [Word("no", 0.1, 0.3)], "u4": []}
    words = {"u1": [Word(text, end - 0.1, end + 0.04) for text, end in ends.items()], "u2": [Word("yeah", 0.2, 0.6)]}
    words |= {"u3": [], "u4": [Word("oh", 0.1, 0.2)]}
    partials = {"u1": CHANGES, "u2": [(0.3, "yeah")], "u3": [], "u4": [(0.5, "oh")]}
    figures = latency_report(align_all(texts, hyps), refs, words, partials)
    assert figures["utterances"] == 2  # nobody speaks in u4, and u3 is not heard
    assert figures["revised"] == 100 * 3 / 5
    assert figures["first_partial"] == pytest.approx(spread([0.6 - 0.1, 0.3 - 0.2]))
    assert figures["emission"] == pytest.approx(spread([0.6 - 0.4, 1.2 - 0.6, 1.2 - 0.8, 1.5 - 1.2]))
    assert figures["token"] == pytest.approx(spread([0.04] * 4))
    assert figures["final"] == pytest.approx(spread([1.5 - 1.2, 0.3 - 0.5]))


def test_spread():
    assert spread([float(i) for i in range(101)]) == {
        "events": 101,
        "mean": 50.0,
        "median": 50.0,
        "p90": 90.0,
        "p99": 99.0,
    }
    assert spread([]) == {"events": 0, "mean": None, "median": None, "p90": None, "p99": None}
