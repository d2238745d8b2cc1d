"""`asrkit lm`: train language models, and measure them.

Usage:
    asrkit lm train --type ngram --text data/text/train.txt --lang data/lang --out exp/bigram --order 2
    asrkit lm train --type lstm --text a.txt b.txt.gz --valid dev.txt --lang data/lang --out exp/lm --model.dim 512
    asrkit lm perplexity --lm exp/lm --text test.txt
    asrkit lm perplexity --model exp/asr --text test.txt    # of the transducer's internal language model
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import torch

from asrkit.cli.main import run
from asrkit.cli.train import split_overrides
from asrkit.config import read_config, read_section, write_config
from asrkit.data.formats import write_lines
from asrkit.data.manifests import read_texts
from asrkit.data.sentences import SentenceBatchingConfig, SentenceLoader, read_sentences
from asrkit.errors import InputError
from asrkit.lm.estimate import kneser_ney, write_arpa
from asrkit.lm.neural import LmConfig, NeuralLm
from asrkit.lm.ngram import WordNgram
from asrkit.lm.perplexity import Perplexity, sentence_log_probs
from asrkit.lm.scorer import Scorer
from asrkit.search.fusion import InternalLm, NgramConfig, load_lm
from asrkit.search.recogniser import load as load_recogniser
from asrkit.text.tokenizer import Tokenizer, copy_tokenizer, load_tokenizer
from asrkit.training.config import TrainingConfig
from asrkit.training.distributed import own_device, rank_and_world
from asrkit.training.loop import train as run_training

log = logging.getLogger(__name__)

BATCH = 256  # sentences whose perplexity is computed together
UNKNOWN_ID = 1
ORDERS = range(2, 7)  # that kenlm reads


@dataclass(frozen=True)
class NeuralConfig:
    """Everything that `config.yaml` of a neural language model holds."""

    batching: SentenceBatchingConfig = field(default_factory=SentenceBatchingConfig)
    model: LmConfig = field(default_factory=LmConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def main(argv: list[str]) -> None:
    options, overrides = split_overrides(argv)

    def train(
        *,
        text: list[Path],
        lang: Path,
        out: Path,
        type: Literal["ngram", "lstm", "transformer"] = "ngram",
        order: int = 3,
        unit: Literal["token", "word"] = "token",
        valid: Path | None = None,
        conf: list[Path] = (),  # type: ignore[assignment]
    ) -> None:
        """Train a language model into a directory; a neural one goes on where an interrupted training was.

        Every key of a neural model's configuration is an option too, for instance `--model.dim 512`.

        Args:
            text: text files, one sentence a line, or manifests; either may be gzipped.
            lang: lang directory of the recogniser, copied into the language model's.
            out: directory of the language model.
            type: n-gram (modified Kneser-Ney) or neural network.
            order: of the n-grams.
            unit: what an n-gram consists of: the recogniser's tokens, or words.
            valid: text to choose the best neural model by.
            conf: YAML files of a neural model; later ones win.
        """
        if type == "ngram":
            if overrides or conf:
                raise InputError(f"--{next(iter(overrides), 'conf')}: an n-gram has no configuration")
            train_ngram(NgramConfig(unit, order), text, lang, out)
        else:
            config = read_config(NeuralConfig, conf, {**overrides, "model.kind": type})
            train_neural(config, text, valid, lang, out)

    level = logging.INFO if rank_and_world()[0] == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run({"train": train, "perplexity": perplexity, "_help": "train and measure language models"}, options)


def train_ngram(config: NgramConfig, text: list[Path], lang: Path, out: Path) -> None:
    """Estimate an n-gram model by kenlm's `lmplz`, where it is installed, else by our own code to the same result."""
    if config.order not in ORDERS:
        raise InputError(f"--order {config.order}: must be from {ORDERS[0]} to {ORDERS[-1]}")
    sentences = _units(text, load_tokenizer(lang), config.unit)
    lmplz = shutil.which("lmplz", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if lmplz:
        _run_lmplz(lmplz, sentences, config.order, out / "lm.arpa")
    else:
        log.info("estimating without lmplz, which tools/install_lmplz.sh installs: slower, and in more memory")
        write_arpa(kneser_ney(sentences, config.order), out / "lm.arpa")
    copy_tokenizer(lang, out / "lang")
    write_config(config, out / "config.yaml")
    print(out / "lm.arpa")


def _units(text: list[Path], tokenizer: Tokenizer, unit: str) -> Iterator[list[str]]:
    """Yield the words or the tokens of each sentence."""
    if unit == "word":
        return (sentence.split() for file in text for sentence in read_texts(file))
    return ([tokenizer.symbols[t] for t in tokens] for _, tokens in read_sentences(text, tokenizer.encode))


def _run_lmplz(lmplz: str, sentences: Iterator[list[str]], order: int, file: Path) -> None:
    first = next(sentences, None)  # text that cannot be read is reported before anything is made
    if first is None:
        raise InputError("no text to estimate n-grams from")
    with tempfile.TemporaryDirectory(prefix="lmplz.", dir=_made(file.parent)) as folder:
        text, arpa = Path(folder) / "text", Path(folder) / "lm.arpa"
        write_lines(map(" ".join, chain([first], sentences)), text)
        command = [lmplz, "--order", str(order), "--discount_fallback", "--memory", "50%", "--temp_prefix", folder]
        done = subprocess.run([*command, "--text", text, "--arpa", arpa], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"lmplz: {' '.join(done.stderr.split()[-60:])}")
        arpa.replace(file)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def train_neural(config: NeuralConfig, text: list[Path], valid: Path | None, lang: Path, out: Path) -> None:
    """Train a neural language model, in one process or in those of torchrun."""
    tokenizer = load_tokenizer(lang)
    config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    if (out / "model.pt").exists() and read_section(out / "config.yaml", "model", LmConfig) != config.model:
        raise InputError(f"{out / 'config.yaml'}: begun with another 'model' section; choose another --out")
    rank, world = rank_and_world()

    def loader(files: list[Path], shuffle: bool) -> SentenceLoader:
        seed = config.training.seed
        return SentenceLoader(files, tokenizer.encode, config.batching, seed, rank, world, shuffle)

    train_data = loader(text, shuffle=True)
    valid_data = loader([valid], shuffle=False) if valid else None
    if rank == 0:
        copy_tokenizer(lang, out / "lang")
        write_config(config, out / "config.yaml")
    torch.manual_seed(config.training.seed)
    run_training(NeuralLm(config.model).to(own_device()), train_data, valid_data, config.training, out)


def perplexity(*, text: list[Path], lm: Path | None = None, model: Path | None = None) -> None:
    """Print the perplexity of a text per token and per word, and the share of words that are not in the vocabulary.

    Args:
        text: text files, one sentence a line, or manifests; either may be gzipped.
        lm: directory of a language model.
        model: experiment directory of a transducer, for its internal language model. That has no end of the sentence:
            its perplexity is per token and word of speech, and lower for that.
    """
    if (lm is None) == (model is None):
        raise InputError("--lm, --model: give one of the two")
    print(describe(measure_lm(lm, text) if lm else measure_internal_lm(model, text)))


def describe(found: Perplexity) -> str:
    unknown = 100 * found.unknown / found.words
    return (
        f"perplexity {found.per_token:.3f} per token, {found.per_word:.3f} per word ({found.words} words, "
        f"{found.tokens} tokens, {found.ends} ends of sentences); unknown words {unknown:.2f}%"
    )


def measure_lm(folder: Path, text: list[Path]) -> Perplexity:
    """Return the perplexity of a text under the language model of a directory."""
    tokenizer = load_tokenizer(folder / "lang")
    scorer = load_lm(folder, tokenizer)
    knows = scorer.knows if isinstance(scorer, WordNgram) else partial(_spells, tokenizer)
    return measure(scorer, tokenizer, knows, text, has_end=True)


def measure_internal_lm(folder: Path, text: list[Path]) -> Perplexity:
    """Return the perplexity of a text under the internal language model of an experiment's transducer."""
    recogniser = load_recogniser(folder)
    tokenizer = recogniser.tokenizer
    return measure(InternalLm(recogniser.model), tokenizer, partial(_spells, tokenizer), text, has_end=False)


def measure(
    scorer: Scorer, tokenizer: Tokenizer, knows: Callable[[str], bool], text: list[Path], has_end: bool
) -> Perplexity:
    """Return the perplexity of a text; words that cannot be spelled are the unknown token."""
    total = Perplexity(0.0, 0, 0, 0, 0)
    sentences = (sentence.split() for file in text for sentence in read_texts(file))
    while batch := list(islice(sentences, BATCH)):
        tokens = [[t for word in words for t in _tokens(tokenizer, word)] for words in batch]
        total += Perplexity(
            log_prob=float(sentence_log_probs(scorer, tokens).double().sum()),
            words=sum(map(len, batch)),
            tokens=sum(map(len, tokens)),
            ends=has_end * len(batch),
            unknown=sum(not knows(word) for words in batch for word in words),
        )
    if not total.words:
        raise InputError(f"{', '.join(map(str, text))}: no text")
    return total


def _tokens(tokenizer: Tokenizer, word: str) -> list[int]:
    try:
        return tokenizer.encode(word)
    except InputError:
        return [UNKNOWN_ID]


def _spells(tokenizer: Tokenizer, word: str) -> bool:
    return _tokens(tokenizer, word) != [UNKNOWN_ID]
