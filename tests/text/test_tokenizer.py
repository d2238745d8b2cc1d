import pickle

import pytest

from asrkit.errors import InputError
from asrkit.text import tokenizer
from asrkit.text.tokenizer import char_tokenizer, copy_tokenizer, load_tokenizer, phone_tokenizer, train_bpe

TEXTS = ["set the kitchen light to red", "don't turn off the lamp", "call karen at two", "the red lamp"] * 3
LEXICON = {
    "two": [("t", "uw")],
    "to": [("t", "uw"), ("t", "ax")],
    "tooth": [("t", "uw", "th")],
    "read": [("r", "iy", "d"), ("r", "eh", "d")],
}


def make(kind):
    return {
        "bpe": lambda: train_bpe(TEXTS, 60),
        "char": lambda: char_tokenizer(TEXTS),
        "phone": lambda: phone_tokenizer(LEXICON),
    }[kind]()


@pytest.mark.parametrize("kind", ["bpe", "char", "phone"])
def test_a_saved_tokenizer_is_the_same_tokenizer(kind, tmp_path):
    made = make(kind)
    made.save(tmp_path / "lang")
    copy_tokenizer(tmp_path / "lang", tmp_path / "exp")
    loaded = load_tokenizer(tmp_path / "exp")
    text = "two tooth read" if kind == "phone" else "turn the kitchen lamp to karen"
    assert type(loaded) is type(made)
    assert loaded.symbols == made.symbols
    assert loaded.encode(text) == made.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert pickle.loads(pickle.dumps(loaded)).encode(text) == made.encode(text)


@pytest.mark.parametrize("kind", ["bpe", "char", "phone"])
def test_special_symbols_and_word_starts(kind):
    made = make(kind)
    assert made.symbols[:2] == ["<blk>", "<unk>"]
    assert made.vocab_size == len(made.symbols) == len(set(made.symbols))
    assert made.word_starts == [symbol[0] == "▁" for symbol in made.symbols]
    text = "two read to" if kind == "phone" else "call karen at two"
    ids = made.encode(text)
    assert sum(made.word_starts[index] for index in ids) == len(text.split())
    assert not {0, 1} & set(ids)


@pytest.mark.parametrize("kind", ["bpe", "char", "phone"])
@pytest.mark.parametrize("text", ["", "  "])
def test_empty_text(kind, text):
    assert make(kind).encode(text) == []
    assert make(kind).decode([]) == ""


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("text, symbol", [("call koë", "ë"), ("<unk> lamp", "<"), ("the 2 lamps", "2")])
def test_unknown_symbol_is_named(kind, text, symbol):
    with pytest.raises(InputError, match=f"^'.*{symbol}.*' is not known to the tokenizer, in '{text}'$"):
        make(kind).encode(text)


def test_unknown_word_is_named():
    with pytest.raises(InputError, match="'lamp' is not known"):
        make("phone").encode("two lamp")


def test_words_give_positions_around_blanks():
    made = make("char")
    ids = made.encode("at two")
    assert made.words([0, *ids[:2], 0, *ids[2:], 0]) == [("at", range(1, 3)), ("two", range(4, 7))]


def test_words_that_begin_without_a_word_start_are_kept():
    made = make("char")
    assert made.decode(made.encode("karen at")[2:]) == "ren at"


def test_homophones_are_read_as_the_first_word_of_the_lexicon():
    made = make("phone")
    assert made.decode(made.encode("to two tooth")) == "two two tooth"
    second = [made.symbols.index(symbol) for symbol in ("▁r", "eh", "d", "▁t", "ax")]
    assert made.decode(second) == "read to"


def test_a_phone_string_that_is_no_word():
    made = make("phone")
    assert made.decode([made.symbols.index("▁uw"), made.symbols.index("t"), *made.encode("two")]) == "<unk> two"


def test_bpe_is_deterministic_and_of_the_size_asked_for(tmp_path):
    for folder in ("a", "b"):
        train_bpe(iter(TEXTS), 45).save(tmp_path / folder)
    assert (tmp_path / "a/bpe.model").read_bytes() == (tmp_path / "b/bpe.model").read_bytes()
    assert load_tokenizer(tmp_path / "a").vocab_size == 45


def test_bpe_keeps_long_lines():
    made = train_bpe(["abc " * 3000 + "xyz"], 12)
    assert made.decode(made.encode("xyz")) == "xyz"


@pytest.mark.parametrize(
    "texts, size, message",
    [
        (TEXTS, 5, "vocab_size 5: its characters alone need"),
        (TEXTS, 5000, "vocab_size 5000: the text gives at most"),
        (["", " "], 50, "no text"),
    ],
)
def test_bpe_that_cannot_be_made(texts, size, message):
    with pytest.raises(InputError, match=message):
        train_bpe(texts, size)


def test_characters_of_no_text():
    with pytest.raises(InputError, match="no text"):
        char_tokenizer([" "])


def test_saving_another_kind_over_a_lang_directory(tmp_path):
    make("bpe").save(tmp_path)
    make("phone").save(tmp_path)
    make("char").save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), tokenizer.CharTokenizer)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "must begin with '<blk> 0'"),
        ("a 0\nb 1\n", "must begin with '<blk> 0'"),
        ("<blk> 0\n<unk> 1\na 3\n", "line 3: expected 'symbol 2'"),
        ("<blk> 0\n<unk> 1\na\n", "line 3: expected"),
        ("<blk> 0\n<unk> 1\na 2\na 3\n", "the same symbol twice"),
    ],
)
def test_damaged_tokens_file(tmp_path, content, message):
    (tmp_path / "tokens.txt").write_text(content)
    with pytest.raises(InputError, match=f"tokens.txt: {message}"):
        load_tokenizer(tmp_path)


def test_missing_lang_directory(tmp_path):
    with pytest.raises(InputError, match="tokens.txt: No such file"):
        load_tokenizer(tmp_path / "none")


def test_model_that_is_none_or_of_another_vocabulary(tmp_path):
    make("bpe").save(tmp_path)
    model = (tmp_path / "bpe.model").read_bytes()
    (tmp_path / "bpe.model").write_bytes(pickle.dumps({"not": "a model"}))
    with pytest.raises(InputError, match="bpe.model: not a sentencepiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "bpe.model").write_bytes(model)
    make("char").save(tmp_path / "other")
    (tmp_path / "tokens.txt").write_bytes((tmp_path / "other/tokens.txt").read_bytes())
    with pytest.raises(InputError, match="not those of bpe.model"):
        load_tokenizer(tmp_path)
