import pytest

from asrkit.cli.main import main

YAML = """
title: Example
rows:
  test: {name: test set, dir: asr/test}
claims:
  - {claim: WER, value: test.wer, at_most: 1}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "results.yaml").write_text(YAML)
    (tmp_path / "refs").write_text("u1 a b c d\n")
    (tmp_path / "hyps").write_text("u1 a b c x\n")
    out = str(tmp_path / "exp" / "asr" / "test")
    assert main(["score", "--refs", str(tmp_path / "refs"), "--hyps", str(tmp_path / "hyps"), "--out", out]) == 0
    return tmp_path


def test_results_of_a_scored_set(recipe, capsys):
    assert main(["results", str(recipe)]) == 0
    assert "not met: WER" in capsys.readouterr().out
    text = (recipe / "RESULTS.md").read_text()
    assert "| WER | – | at most 1 | 25.00 | **not met** |" in text and "| test set | **25.00** |" in text


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        (YAML.replace("at_most", "at_mots"), "at_mots"),
        (YAML.replace("test.wer", "tset.wer"), "'tset' is not measured"),
        (YAML.replace("asr/test", "asr/none"), "asr/none/score.json"),
        (YAML + "pictures: {pictures/curve.png: curve}", "pictures/curve.png does not exist"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(recipe, capsys, yaml, problem):
    (recipe / "results.yaml").write_text(yaml)
    capsys.readouterr()
    assert main(["results", str(recipe)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and problem in errors[0]
    assert not (recipe / "RESULTS.md").exists()
