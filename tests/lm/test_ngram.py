"""N-gram scorers against kenlm's own score of the whole sentence; bad files in one line each."""

from pathlib import Path

import kenlm
import pytest
import torch

from asrkit.errors import InputError
from asrkit.lm import ngram
from asrkit.lm.estimate import kneser_ney, write_arpa
from asrkit.lm.ngram import load_ngram
from asrkit.lm.perplexity import sentence_log_probs

SENTENCES = ["anna takes a cat", "bo sees", "stones stones anna", "cats", ""]


def symbols_of(tokenizer, text: str) -> list[str]:
    return [tokenizer.symbols[token] for token in tokenizer.encode(text)]


@pytest.fixture(scope="module")
def folder(texts, tokenizer, tmp_path_factory) -> Path:
    """Models of tokens and of words."""
    folder = tmp_path_factory.mktemp("ngram")
    write_arpa(kneser_ney([symbols_of(tokenizer, text) for text in texts], 3), folder / "token.arpa")
    write_arpa(kneser_ney([text.split() for text in texts], 3), folder / "word.arpa")
    return folder


@pytest.fixture(params=["token", "word"])
def unit(request) -> str:
    return request.param


def expected(folder, unit, tokenizer) -> list[float]:
    """kenlm's own scores, natural logarithms."""
    model = kenlm.Model(str(folder / f"{unit}.arpa"))
    lines = [" ".join(symbols_of(tokenizer, text)) if unit == "token" else text for text in SENTENCES]
    return [model.score(line) * ngram.LN_10 for line in lines]


def test_sum_over_a_sentence_is_kenlms(folder, unit, tokenizer):
    scorer = load_ngram(folder / f"{unit}.arpa", tokenizer, unit)
    found = sentence_log_probs(scorer, [tokenizer.encode(text) for text in SENTENCES])
    assert found.tolist() == pytest.approx(expected(folder, unit, tokenizer), abs=1e-4)


def test_a_full_cache_changes_nothing(folder, unit, tokenizer, monkeypatch):
    monkeypatch.setattr(ngram, "CACHED_SCORES", 2 * tokenizer.vocab_size)
    scorer = load_ngram(folder / f"{unit}.arpa", tokenizer, unit)
    found = sentence_log_probs(scorer, [tokenizer.encode(text) for text in SENTENCES])
    assert found.tolist() == pytest.approx(expected(folder, unit, tokenizer), abs=1e-4)


def test_scores_are_a_distribution_and_states_can_be_reordered(folder, tokenizer):
    scorer = load_ngram(folder / "token.arpa", tokenizer)
    state = scorer.advance(scorer.start(3), torch.tensor([tokenizer.encode(word)[0] for word in ("anna", "bo", "dan")]))
    scores = scorer.score(state)
    total = scores[:, 1:].logsumexp(dim=1).exp() + scorer.finish(state).exp()
    model = kenlm.Model(str(folder / "token.arpa"))
    known = [token in model for token in tokenizer.symbols]  # every other one has the probability of the unknown
    once = scores[:, [False, True, *known[2:]]].logsumexp(dim=1).exp() + scorer.finish(state).exp()
    assert torch.allclose(once, torch.ones(3), atol=1e-4) and (total >= once).all()
    order = torch.tensor([2, 0, 0])
    assert torch.equal(scorer.score([s[order] for s in state]), scores[order])


def test_a_word_counts_when_it_is_complete(folder, tokenizer):
    scorer = load_ngram(folder / "word.arpa", tokenizer, "word")
    state = scorer.start(1)
    assert scorer.score(state).count_nonzero() == 0
    for token in tokenizer.encode("anna"):
        state = scorer.advance(state, torch.tensor([token]))
    log_prob = next(iter(kenlm.Model(str(folder / "word.arpa")).full_scores("anna")))[0] * ngram.LN_10
    starts = torch.tensor(tokenizer.word_starts)
    scores = scorer.score(state)[0]
    assert scores[starts].tolist() == pytest.approx([log_prob] * int(starts.sum()))
    assert scores[~starts].count_nonzero() == 0


def test_a_kenlm_binary_is_told_from_others(tmp_path, tokenizer):
    (tmp_path / "lm.bin").write_bytes(ngram.BINARY_START + b" format version 5\n\0" + bytes(99))
    with pytest.raises(InputError, match=r"lm\.bin: damaged: "):
        load_ngram(tmp_path / "lm.bin", tokenizer)


ARPA = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-1.0\t<unk>\t0
-99\t<s>\t-0.3
-1.0\t</s>\t0
-0.5\ta\t-0.2

\\2-grams:
-0.3\t<s> a
-0.2\ta </s>

\\end\\
"""


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("-0.2\ta </s>", "-0.2x\ta </s>", 13),
        ("-0.2\ta </s>", "-0.2\ta q", 13),
        ("-0.3\t<s> a", "0.3\t<s> a", 12),
        ("-0.3\t<s> a", "nan\t<s> a", 12),
        ("-0.3\t<s> a", "-0.3 <s>", 12),
        ("-0.3\t<s> a", "-0.3\t<s> a a a", 12),
        ("-0.5\ta\t-0.2", "-0.5\ta\tmuch", 9),
        ("-0.5\ta", "a", 9),
        ("ngram 2=2", "ngram 2=3", 15),
        ("ngram 1=4", "ngram 1=3", 9),
        ("ngram 2=2", "ngram 2=1", 13),
        ("ngram 1=4", "ngram one=4", 2),
        ("\\2-grams", "\\3-grams", 11),
        ("\\end\\\n", "", 15),
    ],
)
def test_a_broken_arpa_names_the_line(old, new, line, tmp_path, tokenizer):
    (tmp_path / "lm.arpa").write_text(ARPA.replace(old, new))
    with pytest.raises(InputError, match=rf"^{tmp_path}/lm\.arpa: line {line}: [^\n]+$") as error:
        load_ngram(tmp_path / "lm.arpa", tokenizer)
    assert "lm/" not in str(error.value).replace(str(tmp_path), "") and "threw" not in str(error.value)


def test_no_language_model_is_one_line(tmp_path, tokenizer, folder):
    with pytest.raises(InputError, match=r"none\.arpa: No such file"):
        load_ngram(tmp_path / "none.arpa", tokenizer)
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(InputError, match="text: neither an ARPA file nor a kenlm binary"):
        load_ngram(tmp_path / "text", tokenizer)


def test_tokens_that_a_model_lacks_are_reported(tmp_path, tokenizer, caplog):
    write_arpa(kneser_ney([symbols_of(tokenizer, "a")], 2), tmp_path / "small.arpa")
    load_ngram(tmp_path / "small.arpa", tokenizer)
    assert "tokens are not in it" in caplog.text


def test_another_vocabulary_is_one_line(tmp_path, tokenizer, folder):
    (tmp_path / "lm.arpa").write_text(ARPA.replace(" a", " zz").replace("\ta", "\tzz"))
    with pytest.raises(
        InputError, match="of another vocabulary: 1 of its 1 words are no tokens of the recogniser, 'zz'"
    ):
        load_ngram(tmp_path / "lm.arpa", tokenizer)
    with pytest.raises(InputError, match="of another vocabulary"):
        load_ngram(folder / "word.arpa", tokenizer)
    upper = kneser_ney([["ANNA", "SEES"]], 2)
    write_arpa(upper, tmp_path / "upper.arpa")
    with pytest.raises(InputError, match="upper case, maybe"):
        load_ngram(tmp_path / "upper.arpa", tokenizer, "word")
