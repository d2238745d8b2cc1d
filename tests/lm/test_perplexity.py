"""Perplexity by hand, and the log-probabilities of a batch of sentences."""

import math

import pytest
import torch

from asrkit.lm.length import LengthScorer
from asrkit.lm.ngram import load_ngram
from asrkit.lm.perplexity import Perplexity, sentence_log_probs

ARPA = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-2\t<unk>\t0
-99\t<s>\t-0.5
-1.0\t</s>\t0
-0.5\ta\t-0.25

\\2-grams:
-0.3\t<s> a
-0.2\ta </s>

\\end\\
"""


def test_of_a_known_arpa(tmp_path, tokenizer):
    (tmp_path / "lm.arpa").write_text(ARPA)
    scorer = load_ngram(tmp_path / "lm.arpa", tokenizer)
    a, other = tokenizer.symbols.index("a"), tokenizer.symbols.index("b")
    by_hand = [-0.3 - 0.2, -0.3 - 0.25 - 0.5 - 0.2, -0.5 - 2 - 1.0, -0.5 - 1.0]
    found = sentence_log_probs(scorer, [[a], [a, a], [other], []])
    assert found.tolist() == pytest.approx([math.log(10) * x for x in by_hand])


def test_spreads_over_tokens_and_words():
    found = Perplexity(-6.0, words=2, tokens=5, ends=1, unknown=0) + Perplexity(-2.0, 1, 1, 1, 1)
    assert found == Perplexity(-8.0, 3, 6, 2, 1)
    assert found.per_token == pytest.approx(math.e) and found.per_word == pytest.approx(math.exp(8 / 5))


def test_length_counts_labels():
    assert sentence_log_probs(LengthScorer(5), [[1, 2, 3], [], [4]]).tolist() == [3.0, 0.0, 1.0]


def test_order_of_sentences_is_kept():
    lengths = torch.randint(0, 9, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    assert sentence_log_probs(LengthScorer(5), [[1] * n for n in lengths]).tolist() == lengths
