"""Models small enough for exhaustive search, a language model, and what every label sequence scores under them."""

from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch.nn.utils.rnn import pad_sequence

from asrkit.losses.transducer import transducer_loss
from asrkit.models.transducer import Transducer, TransducerConfig
from asrkit.nn.decoders import PredictorConfig
from asrkit.nn.encoders import EncoderConfig

VOCAB, DIM = 4, 8


def tiny_model(kind: str = "lstm", seed: int = 0, **options) -> Transducer:
    torch.manual_seed(seed)
    config = TransducerConfig(
        encoder=EncoderConfig(dim=DIM, layers=1, heads=2, feedforward_dim=DIM),
        predictor=PredictorConfig(kind=kind, dim=DIM),
        joiner_dim=DIM,
        vocab_size=VOCAB,
        **options,
    )
    model = Transducer(config).eval()
    model.joiner.output.weight.data *= 4  # away from uniform, so that rankings are clear
    return model


@dataclass(frozen=True)
class Bigram:
    """log P(next | last) from a table; the state is the last label; the end is the blank's column."""

    table: torch.Tensor  # (V, V)
    name: str = "lm"

    def start(self, n):
        return [torch.zeros(n, dtype=torch.int64)]

    def score(self, state):
        return self.table[state[0]].clone()

    def advance(self, state, tokens):
        return [tokens]

    def finish(self, state):
        return self.table[state[0], 0]


def bigram(seed: int = 3) -> Bigram:
    torch.manual_seed(seed)
    return Bigram(torch.randn(VOCAB, VOCAB).log_softmax(dim=-1))


def search_all(search, encoder_out, lens=None):
    """The paths of each utterance, searched in one go."""
    state = search.start(len(encoder_out))
    lens = torch.full((len(encoder_out),), encoder_out.shape[1]) if lens is None else lens
    search.advance(state, encoder_out, lens)
    return search.hypotheses(state)


@torch.no_grad()
def log_probs(model: Transducer, encoder_out, sequences) -> list[float]:
    """Full-sum log-probability of each label sequence, for encoder_out (1, T, D); the loss has tests of its own."""
    tokens = pad_sequence([torch.tensor(labels, dtype=torch.int64) for labels in sequences], batch_first=True)
    predictor_out, _ = model.predictor(model.with_start(tokens), model.predictor.start(len(tokens)))
    logits = model.joiner(encoder_out.expand(len(tokens), -1, -1), predictor_out)
    lens = torch.full((len(tokens),), encoder_out.shape[1])
    target_lens = torch.tensor([len(labels) for labels in sequences])
    topology, factored = model.config.topology, model.config.factored_blank
    return (-transducer_loss(logits, tokens, lens, target_lens, topology, factored, backend="torch")).tolist()


@torch.no_grad()
def internal_lm(model: Transducer, tokens) -> float:
    inputs = torch.tensor([[0, *tokens]])
    predictor_out, _ = model.predictor(inputs, model.predictor.start(1))
    log_probs = model.joiner.internal_lm(model.joiner.project_predictor(predictor_out))[0]
    return sum(log_probs[position, token].item() for position, token in enumerate(tokens))


def enumerated(model, encoder_out, longest, lm, weight, internal_weight):
    """(total, labels, scores) of every label sequence up to a length, best first."""
    rows = []
    lengths = range(longest + 1)
    sequences = [labels for length in lengths for labels in product(range(1, VOCAB), repeat=length)]
    for labels, acoustic in zip(sequences, log_probs(model, encoder_out, sequences), strict=True):
        scores = {
            "acoustic": acoustic,
            "lm": sum(lm.table[a, b].item() for a, b in pairwise([0, *labels, 0])),
            "internal_lm": internal_lm(model, labels),
        }
        total = acoustic + weight * scores["lm"] + internal_weight * scores["internal_lm"]
        rows.append((total, labels, scores))
    return sorted(rows, key=lambda row: -row[0])
