"""Fusion: what a YAML file says reaches the search; models of other tokens and other mistakes are one line."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from asrkit.config import write_config
from asrkit.errors import InputError
from asrkit.lm.estimate import kneser_ney, write_arpa
from asrkit.lm.neural import LmConfig, NeuralLm
from asrkit.lm.perplexity import sentence_log_probs
from asrkit.models.checkpoint import save_weights
from asrkit.search.fusion import InternalLm, NgramConfig, fuse, load_lm, load_scorers, read_fusion
from asrkit.search.recogniser import Recogniser, load
from asrkit.text.tokenizer import char_tokenizer


@dataclass
class _Section:
    model: LmConfig


@pytest.fixture(scope="module")
def folder(experiment, tmp_path_factory) -> Path:
    """A bigram, a neural model and phrases for the recogniser of `experiment`."""
    folder = tmp_path_factory.mktemp("fusion")
    recogniser = load(experiment)
    symbols = recogniser.tokenizer.symbols[2:]
    write_arpa(kneser_ney([symbols, symbols[::2], symbols[1::2]], 2), folder / "bigram" / "lm.arpa")
    write_config(NgramConfig(order=2), folder / "bigram" / "config.yaml")
    config = LmConfig(dim=8, layers=1, vocab_size=len(recogniser.tokenizer.symbols))
    torch.manual_seed(0)
    save_weights(NeuralLm(config), folder / "neural" / "model.pt")
    write_config(_Section(config), folder / "neural" / "config.yaml")
    for name in ("bigram", "neural"):
        shutil.copytree(experiment / "lang", folder / name / "lang")
    (folder / "phrases").write_text("ab\nc d\t2\n")
    return folder


@pytest.fixture
def fusion(folder, tmp_path):
    """A function that writes a fusion file and reads it."""

    def make(text: str):
        (tmp_path / "fusion.yaml").write_text(text.replace("FOLDER", str(folder)))
        return read_fusion(tmp_path / "fusion.yaml")

    return make


FULL = """
lms:
  neural: {path: FOLDER/neural, weight: 0.3}
  bigram: {path: FOLDER/bigram, weight: -0.2}
  unused: {path: FOLDER/bigram/lm.arpa, weight: 0}
internal_lm: -0.1
length: 0.5
context: {phrases: FOLDER/phrases, weight: 3}
"""


def decode(recogniser: Recogniser, tones):
    return recogniser.recognise([tones(2.0), tones(1.1, seed=3)], ["a", "b"])


def test_the_score_is_the_weighted_sum(experiment, folder, fusion, tones):
    config, recogniser = fusion(FULL), load(experiment)
    plain = decode(recogniser, tones)
    fuse(recogniser, config)
    results = decode(recogniser, tones)
    assert [r.hyps[0].text for r in results] != [r.hyps[0].text for r in plain]
    weights = {"acoustic": 1, "neural": 0.3, "bigram": -0.2, "internal_lm": -0.1, "length": 0.5, "context": 3}
    models = {name: load_lm(folder / name, recogniser.tokenizer) for name in ("neural", "bigram")}
    models["internal_lm"] = InternalLm(recogniser.model)
    for hyp in (hyp for result in results for hyp in result.hyps):
        assert hyp.scores.keys() == weights.keys()
        assert hyp.score == pytest.approx(sum(weights[name] * score for name, score in hyp.scores.items()), rel=1e-4)
        ids = [recogniser.tokenizer.symbols.index(token) for token in hyp.tokens]
        assert hyp.scores["length"] == len(ids)
        for name, model in models.items():
            assert hyp.scores[name] == pytest.approx(sentence_log_probs(model, [ids]).item(), rel=1e-4)


def test_no_weights_change_nothing(experiment, fusion, tones):
    recogniser = load(experiment)
    plain = decode(recogniser, tones)
    fuse(recogniser, fusion(""))
    assert decode(recogniser, tones) == plain


def test_phrases_of_the_command_line_replace_those_of_the_file(folder, fusion, tmp_path):
    fusion(FULL)
    config = read_fusion(tmp_path / "fusion.yaml", Path("other"))
    assert (config.context.phrases, config.context.weight) == (Path("other"), 3)
    assert read_fusion(None, Path("other")).context.phrases == Path("other")


def test_other_weights(fusion, tmp_path):
    config = fusion(FULL).with_weights({"neural": 0.7, "length": 0.0, "context": 2.0})
    rest = {"bigram": -0.2, "unused": 0.0, "internal_lm": -0.1}
    assert config.weights == {"neural": 0.7, "length": 0.0, "context": 2.0, **rest}
    write_config(config, tmp_path / "tuned.yaml")
    assert read_fusion(tmp_path / "tuned.yaml") == config


def test_other_tokens_are_one_line(folder, tmp_path):
    other = char_tokenizer(["abcde"])
    for name in ("bigram", "neural"):
        with pytest.raises(InputError, match=f"{name}: its tokens are not those of the recogniser"):
            load_lm(folder / name, other)
    with pytest.raises(InputError, match=r"lm\.arpa: of another vocabulary"):
        load_lm(folder / "bigram" / "lm.arpa", char_tokenizer(["xyz"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lms: {lm: {path: nowhere}}", "nowhere: No such file or directory"),
        ("lms: {lm: {path: FOLDER}}", "config.yaml: No such file or directory"),
        ("context: {phrases: nowhere}", "nowhere: No such file or directory"),
        ("lms: {lm: {}}", "fusion.yaml: .*path"),
        ("lms: {lm: {path: x, wait: 1}}", "fusion.yaml: .*wait"),
        ("lms: {length: {path: x}}", "fusion.yaml: .*cannot be called 'length'"),
        ("length: much", "fusion.yaml: .*length"),
    ],
)
def test_mistakes_are_one_line(text, message, experiment, fusion):
    with pytest.raises(InputError, match=message) as error:
        load_scorers(fusion(text), load(experiment).tokenizer)
    assert "\n" not in str(error.value)


def test_greedy_search_has_nothing_to_fuse(experiment, fusion):
    with pytest.raises(InputError, match="beam of at least 2"):
        fuse(load(experiment, beam=1), fusion("length: 1"))
