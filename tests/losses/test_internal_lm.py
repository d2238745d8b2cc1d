"""The internal language model: its probabilities, and the loss that trains it."""

import pytest
import torch

from asrkit.losses.internal_lm import internal_lm_loss
from asrkit.nn.decoders import Joiner


def make_joiner(factored_blank: bool = False) -> Joiner:
    torch.manual_seed(0)
    return Joiner(encoder_dim=3, predictor_dim=4, joiner_dim=5, vocab_size=6, factored_blank=factored_blank)


@pytest.mark.parametrize("factored_blank", [False, True])
def test_log_probs_are_normalised_and_the_factored_blank_is_a_sigmoid(factored_blank):
    joiner = make_joiner(factored_blank)
    encoder, predictor = torch.randn(2, 7, 1, 5), torch.randn(2, 1, 4, 5)
    log_probs = joiner.log_probs(encoder, predictor)
    assert log_probs.shape == (2, 7, 4, 6)
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(2, 7, 4))
    if factored_blank:
        blank = joiner.combine(encoder, predictor)[..., 0].sigmoid()
        torch.testing.assert_close(log_probs[..., 0].exp(), blank)


def test_internal_lm_is_the_factored_joiner_without_encoder_given_that_a_label_comes():
    joiner, predictor = make_joiner(factored_blank=True), torch.randn(3, 5)
    log_probs = joiner.log_probs(torch.zeros(3, 5), predictor)
    expected = log_probs[:, 1:] - torch.log1p(-log_probs[:, :1].exp())
    internal = joiner.internal_lm(predictor)
    torch.testing.assert_close(internal[:, 1:], expected)
    assert (internal[:, 0] == -torch.inf).all()


def test_loss_is_that_of_each_sentence_and_ignores_padding():
    log_probs = torch.randn(3, 5, 6).log_softmax(dim=-1)
    targets = torch.tensor([[1, 2, 3, 4], [5, 0, 0, 0], [0, 0, 0, 0]])
    loss = internal_lm_loss(log_probs, targets, torch.tensor([4, 1, 0]))
    expected = [-sum(log_probs[0, u, u + 1] for u in range(4)), -log_probs[1, 0, 5], 0.0]
    torch.testing.assert_close(loss, torch.tensor([float(value) for value in expected]))


def test_gradient_reaches_predictor_and_labels_but_not_the_blank():
    joiner = make_joiner()
    predictor_out = torch.randn(2, 4, 4, requires_grad=True)
    log_probs = joiner.internal_lm(joiner.project_predictor(predictor_out))
    internal_lm_loss(log_probs, torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])).sum().backward()
    assert predictor_out.grad.isfinite().all() and predictor_out.grad[0].abs().sum() > 0
    assert joiner.output.weight.grad[0].abs().sum() == 0 and joiner.output.bias.grad[0] == 0
    assert joiner.output.weight.grad[1:].abs().sum() > 0
    assert joiner.project_encoder.weight.grad is None
    assert (predictor_out.grad[:, 3] == 0).all()  # after the last label nothing is asked


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="do not fit"):
        internal_lm_loss(torch.zeros(2, 5, 3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="outside 0 … 2"):
        internal_lm_loss(torch.zeros(2, 3, 3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor([1, 3]))
