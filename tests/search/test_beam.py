"""Beam search against exhaustive enumeration on tiny models, and its invariances."""

import math

import pytest
import torch
from tiny_models import DIM, VOCAB, bigram, enumerated, log_probs, search_all, tiny_model

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


@pytest.mark.parametrize("options", [{}, {"kind": "stateless", "factored_blank": True}], ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("utterances", "beam"), [(1, 2), (1, 4), (3, 8), (0, 4)])
def test_blocks_of_frames_are_one_frame_after_the_other(monkeypatch, options, fused, utterances, beam):
    """Each utterance by itself through blocks of frames, some frames left out, as all together through each frame."""
    model = tiny_model(seed=utterances, topology="modified", **options)
    search = BeamSearch(model, beam, [(bigram(), 0.5)] if fused else [], 0.2 if fused else 0.0, max_drop=5.0)
    encoder_out, lens = torch.randn(utterances, 40, DIM), torch.tensor([40, 13, 0])[:utterances]
    numbers = torch.arange(40).expand(utterances, -1) * 2
    results = []
    for method in ("_in_blocks", "_frame_by_frame"):
        other = getattr(BeamSearch, method)
        monkeypatch.setattr(BeamSearch, "_frame_by_frame" if method == "_in_blocks" else "_in_blocks", other)
        state = search.start(utterances)
        search.advance(state, encoder_out, lens, numbers)
        results.append((search.hypotheses(state), search.last_labels(state), state.frames.tolist()))
        monkeypatch.undo()
    (ours, *rest), (theirs, *other_rest) = results
    assert rest == other_rest
    for paths, other_paths in zip(ours, theirs, strict=True):
        assert [(p.tokens, p.frames) for p in paths] == [(p.tokens, p.frames) for p in other_paths]
        for path, other in zip(paths, other_paths, strict=True):
            assert path.confidences == pytest.approx(other.confidences, abs=1e-5)
            assert path.score == pytest.approx(other.score, abs=1e-4)
            assert path.scores == pytest.approx(other.scores, abs=1e-4)


@torch.no_grad()
def merged_late(model, encoder_out, beam: int) -> dict[tuple[int, ...], float]:
    """The hypotheses of the search of icefall and sherpa-onnx and their scores: the best first, then equal ones."""
    hyps = {(): 0.0}
    for frame in model.joiner.project_encoder(encoder_out[0]):
        candidates = []
        for labels, score in hyps.items():
            inputs = torch.tensor([[0, *labels]])
            predictor_out, _ = model.predictor(inputs, model.predictor.start(1))
            log_probs = model.joiner.log_probs(frame, model.joiner.project_predictor(predictor_out[0, -1]))
            extended = [labels, *((*labels, label) for label in range(1, VOCAB))]
            candidates += [(score + step, new) for step, new in zip(log_probs.tolist(), extended, strict=True)]
        hyps = {}
        for score, labels in sorted(candidates, reverse=True)[:beam]:
            hyps[labels] = math.log(math.exp(score) + math.exp(hyps[labels])) if labels in hyps else score
    return hyps


def test_merging_late_is_the_rule_of_sherpa_onnx():
    others = 0
    for seed in range(10):
        model, encoder_out = tiny_model("stateless", seed, topology="modified"), torch.randn(1, 12, DIM)
        late, early = (
            {tuple(path.tokens): path.score for path in search_all(search, encoder_out)[0]}
            for search in (BeamSearch(model, 3, max_drop=torch.inf, merge_late=late) for late in (True, False))
        )
        assert late == pytest.approx(merged_late(model, encoder_out, 3), abs=1e-4)
        others += late != pytest.approx(early, abs=1e-4)
    assert others > 0


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
