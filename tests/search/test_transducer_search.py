"""Searches against exhaustive enumeration on tiny models, and their invariances."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from asrkit.models.transducer import Transducer, TransducerConfig
from asrkit.nn.decoders import PredictorConfig
from asrkit.nn.encoders import EncoderConfig
from asrkit.search.transducer import BeamSearch, GreedySearch

VOCAB = 4


def tiny_model(kind: str = "lstm", seed: int = 0) -> Transducer:
    torch.manual_seed(seed)
    config = TransducerConfig(
        encoder=EncoderConfig(dim=8, layers=1, heads=2, feedforward_dim=8),
        predictor=PredictorConfig(kind=kind, dim=8),
        joiner_dim=8,
        vocab_size=VOCAB,
    )
    model = Transducer(config).eval()
    model.joiner.output.weight.data *= 4  # away from uniform, so that rankings are clear
    return model


@dataclass(frozen=True)
class Bigram:
    """log P(next | last) from a table; the state is the last label."""

    table: torch.Tensor  # (V, V)
    name: str = "lm"

    def start(self, n):
        return [torch.zeros(n, dtype=torch.int64)]

    def score(self, state):
        return self.table[state[0]]

    def advance(self, state, tokens):
        return [tokens]


def bigram(seed: int = 3) -> Bigram:
    torch.manual_seed(seed)
    return Bigram(torch.randn(VOCAB, VOCAB).log_softmax(dim=-1))


@torch.no_grad()
def enumerated(model, encoder_out, lm=None, weight=0.0):
    """Total of every label sequence, by walking all frame-wise symbol strings; encoder_out (T, D)."""
    totals: dict[tuple, list] = {}
    for symbols in itertools.product(range(VOCAB), repeat=len(encoder_out)):
        labels, score, fused = [], 0.0, 0.0
        for t, symbol in enumerate(symbols):
            history = torch.tensor([[0, *labels]])
            out, _ = model.predictor(history, model.predictor.start(1))
            log_probs = model.joiner(encoder_out[None, t : t + 1], out[:, -1:])[0, 0, 0].log_softmax(dim=-1)
            score += log_probs[symbol].item()
            if symbol:
                if lm:
                    fused += lm.table[labels[-1] if labels else 0, symbol].item()
                labels.append(symbol)
        totals.setdefault(tuple(labels), [[], fused])[0].append(score)
    sums = {k: (torch.tensor(v).logsumexp(dim=0).item(), fused) for k, (v, fused) in totals.items()}
    return sorted(((a + weight * f, k, a, f) for k, (a, f) in sums.items()), reverse=True)


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_wide_beam_is_exhaustive(kind, weight):
    """With room for every label sequence, the search gives all of them, with exact scores, in the right order."""
    model, lm = tiny_model(kind), bigram()
    encoder_out = torch.randn(1, 4, 8)
    expected = enumerated(model, encoder_out[0], lm, weight)
    search = BeamSearch(model, beam=len(expected), scorers=[(lm, weight)])
    state = search.start(1)
    search.advance(state, encoder_out, torch.tensor([4]))
    paths = search.hypotheses(state)[0]
    assert [tuple(p.tokens) for p in paths] == [k for _, k, _, _ in expected]
    for path, (total, _, acoustic, fused) in zip(paths, expected, strict=True):
        assert path.score == pytest.approx(total, abs=1e-4)
        assert path.scores["acoustic"] == pytest.approx(acoustic, abs=1e-4)
        assert path.scores["lm"] == pytest.approx(fused, abs=1e-4)


@pytest.mark.parametrize("search_class", [GreedySearch, BeamSearch])
def test_batch_and_chunks_change_nothing(search_class):
    model = tiny_model()
    search = search_class(model)
    encoder_out, lens = torch.randn(3, 12, 8), torch.tensor([12, 5, 9])
    state = search.start(3)
    search.advance(state, encoder_out, lens)
    together = search.hypotheses(state)
    for i, length in enumerate(lens.tolist()):
        state = search.start(1)
        for first in range(0, length, 4):
            chunk = encoder_out[i : i + 1, first : min(first + 4, length)]
            search.advance(state, chunk, torch.tensor([chunk.shape[1]]))
        alone = search.hypotheses(state)[0]
        assert [(p.tokens, p.frames) for p in alone] == [(p.tokens, p.frames) for p in together[i]]
        assert [p.score for p in alone] == pytest.approx([p.score for p in together[i]], abs=1e-4)


def test_hypotheses_differ_and_frames_are_in_order():
    search = BeamSearch(tiny_model(seed=5), beam=8)
    state = search.start(1)
    search.advance(state, torch.randn(1, 20, 8), torch.tensor([20]))
    paths = search.hypotheses(state)[0]
    assert len({tuple(p.tokens) for p in paths}) == len(paths) == 8
    for path in paths:
        assert len(path.tokens) == len(path.frames)
        assert path.frames == sorted(set(path.frames)) and path.frames[-1] < 20


def test_beam_is_at_least_as_good_as_greedy_with_one_label_a_frame():
    for seed in range(5):
        model = tiny_model(seed=seed)
        encoder_out, lens = torch.randn(1, 15, 8), torch.tensor([15])
        scores = []
        for search in (GreedySearch(model, max_symbols=1), BeamSearch(model, beam=8)):
            state = search.start(1)
            search.advance(state, encoder_out, lens)
            scores.append(search.hypotheses(state)[0][0].score)
        # Greedy with one label a frame still pays for the blank after each label.
        assert scores[1] >= scores[0] - 1e-4
