"""Neural language models: step by step as at once, whatever the padding; tests/cli/test_lm.py trains them."""

import pytest
import torch

from asrkit.data.sentences import SentenceBatch
from asrkit.lm.neural import BOUNDARY, LmConfig, NeuralLm, NeuralScorer
from asrkit.lm.perplexity import sentence_log_probs

SENTENCES = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [2, 7, 1], [], [8]]


@pytest.fixture(params=["lstm", "transformer"])
def model(request) -> NeuralLm:
    torch.manual_seed(0)
    return NeuralLm(LmConfig(request.param, dim=16, layers=3, heads=2, context=4, vocab_size=11)).eval()


def batch_of(sentences: list[list[int]], length: int) -> SentenceBatch:
    padded = torch.tensor([sentence + [0] * (length - len(sentence)) for sentence in sentences])
    return SentenceBatch(padded, torch.tensor([len(s) for s in sentences]), range(len(sentences)), 1.0)


def test_step_by_step_is_the_loss(model):
    """Also beyond the window of the transformer, whose layers together see farther than one of them."""
    losses = [-model(batch_of([sentence], 12))["loss"].item() for sentence in SENTENCES]
    found = sentence_log_probs(NeuralScorer(model), SENTENCES)
    assert found.tolist() == pytest.approx(losses, rel=1e-5)


def test_padding_and_batch_change_nothing(model):
    at_once = model(batch_of(SENTENCES, 16))
    assert at_once["weight"] == sum(len(sentence) + 1 for sentence in SENTENCES)
    losses = sum(model(batch_of([sentence], len(sentence)))["loss"] for sentence in SENTENCES if sentence)
    losses += model(batch_of([[]], 1))["loss"]
    assert at_once["loss"].item() == pytest.approx(losses.item(), rel=1e-5)


def test_scores_are_a_distribution_and_states_can_be_reordered(model):
    scorer = NeuralScorer(model)
    with torch.inference_mode():
        state = scorer.start(3)
        for tokens in ([1, 2, 3], [4, 4, 5]):
            state = scorer.advance(state, torch.tensor(tokens))
        scores = scorer.score(state)
        assert torch.allclose(scores.exp().sum(dim=1), torch.ones(3))
        assert torch.equal(scorer.finish(state), scores[:, BOUNDARY])
        order = torch.tensor([1, 2, 0, 0])
        assert torch.allclose(scorer.score([s[order] for s in state]), scores[order])
        assert [s.shape[1:] for s in state] == [s.shape[1:] for s in scorer.start(1)]


def test_window_of_the_transformer():
    """One layer with a window of 3 tokens: what is 3 tokens away has no influence, what is 2 away has."""
    torch.manual_seed(0)
    model = NeuralLm(LmConfig("transformer", dim=8, layers=1, heads=2, context=3, vocab_size=11)).eval()
    tokens = torch.tensor([[1, 2, 3, 4], [5, 2, 3, 4], [1, 5, 3, 4]])
    out, _ = model.hidden(tokens, model.body.start(3))
    assert torch.allclose(out[0, 3], out[1, 3], atol=1e-6) and not torch.allclose(out[0, 3], out[2, 3], atol=1e-3)


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"kind": "transformer", "dim": 10}, {"context": 0}])
def test_a_wrong_size_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        LmConfig(**wrong)
