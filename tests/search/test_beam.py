"""Beam search against exhaustive enumeration on tiny models, and its invariances."""

import pytest
import torch
from tiny_models import DIM, bigram, enumerated, log_probs, search_all, tiny_model

from asrkit.search.beam import BeamSearch
from asrkit.search.greedy import GreedySearch

TOPOLOGIES = ["regular", "modified", "constrained"]


@pytest.mark.parametrize("options", [{}, {"kind": "stateless"}, {"factored_blank": True}], ids=str)
@pytest.mark.parametrize(
    ("topology", "frames", "longest"), [("regular", 2, 2), ("modified", 4, 4), ("constrained", 3, 3)]
)
@pytest.mark.parametrize(("weight", "internal_weight"), [(0.0, 0.0), (0.7, -0.4)])
def test_wide_beam_is_exhaustive(options, topology, frames, longest, weight, internal_weight):
    """With room for every label sequence, each has its full-sum score, and the ranking is that of all of them.

    In the regular case the search has at most two labels a frame, so sequences of two have all their alignments.
    """
    model, lm = tiny_model(topology=topology, **options), bigram()
    encoder_out = torch.randn(1, frames, DIM)
    search = BeamSearch(model, 200, [(lm, weight)], internal_weight, max_symbols=2, max_drop=torch.inf)
    paths = [path for path in search_all(search, encoder_out)[0] if len(path.tokens) <= longest]
    expected = enumerated(model, encoder_out, longest, lm, weight, internal_weight)
    assert [tuple(path.tokens) for path in paths] == [labels for _, labels, _ in expected]
    for path, (total, _, scores) in zip(paths, expected, strict=True):
        assert path.score == pytest.approx(total, abs=1e-4)
        if not internal_weight:
            del scores["internal_lm"]
        assert path.scores == pytest.approx(scores, abs=1e-4)


def test_the_end_counts_only_when_it_has_come():
    search = BeamSearch(tiny_model(), scorers=[(lm := bigram(), 0.5)])
    state = search.start(1)
    search.advance(state, torch.randn(1, 6, DIM), torch.tensor([6]))
    partial, final = ({tuple(p.tokens): p for p in search.hypotheses(state, end)[0]} for end in (False, True))
    for labels, path in partial.items():
        end = lm.table[labels[-1] if labels else 0, 0].item()
        assert final[labels].scores["lm"] - path.scores["lm"] == pytest.approx(end, abs=1e-5)
        assert final[labels].score - path.score == pytest.approx(0.5 * end, abs=1e-5)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("fused", [False, True])
def test_batch_and_chunks_change_nothing(topology, fused):
    search = BeamSearch(tiny_model(topology=topology), scorers=[(bigram(), 0.5)] if fused else [])
    encoder_out, lens = torch.randn(4, 12, DIM), torch.tensor([5, 12, 0, 9])
    together = search_all(search, encoder_out, lens)
    state = search.start(4)
    for chunk in encoder_out.split(4, dim=1):  # the utterances end one after another
        search.advance(state, chunk, lens.clamp(max=4))
        lens = lens - lens.clamp(max=4)
    in_chunks = search.hypotheses(state)
    alone = [search_all(search, encoder_out[i : i + 1, :n])[0] for i, n in enumerate([5, 12, 0, 9])]
    for expected, *others in zip(together, in_chunks, alone, strict=True):
        for paths in others:
            assert [(p.tokens, p.frames) for p in paths] == [(p.tokens, p.frames) for p in expected]
            assert [p.score for p in paths] == pytest.approx([p.score for p in expected], abs=1e-4)


@pytest.mark.parametrize(("topology", "most"), [("regular", 3), ("modified", 1), ("constrained", 1)])
def test_hypotheses_differ_and_frames_are_in_order(topology, most):
    paths = search_all(BeamSearch(tiny_model(seed=5, topology=topology), beam=8), torch.randn(1, 20, DIM))[0]
    assert len({tuple(p.tokens) for p in paths}) == len(paths) == 8
    assert [p.score for p in paths] == sorted((p.score for p in paths), reverse=True)
    for path in paths:
        assert len(path.tokens) == len(path.frames)
        assert path.frames == sorted(path.frames) and path.frames[-1] < 20
        assert max(path.frames.count(frame) for frame in path.frames) <= most


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_narrow_beam_never_exceeds_the_full_sum_and_beats_greedy(topology):
    for seed in range(5):
        model, encoder_out = tiny_model(seed=seed, topology=topology), torch.randn(1, 15, DIM)
        best = [search_all(search, encoder_out)[0][0] for search in (GreedySearch(model), BeamSearch(model, beam=8))]
        for path, most in zip(best, log_probs(model, encoder_out, [p.tokens for p in best]), strict=True):
            assert path.score <= most + 1e-4
        assert best[1].score >= best[0].score - 1e-4


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("search_class", [BeamSearch, GreedySearch])
def test_no_utterances_and_no_frames(search_class, topology):
    search = search_class(tiny_model(topology=topology))
    assert search_all(search, torch.zeros(0, 5, DIM)) == []
    for encoder_out, lens in ((torch.randn(2, 0, DIM), None), (torch.randn(2, 3, DIM), torch.tensor([0, 0]))):
        for (path,) in search_all(search, encoder_out, lens):
            assert (path.tokens, path.frames, path.score) == ([], [], 0.0)


def test_a_beam_of_one():
    (path,) = search_all(BeamSearch(tiny_model(), beam=1), torch.randn(1, 10, DIM))[0]
    assert path.tokens and path.score == path.scores["acoustic"] < 0
