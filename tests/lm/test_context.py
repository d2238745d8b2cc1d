"""Contextual phrases against a search of all matches, and on cases by hand."""

import random
from itertools import product

import pytest
import torch

from asrkit.errors import InputError
from asrkit.lm.context import ContextScorer, Phrase, read_phrases
from asrkit.lm.perplexity import sentence_log_probs

# Tokens: 0 blank, 1 unknown; 2, 3 and 4 start words, 5 and 6 go on with them.
STARTS = [False, False, True, True, True, False, False]


def total(phrases: list[Phrase], sentence: list[int]) -> float:
    return sentence_log_probs(ContextScorer(phrases, STARTS), [sentence]).item()


def brute_force(phrases: list[Phrase], sentence: list[int]) -> float:
    """The bonus of a sentence by the rule in words.

    From the left: follow the earliest start for as long as some phrase goes on; where none does, keep the longest
    phrase from there that is complete at the end of a word, or what a new search of the tokens in between gives, if
    that is more; and go on with the latest part that begins a phrase.
    """
    prefixes = {tuple(p.tokens[:n]) for p in phrases for n in range(1, len(p.tokens) + 1)}

    def run(tokens: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        """Return what is kept for good after `tokens`, and the match that is still open."""
        kept, match = 0.0, ()
        for token in tokens:
            while match and (*match, token) not in prefixes:
                gain, match = leave(match, token)
                kept += gain
            match = (*match, token) if (*match, token) in prefixes else ()
        return kept, match

    def leave(match: tuple[int, ...], following: int | None) -> tuple[float, tuple[int, ...]]:
        ends = following is None or STARTS[following]
        whole = 0.0
        for phrase in phrases:
            n = len(phrase.tokens)
            if match[:n] == tuple(phrase.tokens) and (STARTS[match[n]] if n < len(match) else ends):
                whole = max(whole, phrase.bonus * n)
        inside, suffix = run(match[1:])
        return max(whole, inside), suffix

    kept, match = run(tuple(sentence))
    while match:
        gain, match = leave(match, None)
        kept += gain
    return kept


@pytest.mark.parametrize("seed", range(12))
def test_any_phrases_and_sentences(seed):
    draw = random.Random(seed)
    phrases = [
        Phrase([draw.choice([2, 3]), *draw.choices([2, 3, 5], k=draw.randint(0, 3))], draw.choice([0.5, 1.0, 2.0]))
        for _ in range(draw.randint(1, 6))
    ]
    sentences = [draw.choices([2, 3, 4, 5, 6], weights=[3, 3, 1, 3, 1], k=draw.randint(0, 12)) for _ in range(60)]
    found = sentence_log_probs(ContextScorer(phrases, STARTS), sentences)
    expected = [brute_force(phrases, sentence) for sentence in sentences]
    assert max(expected) > 0
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_phrase_that_overlaps_no_other_counts_whenever_it_is_said():
    phrases = [Phrase([2, 5], 1.5), Phrase([3, 4, 6], 1.0)]
    assert total(phrases, [2, 5, 2, 5, 3, 4, 6]) == pytest.approx(3.0 + 3.0 + 3.0)
    assert total(phrases, [2, 3, 4, 2, 6, 3, 4]) == 0.0


def test_partial_bonus_is_given_and_taken_back():
    scorer = ContextScorer([Phrase([2, 5, 6], 1.0)], STARTS)
    state, sums = scorer.start(1), []
    for token in (2, 5, 3):
        sums.append(scorer.score(state)[0, token].item())
        state = scorer.advance(state, torch.tensor([token]))
    assert sums == [1.0, 1.0, -2.0]
    assert scorer.score(state).max() == 1.0


def test_a_longer_word_is_not_the_phrase():
    phrases = [Phrase([2], 2.0)]
    assert total(phrases, [2, 3]) == 2.0 and total(phrases, [2]) == 2.0
    assert total(phrases, [2, 5, 3]) == 0.0


def test_overlapping_phrases_keep_what_is_complete():
    phrases = [Phrase([2, 3], 1.0), Phrase([2, 3, 4], 1.0), Phrase([3, 4, 4], 1.0)]
    assert total(phrases, [2, 3, 4]) == 3.0  # the longer one, not both
    assert total(phrases, [2, 3, 2]) == 2.0
    assert total(phrases, [2, 3, 4, 4]) == 6.0  # two whole phrases


def test_gains_of_all_ways_add_up_to_the_same():
    """However a sentence goes on, taking back never exceeds what was given."""
    scorer = ContextScorer([Phrase([2, 3, 5], 1.0), Phrase([3, 2], 2.0), Phrase([3], 0.5)], STARTS)
    for sentence in product([2, 3, 5], repeat=5):
        assert sentence_log_probs(scorer, [list(sentence)]).item() >= -1e-6


def test_phrases_file(tmp_path, tokenizer):
    file = tmp_path / "names"
    file.write_text("anna\n\ncarla sees\t3.5\n", encoding="utf-8")
    anna, carla = read_phrases(file, tokenizer)
    assert (anna.tokens, anna.bonus) == (tokenizer.encode("anna"), 1.0)
    assert (carla.tokens, carla.bonus) == (tokenizer.encode("carla sees"), 3.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anna\nżaneta\n", "line 2: 'ż' is not known to the tokenizer, in 'żaneta'"),
        ("anna\tmuch\n", "line 1: .*'much'"),
        ("anna\tnan\n", "line 1: .*nan"),
        ("\n", "no phrases"),
    ],
)
def test_bad_phrases_are_one_line(text, message, tmp_path, tokenizer):
    (tmp_path / "names").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"names: {message}"):
        read_phrases(tmp_path / "names", tokenizer)
