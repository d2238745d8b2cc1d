import pytest

from asrkit.cli.main import main
from asrkit.text.tokenizer import load_tokenizer


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text("to two two\nseven two\n")
    return tmp_path / "a.txt"


def lang(tmp_path, *arguments):
    return main(["lang", "--out", str(tmp_path / "lang"), *map(str, arguments)])


def test_word_pieces_from_several_texts(tmp_path, text, capsys):
    (tmp_path / "b.txt").write_text("eleven\n")
    assert lang(tmp_path, "--text", text, tmp_path / "b.txt", "--vocab_size", 20) == 0
    made = load_tokenizer(tmp_path / "lang")
    assert made.vocab_size == 20 and made.decode(made.encode("eleven two")) == "eleven two"
    assert "20 symbols (bpe) from 3 sentences, 6 words, 4 different" in capsys.readouterr().out


def test_homophones_are_read_as_the_more_frequent_word(tmp_path, text):
    (tmp_path / "lexicon.txt").write_text("to t uw\ntwo t uw\nseven s eh v\nsix s ih k s\n")
    assert lang(tmp_path, "--text", text, "--type", "phone", "--lexicon", tmp_path / "lexicon.txt") == 0
    made = load_tokenizer(tmp_path / "lang")
    assert made.decode(made.encode("to two seven")) == "two two seven"
    assert "ih" not in made.symbols  # only the words of the text


def test_phones_by_espeak(tmp_path, text):
    pytest.importorskip("espeakng_loader")
    assert lang(tmp_path, "--text", text, "--type", "phone") == 0
    assert load_tokenizer(tmp_path / "lang").decode(load_tokenizer(tmp_path / "lang").encode("seven")) == "seven"


def test_phones_by_cmudict(tmp_path, text):
    (tmp_path / "cmudict").write_text("to T UW1\ntwo T UW1\nseven S EH1 V AH0 N\n")
    assert lang(tmp_path, "--text", text, "--type", "phone", "--cmudict", tmp_path / "cmudict") == 0
    made = load_tokenizer(tmp_path / "lang")
    assert [made.symbols[index] for index in made.encode("seven")] == ["▁S", "EH", "V", "AH", "N"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--text", "{none}"], "none: No such file"),
        (["--text", "{empty}"], "--manifest, --text: no words"),
        ([], "--manifest, --text: no words"),
        (["--text", "{text}", "--vocab_size", "3"], "vocab_size 3: its characters alone need"),
        (
            ["--text", "{text}", "--type", "phone", "--lexicon", "{lexicon}"],
            "no pronunciation of 2 of 3 words: to, seven",
        ),
        (["--text", "{text}", "--type", "phone", "--lexicon", "x", "--cmudict", "y"], "give one of the two"),
    ],
)
def test_bad_input_is_one_line(tmp_path, text, capsys, arguments, message):
    (tmp_path / "lexicon.txt").write_text("two t uw\n")
    (tmp_path / "empty").write_text("\n")
    names = {"none": tmp_path / "none", "empty": tmp_path / "empty", "text": text, "lexicon": tmp_path / "lexicon.txt"}
    assert lang(tmp_path, *[argument.format(**names) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "lang").exists()
