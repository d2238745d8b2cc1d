"""Kneser-Ney: probabilities that sum to one, formulas by hand, and the same as lmplz where that is installed."""

import random
import shutil
import subprocess
from itertools import product

import pytest

from asrkit.errors import InputError
from asrkit.lm.estimate import kneser_ney, write_arpa
from asrkit.lm.ngram import read_kenlm


def sentences(count: int, words: int, seed: int = 0) -> list[list[str]]:
    """Random sentences in which small numbers are frequent, and a word depends on the one before."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        sentence = [0]
        for _ in range(draw.randint(0, 6)):
            sentence.append((sentence[-1] + int(draw.expovariate(0.5))) % words)
        found.append([f"w{word}" for word in sentence])
    return found


@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_after_every_context_sum_to_one(order, tmp_path):
    text = sentences(200, 9)
    write_arpa(kneser_ney(text, order), tmp_path / "lm.arpa")
    model = read_kenlm(tmp_path / "lm.arpa")
    vocabulary = [*{word for sentence in text for word in sentence}, "</s>", "<unk>"]
    for context in [(), *product(vocabulary[:4], repeat=2)]:
        total = sum(10 ** list(model.full_scores(" ".join((*context, w)), eos=False))[-1][0] for w in vocabulary)
        assert total == pytest.approx(1, abs=1e-4)


def test_bigrams_by_hand():
    """Of "a b", "a b", "a c".

    The discounts of unigrams are the fallback (0.5, 1, 1.5), as none has the count 3. Of bigrams, two have the count
    1, two 2 and one 3, so that Y = 2 / (2 + 2 * 2) = 1 / 3 and the discounts are 1 / 3, 1.5 and 3.
    """
    unigrams, bigrams = kneser_ney([["a", "b"], ["a", "b"], ["a", "c"]], 2)
    # Different words before a, b, c and the end: 1, 1, 1, 2; five words with the unknown one.
    uniform = (3 * 0.5 + 1.0) / 5 / 5
    assert unigrams[("b",)][0] == pytest.approx((1 - 0.5) / 5 + uniform)
    assert unigrams[("</s>",)][0] == pytest.approx((2 - 1.0) / 5 + uniform)
    assert unigrams[("<unk>",)][0] == pytest.approx(uniform)
    assert unigrams[("a",)][1] == pytest.approx((1.5 + 1 / 3) / 3)
    assert bigrams[("a", "b")][0] == pytest.approx((2 - 1.5) / 3 + (1.5 + 1 / 3) / 3 * unigrams[("b",)][0])


@pytest.mark.parametrize(("order", "count"), [(2, 5), (3, 400), (5, 2000)])
def test_same_as_lmplz(order, count, tmp_path):
    if not (lmplz := shutil.which("lmplz")):
        pytest.skip("lmplz is not installed; tools/install_lmplz.sh does it")
    text = sentences(count, 30)
    (tmp_path / "text").write_text("".join(" ".join(sentence) + "\n" for sentence in text))
    command = [lmplz, "--order", str(order), "--discount_fallback", "-S", "10%", "--text", tmp_path / "text"]
    subprocess.run([*command, "--arpa", tmp_path / "theirs"], check=True, capture_output=True, cwd=tmp_path)
    write_arpa(kneser_ney(text, order), tmp_path / "ours")
    ours, theirs = (read_kenlm(tmp_path / name) for name in ("ours", "theirs"))
    for sentence in [*sentences(100, 40, seed=1), []]:
        assert ours.score(" ".join(sentence)) == pytest.approx(theirs.score(" ".join(sentence)), abs=1e-3)


def test_same_text_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_arpa(kneser_ney(sentences(50, 9), 3), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bad_text_is_one_line():
    with pytest.raises(InputError, match="no text"):
        kneser_ney([], 2)
    with pytest.raises(InputError, match="'<s>'"):
        kneser_ney([["a", "<s>"]], 2)
