"""`asrkit lm`: training and measuring language models, and bad input."""

import random
import re
import shutil
from pathlib import Path

import pytest

from asrkit.cli import lm as module
from asrkit.cli.main import main
from asrkit.config import read_config
from asrkit.lm.ngram import read_kenlm
from asrkit.search.fusion import NgramConfig
from asrkit.text.tokenizer import char_tokenizer, train_bpe

SENTENCES = 4 * 3 * 4  # of the grammar, all as likely


def write_texts(folder: Path) -> None:
    draw = random.Random(0)
    words = ["anna", "bo", "carla", "dan"], ["sees", "takes", "likes"], ["apples", "stones", "cats", "dogs"]
    for name, count in {"train": 400, "dev": 50, "test": 100}.items():
        lines = [" ".join(map(draw.choice, words)) for _ in range(count)]
        (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Texts of a grammar, and two lang directories."""
    folder = tmp_path_factory.mktemp("lm")
    write_texts(folder)
    train_bpe((folder / "train").read_text().splitlines(), 40).save(folder / "lang")
    char_tokenizer(["abcd"]).save(folder / "short")
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """A function that runs `asrkit lm` in the folder and returns its status and its last line."""
    monkeypatch.chdir(folder)

    def call(line: str) -> tuple[int, str]:
        try:
            status = main(["lm", *line.split()])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, ([line for line in (err if status else out).splitlines() if line] or [""])[-1]

    return call


def sentence_perplexity(line: str, sentences: int) -> float:
    """The perplexity of a whole sentence from the line that the command prints."""
    per_word, words = re.search(r"([0-9.]+) per word \((\d+) words", line).groups()
    return float(per_word) ** ((int(words) + sentences) / sentences)


NEURAL = (
    "--valid dev --model.dim 32 --model.layers 1 --model.context 8 --model.dropout 0 --batching.max_tokens 1000 "
    "--training.steps 120 --training.validate_every 120 --training.learning_rate 0.02 --training.warm_up_hours 0.1"
)


@pytest.mark.parametrize(
    "options",
    ["--order 3", "--order 3 --unit word", f"--type lstm {NEURAL}", f"--type transformer {NEURAL}"],
    ids=["token", "word", "lstm", "transformer"],
)
def test_learns_a_grammar(options, run, tmp_path):
    assert run(f"train --text train --lang lang --out {tmp_path} {options}")[0] == 0
    status, line = run(f"perplexity --lm {tmp_path} --text test")
    assert status == 0 and "unknown words 0.00%" in line
    assert 0.8 * SENTENCES < sentence_perplexity(line, 100) < 1.4 * SENTENCES


def test_the_estimate_is_that_of_lmplz(run, tmp_path, monkeypatch):
    if not shutil.which("lmplz"):
        pytest.skip("lmplz is not installed; tools/install_lmplz.sh does it")
    run(f"train --text train --lang lang --out {tmp_path / 'theirs'}")
    monkeypatch.setattr(module.shutil, "which", lambda *_args, **_options: None)
    run(f"train --text train --lang lang --out {tmp_path / 'ours'}")
    ours, theirs = (read_kenlm(tmp_path / name / "lm.arpa") for name in ("ours", "theirs"))
    # So small a text leaves a discount to one word that lmplz counts otherwise; tests/lm/test_estimate.py has more.
    for line in ("▁ a n n a", "▁ b o ▁ x", ""):
        assert ours.score(line) == pytest.approx(theirs.score(line), rel=0.05)
    assert not list((tmp_path / "theirs").glob("lmplz.*"))


def test_unknown_words_are_counted(run, folder, tmp_path):
    (folder / "strange").write_text("anna sees 7 apples\nzed\n")
    run(f"train --text train --lang lang --out {tmp_path} --unit word")
    assert "(5 words, " in (line := run(f"perplexity --lm {tmp_path} --text strange")[1])
    assert line.endswith("2 ends of sentences); unknown words 40.00%")


def test_the_directory_tells_how_it_was_made(run, tmp_path, folder):
    run(f"train --text train dev --lang lang --out {tmp_path} --unit word --order 2")
    assert read_config(NgramConfig, [tmp_path / "config.yaml"]) == NgramConfig("word", 2)
    assert (tmp_path / "lang" / "tokens.txt").read_bytes() == (folder / "lang" / "tokens.txt").read_bytes()


def test_a_training_goes_on_but_not_as_another_model(run, tmp_path):
    train = f"train --type lstm --text train --lang lang --out {tmp_path} --model.layers 1 --training.steps"
    assert run(f"{train} 2 --model.dim 8")[0] == run(f"{train} 3 --model.dim 8")[0] == 0
    assert run(f"{train} 3 --model.dim 16") == (
        1,
        f"asrkit lm: {tmp_path}/config.yaml: begun with another 'model' section; choose another --out",
    )


def test_internal_lm_of_a_transducer(run, experiment, folder):
    (folder / "letters").write_text("ab a\nbad cab\n")
    status, line = run(f"perplexity --model {experiment} --text letters")
    assert status == 0 and "(4 words, 9 tokens, 0 ends of sentences)" in line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --text none --lang lang --out OUT", "none: No such file or directory"),
        ("train --text train --lang none --out OUT", "none/tokens.txt: No such file or directory"),
        ("train --text train --lang short --out OUT", "train: line 1: '.' is not known to the tokenizer"),
        ("train --text train --lang lang --out OUT --order 7", "--order 7: must be from 2 to 6"),
        ("train --text train --lang lang --out OUT --model.dim 8", "--model.dim: an n-gram has no configuration"),
        ("train --text train --lang lang --out train/x", "train/x.*: "),
        ("train --type lstm --text train --lang lang --out OUT --model.dims 8", "command line: .*dims"),
        ("train --type transformer --text train --lang lang --out OUT --model.heads 3", "must be a multiple of heads"),
        ("perplexity --lm none --text test", "none/lang/tokens.txt: No such file"),
        ("perplexity --text test", "--lm, --model: give one of the two"),
    ],
)
def test_mistakes_are_one_line(line, message, run, tmp_path):
    status, error = run(line.replace("OUT", str(tmp_path / "out")))
    assert status == 1 and re.match(f"asrkit lm: .*{message}", error)
    assert not (tmp_path / "out").exists()
