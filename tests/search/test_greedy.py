"""The label-looping greedy search against the plain one, frame by frame."""

import pytest
import torch
from tiny_models import DIM, search_all, tiny_model

from asrkit.search import greedy
from asrkit.search.greedy import GreedySearch


@torch.no_grad()
def frame_by_frame(model, encoder_out, max_symbols):
    """Tokens, frames, confidences and score of encoder_out (T, D), as the topology's definition says."""
    topology, tokens, frames, confidences, score = model.config.topology, [], [], [], 0.0
    out, state = model.predictor(torch.zeros(1, 1, dtype=torch.int64), model.predictor.start(1))
    most = max_symbols if topology == "regular" else 1
    for t, frame in enumerate(model.joiner.project_encoder(encoder_out)):
        for symbol in range(most + 1):
            log_probs = model.joiner.log_probs(frame, model.joiner.project_predictor(out[0, 0]))
            token = 0 if symbol == most else int(log_probs.argmax())
            score += log_probs[token].item()
            if token == 0:
                break
            tokens.append(token)
            frames.append(t)
            confidences.append(log_probs[1:].softmax(dim=0).max().item())
            out, state = model.predictor(torch.tensor([[token]]), state)
            if topology == "modified":
                break
    return tokens, frames, confidences, score


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
@pytest.mark.parametrize("topology", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("chunk", [4, 30])
@pytest.mark.parametrize("block", [1, 64])
def test_labels_frames_and_scores(monkeypatch, kind, topology, chunk, block):
    monkeypatch.setattr(greedy, "BLOCK_ROWS", block)
    monkeypatch.setattr(greedy, "BLOCK_FRAMES", 1)
    model = tiny_model(kind, seed=1, topology=topology)
    model.joiner.output.bias.data[0] += 2.0
    search = GreedySearch(model, max_symbols=2)
    encoder_out, lens = 2 * torch.randn(5, 30, DIM), torch.tensor([30, 0, 7, 29, 12])
    state, left = search.start(5), lens
    for part in encoder_out.split(chunk, dim=1):
        search.advance(state, part, left.clamp(max=chunk))
        left = left - left.clamp(max=chunk)
    emitted = set()
    for (path,), out, length in zip(search.hypotheses(state), encoder_out, lens.tolist(), strict=True):
        tokens, frames, confidences, score = frame_by_frame(model, out[:length], 2)
        assert (path.tokens, path.frames) == (tokens, frames)
        assert path.confidences == pytest.approx(confidences, abs=1e-4)
        assert path.score == path.scores["acoustic"] == pytest.approx(score, abs=1e-4)
        emitted.update(tokens)
    assert len(emitted) > 1
    (paths, *_) = zip(*search_all(search, encoder_out, lens), strict=True)
    assert [path.tokens for path in paths] == [path.tokens for (path,) in search.hypotheses(state)]
