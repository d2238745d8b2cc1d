"""What the beam search scores hypotheses with beside the transducer, described in a few lines of YAML.

    lms:
      target: {path: exp/lm, weight: 0.4}
      source: {path: exp/source_lm, weight: -0.2}
    internal_lm: -0.2
    length: 0.5
    context: {phrases: names.txt, weight: 0.5}

A hypothesis is ranked by its acoustic log-probability plus each weight times what it weighs. So the usual ways to fuse
a language model are choices of weights:

- shallow fusion: one model of the target text, weight above 0;
- density ratio (McDermott et al., 2002.11268): also a model of the transcripts that the transducer was trained on,
  weight below 0;
- LODR, low-order density ratio (Zheng et al., 2203.16776): the same, with a bigram of tokens as that model;
- ILME, internal language model estimation (Meng et al., 2011.01991): `internal_lm` below 0 instead.

`asrkit tune decode` finds the weights.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from asrkit.config import read_config, read_section
from asrkit.errors import InputError
from asrkit.lm.context import ContextScorer, read_phrases
from asrkit.lm.length import LengthScorer
from asrkit.lm.neural import LmConfig, NeuralLm, NeuralScorer
from asrkit.lm.ngram import load_ngram
from asrkit.lm.scorer import Scorer
from asrkit.models.checkpoint import load_weights
from asrkit.models.transducer import BLANK, Transducer
from asrkit.search.beam import BeamSearch
from asrkit.search.recogniser import Recogniser
from asrkit.text.tokenizer import Tokenizer, load_tokenizer

RESERVED = ("acoustic", "internal_lm", "length", "context")  # names that scores have anyway


@dataclass(frozen=True)
class NgramConfig:
    """How an n-gram model was made: `config.yaml` of its directory."""

    unit: Literal["token", "word"] = "token"
    order: int = 3


@dataclass(frozen=True)
class LmFusion:
    """One language model: a directory of `asrkit lm train`, an ARPA file or a kenlm binary."""

    path: Path
    weight: float = 0.3
    unit: Literal["token", "word"] = "token"
    """What the words of an ARPA file or a kenlm binary are; a directory tells itself."""


@dataclass(frozen=True)
class ContextFusion:
    """Contextual phrases: a file with one a line, and the bonus for each of their tokens."""

    phrases: Path
    weight: float = 0.5


@dataclass(frozen=True)
class FusionConfig:
    """Language models by name, and the weights of the internal one, of each label, and of contextual phrases."""

    lms: dict[str, LmFusion] = field(default_factory=dict)
    internal_lm: float = 0.0
    length: float = 0.0
    context: ContextFusion | None = None

    def __post_init__(self) -> None:
        for name in self.lms:
            if name in RESERVED:
                raise ValueError(f"a language model cannot be called '{name}'")

    @property
    def weights(self) -> dict[str, float]:
        """Name -> weight of everything that has one."""
        weights = {name: lm.weight for name, lm in self.lms.items()}
        weights |= {"internal_lm": self.internal_lm, "length": self.length}
        return weights | {"context": self.context.weight} if self.context else weights

    def with_weights(self, weights: dict[str, float]) -> "FusionConfig":
        """Return the same with other weights for the names given."""
        lms = {name: replace(lm, weight=weights.get(name, lm.weight)) for name, lm in self.lms.items()}
        context = self.context and replace(self.context, weight=weights.get("context", self.context.weight))
        internal_lm, length = weights.get("internal_lm", self.internal_lm), weights.get("length", self.length)
        return FusionConfig(lms, internal_lm, length, context)


def load_scorers(config: FusionConfig, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> dict[str, Scorer]:
    """Load name -> scorer of a fusion, all that may have a weight, whatever it is.

    Raises:
        InputError: a file is missing or damaged, or a language model has other tokens than the recogniser.
    """
    scorers: dict[str, Scorer] = {
        name: load_lm(lm.path, tokenizer, name, lm.unit, device) for name, lm in config.lms.items()
    }
    scorers["length"] = LengthScorer(tokenizer.vocab_size, device)
    if config.context:
        phrases = read_phrases(config.context.phrases, tokenizer)
        scorers["context"] = ContextScorer(phrases, tokenizer.word_starts, device)
    return scorers


def read_fusion(file: Path | None, phrases: Path | None = None) -> FusionConfig:
    """Read a YAML file; `phrases` are used in place of the file's, with its weight.

    Raises:
        InputError: the file is missing, no YAML, or has an unknown key or a wrong value.
    """
    config = read_config(FusionConfig, [file] if file else [])
    if phrases is None:
        return config
    return replace(
        config, context=replace(config.context, phrases=phrases) if config.context else ContextFusion(phrases)
    )


def fuse(recogniser: Recogniser, config: FusionConfig, scorers: dict[str, Scorer] | None = None) -> None:
    """Make the search of a recogniser score hypotheses as `config` says; what has no weight is left out.

    `scorers` are those that `load_scorers` returned, loaded here by default.

    Raises:
        InputError: as `load_scorers`, or the search is greedy: it has one hypothesis, so nothing to rank.
    """
    if not isinstance(recogniser.search, BeamSearch):
        raise InputError("fusion needs a beam of at least 2")
    if scorers is None:
        scorers = load_scorers(config, recogniser.tokenizer, recogniser.model.device)
    weights = config.weights
    pairs = [(scorer, weights[name]) for name, scorer in scorers.items() if weights[name]]
    fused = {"scorers": pairs, "internal_lm_weight": config.internal_lm}
    # The weight of the length does what the norm does, but for the norm's one value.
    recogniser.search = replace(recogniser.search, **fused, length_norm=not any(weights.values()))


def load_lm(path: Path, tokenizer: Tokenizer, name: str = "lm", unit: str = "token", device="cpu") -> Scorer:
    """Load a language model as a scorer of the tokenizer's tokens.

    `path` is a directory made by `asrkit lm train` or, with `unit` ("token" or "word"), an ARPA file or kenlm binary.

    Raises:
        InputError: a file is missing or damaged, or the model has other tokens than the tokenizer.
    """
    if not path.is_dir():
        return load_ngram(path, tokenizer, unit, name, device)
    neural = (path / "model.pt").exists()
    unit = "token" if neural else read_config(NgramConfig, [path / "config.yaml"]).unit
    if unit == "token" and load_tokenizer(path / "lang").symbols != tokenizer.symbols:
        raise InputError(f"{path}: its tokens are not those of the recogniser; train it with the same lang directory")
    if not neural:
        binary = path / "lm.bin"
        return load_ngram(binary if binary.exists() else path / "lm.arpa", tokenizer, unit, name, device)
    model = NeuralLm(read_section(path / "config.yaml", "model", LmConfig))
    load_weights(model, path / "model.pt")
    return NeuralScorer(model.to(device), name)


class InternalLm:
    """The internal language model of a transducer as a scorer by itself, to be measured.

    In fusion the search has it at no cost, from the predictor outputs of its hypotheses. State: [joint-space output of
    the predictor (B, J), then the predictor's own].
    """

    name = "internal_lm"

    def __init__(self, model: Transducer) -> None:
        self.model = model.eval()

    def start(self, n: int) -> list[Tensor]:
        start = torch.full((n,), BLANK, device=self.model.device)
        return self.advance([start, *self.model.predictor.start(n)], start)

    def score(self, state: list[Tensor]) -> Tensor:
        return self.model.joiner.internal_lm(state[0])

    def advance(self, state: list[Tensor], tokens: Tensor) -> list[Tensor]:
        out, memory = self.model.predictor(tokens[:, None], state[1:])
        return [self.model.joiner.project_predictor(out[:, 0]), *memory]

    def finish(self, state: list[Tensor]) -> Tensor:
        return state[0].new_zeros(len(state[0]))  # a transducer has no end of the sentence
