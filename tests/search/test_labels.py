"""The best next labels, by both engines, against a plain softmax."""

import pytest
import torch

from asrkit.search import labels, labels_numba


@pytest.mark.parametrize("engine", [labels, labels_numba], ids=lambda module: module.__name__.rpartition("_")[2])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("scale", [1, 200])
def test_the_best_labels_of_a_softmax(engine, factored, adds, scale):
    torch.manual_seed(0)
    logits = scale * torch.randn(20, 37)
    added = scale * torch.randn(20, 37) if adds else None
    blank, tokens, acoustic, fused, all_fused = engine.best_labels(logits, added, factored, 5)

    wide = logits.double()
    if factored:
        expected_blank, log_probs = wide[:, 0].sigmoid().log(), wide[:, 1:].log_softmax(dim=1)
        log_probs = log_probs - torch.nn.functional.softplus(wide[:, :1])
    else:
        expected_blank, log_probs = wide.log_softmax(dim=1).tensor_split([1], dim=1)
        expected_blank = expected_blank[:, 0]
    ranked = log_probs + (added[:, 1:] if adds else 0.0)
    best, index = ranked.topk(5, dim=1)
    assert tokens.tolist() == (index + 1).tolist()
    close = {"rtol": 1e-5, "atol": 5e-6 * scale, "check_dtype": False}
    if scale == 1:  # otherwise some are -inf in float64
        torch.testing.assert_close(blank, expected_blank, **close)
    torch.testing.assert_close(acoustic, log_probs.gather(1, index), **close)
    torch.testing.assert_close(fused, best, **close)
    torch.testing.assert_close(all_fused, ranked.logsumexp(dim=1), **close)


def test_no_more_labels_than_there_are():
    best = labels.Labels.best(torch.randn(3, 4), None, False, 10)
    assert sorted(best.tokens[0].tolist()) == [1, 2, 3]


def test_no_hypotheses():
    assert labels.Labels.best(torch.empty(0, 4), torch.empty(0, 4), True, 2).tokens.shape == (0, 2)
