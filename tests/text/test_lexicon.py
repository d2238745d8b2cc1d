import pytest

from asrkit.errors import InputError
from asrkit.text.lexicon import read_cmudict, read_lexicon, select_words, spell_out, write_lexicon


def test_written_lexicon_reads_back(tmp_path):
    lexicon = {"two": [("t", "uː")], "read": [("r", "iː", "d"), ("r", "ɛ", "d")]}
    write_lexicon(lexicon, tmp_path / "lexicon.txt")
    assert (tmp_path / "lexicon.txt").read_text().splitlines()[1:] == ["read r iː d", "read r ɛ d"]
    assert read_lexicon(tmp_path / "lexicon.txt") == lexicon


def test_cmudict_variants_stress_and_comments(tmp_path):
    path = tmp_path / "cmudict.dict"
    path.write_text(";;; header\nread R EH1 D\nread(2) R IY1 D\naalborg AO1 L B AO0 R G # place, danish\nA(1) AH0\n")
    assert read_cmudict(path) == {
        "read": [("R", "EH", "D"), ("R", "IY", "D")],
        "aalborg": [("AO", "L", "B", "AO", "R", "G")],
        "a": [("AH",)],
    }


def test_real_cmudict(corpora):
    lexicon = read_cmudict(corpora / "cmudict" / "cmudict.dict")
    phones = {phone for pronunciations in lexicon.values() for phones in pronunciations for phone in phones}
    assert len(lexicon) > 120_000
    assert len(phones) == 39
    assert lexicon["seven"] == [("S", "EH", "V", "AH", "N")]


@pytest.mark.parametrize("read", [read_lexicon, read_cmudict])
@pytest.mark.parametrize("content, message", [("two t uw\nto\n", "line 2: 'to' has no phones"), ("\n", "no words")])
def test_broken_lexicon(tmp_path, read, content, message):
    (tmp_path / "lexicon.txt").write_text(content)
    with pytest.raises(InputError, match=f"lexicon.txt: {message}"):
        read(tmp_path / "lexicon.txt")


def test_unreadable_lexicon(tmp_path):
    with pytest.raises(InputError, match="none.txt: No such file"):
        read_lexicon(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 k\n")
    with pytest.raises(InputError, match="latin.txt: not UTF-8"):
        read_lexicon(tmp_path / "latin.txt")


def test_selection_keeps_the_order_and_the_case_of_the_words():
    lexicon = {"a": [("AH",)], "two": [("T", "UW")]}
    assert list(select_words(lexicon, ["TWO", "a"], "dict").items()) == [("TWO", [("T", "UW")]), ("a", [("AH",)])]
    with pytest.raises(InputError, match=r"dict: no pronunciation of 2 of 3 words: three, four$"):
        select_words(lexicon, ["a", "three", "four"], "dict")


def test_spelling_out():
    assert spell_out(["ab"], list) == {"ab": [("a", "b")]}
    with pytest.raises(InputError, match="no pronunciation of 'x'"):
        spell_out(["x"], lambda word: ())
