import pytest

from asrkit.text.normalise import has_digits, normalise


@pytest.mark.parametrize(
    "text, expected",
    [
        ("  Hello,   World! ", "hello world"),
        ("“Don’t go,” she said — twenty-one times!", "don't go she said twenty one times"),
        ("'so' 'tis the dogs' bowl '", "so 'tis the dogs' bowl"),
        ("Cafe\u0301", "café"),
        ("a/b e-mail_x", "a b e mail x"),
        ("¿Qué? über ÉCOLE", "qué über école"),
        ("?!", ""),
        ("room 12", "room 12"),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(normalise(text)) == expected


def test_case():
    assert normalise("It's Two", "upper") == "IT'S TWO"
    assert normalise("It's Two", "keep") == "It's Two"


def test_digits():
    assert has_digits("room 12") and has_digits("x²") and not has_digits("twelve")
