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


def tiny_model(kind: str = "lstm", seed: int = 0, topology: str = "regular") -> Transducer:
    torch.manual_seed(seed)
    config = TransducerConfig(
        encoder=EncoderConfig(dim=8, layers=1, heads=2, feedforward_dim=8),
        predictor=PredictorConfig(kind=kind, dim=8),
        joiner_dim=8,
        vocab_size=VOCAB,
        topology=topology,
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
def enumerated(model, encoder_out, longest, lm=None, weight=0.0):
    """(total, labels, acoustic, LM) of every label sequence up to a length, best first; encoder_out (1, T, D).

    The acoustic score is the full-sum loss, which is tested against enumeration of all paths itself.
    """
    rows = []
    lens = torch.tensor([encoder_out.shape[1]])
    for length in range(longest + 1):
        for labels in itertools.product(range(1, VOCAB), repeat=length):
            targets = torch.tensor([labels], dtype=torch.int64).view(1, length)
            acoustic = -model.transducer_loss(encoder_out, lens, targets, torch.tensor([length])).item()
            fused = sum(lm.table[a, b].item() for a, b in itertools.pairwise([0, *labels])) if lm else 0.0
            rows.append((acoustic + weight * fused, labels, acoustic, fused))
    return sorted(rows, reverse=True)


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize(("topology", "frames", "longest"), [("regular", 2, 2), ("modified", 4, 4)])
def test_wide_beam_is_exhaustive(kind, weight, topology, frames, longest):
    """With room for every label sequence, each has its full-sum score, and the ranking is that of all of them.

    In the regular case the search has at most two labels a frame, so sequences of two have all their alignments.
    """
    model, lm = tiny_model(kind, topology=topology), bigram()
    encoder_out = torch.randn(1, frames, 8)
    search = BeamSearch(model, beam=200, scorers=[(lm, weight)], max_symbols=2, max_drop=torch.inf)
    state = search.start(1)
    search.advance(state, encoder_out, torch.tensor([frames]))
    paths = [path for path in search.hypotheses(state)[0] if len(path.tokens) <= longest]
    expected = enumerated(model, encoder_out, longest, lm, weight)
    assert [tuple(path.tokens) for path in paths] == [labels for _, labels, _, _ in expected]
    for path, (total, _, acoustic, fused) in zip(paths, expected, strict=True):
        assert path.score == pytest.approx(total, abs=1e-4)
        assert path.scores["acoustic"] == pytest.approx(acoustic, abs=1e-4)
        assert path.scores["lm"] == pytest.approx(fused, abs=1e-4)


@pytest.mark.parametrize("topology", ["regular", "modified"])
@pytest.mark.parametrize("search_class", [GreedySearch, BeamSearch])
def test_batch_and_chunks_change_nothing(search_class, topology):
    model = tiny_model(topology=topology)
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


@pytest.mark.parametrize(("topology", "most"), [("regular", 3), ("modified", 1)])
def test_hypotheses_differ_and_frames_are_in_order(topology, most):
    search = BeamSearch(tiny_model(seed=5, topology=topology), beam=8)
    state = search.start(1)
    search.advance(state, torch.randn(1, 20, 8), torch.tensor([20]))
    paths = search.hypotheses(state)[0]
    assert len({tuple(p.tokens) for p in paths}) == len(paths) == 8
    for path in paths:
        assert len(path.tokens) == len(path.frames)
        assert path.frames == sorted(path.frames) and path.frames[-1] < 20
        assert max(path.frames.count(frame) for frame in path.frames) <= most


@pytest.mark.parametrize("topology", ["regular", "modified"])
def test_narrow_beam_never_exceeds_the_full_sum_and_beats_greedy(topology):
    for seed in range(5):
        model = tiny_model(seed=seed, topology=topology)
        encoder_out, lens = torch.randn(1, 15, 8), torch.tensor([15])
        best = []
        for search in (GreedySearch(model), BeamSearch(model, beam=8)):
            state = search.start(1)
            search.advance(state, encoder_out, lens)
            path = search.hypotheses(state)[0][0]
            best.append(path.score)
            tokens = torch.tensor([path.tokens])
            loss = model.transducer_loss(encoder_out, lens, tokens, torch.tensor([len(path.tokens)]))
            assert path.score <= -loss.item() + 1e-4
        assert best[1] >= best[0] - 1e-4
