"""The full-sum loss against enumeration, its gradient against autograd and finite differences."""

import itertools

import pytest
import torch

from asrkit.losses.transducer import transducer_loss


def enumerated_loss(logits: torch.Tensor, labels: list[int], modified: bool) -> torch.Tensor:
    """-log of the sum over every path, one by one; logits (T, U + 1, V)."""
    log_probs = logits.double().log_softmax(dim=-1)
    if modified:
        paths = []
        for label_frames in itertools.combinations(range(len(logits)), len(labels)):
            u, score = 0, logits.new_zeros((), dtype=torch.float64)
            for t in range(len(logits)):
                symbol = labels[u] if t in label_frames else 0
                score, u = score + log_probs[t, u, symbol], u + (t in label_frames)
            paths.append(score)
        return -torch.stack(paths).logsumexp(dim=0)
    steps = logits.shape[0] - 1 + len(labels)
    paths = []
    for label_steps in itertools.combinations(range(steps), len(labels)):
        t = u = 0
        score = logits.new_zeros((), dtype=torch.float64)
        for step in range(steps):
            if step in label_steps:
                score, u = score + log_probs[t, u, labels[u]], u + 1
            else:
                score, t = score + log_probs[t, u, 0], t + 1
        paths.append(score + log_probs[t, u, 0])
    return -torch.stack(paths).logsumexp(dim=0)


def random_case(seed: int):
    torch.manual_seed(seed)
    logits = (3 * torch.randn(4, 5, 4, 6)).requires_grad_()
    return logits, torch.randint(1, 6, (4, 3)), torch.tensor([5, 3, 1, 4]), torch.tensor([3, 0, 2, 1])


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_enumeration(seed, modified):
    logits, targets, frames, labels = random_case(seed)
    if modified:
        labels = torch.minimum(labels, frames)
    loss = transducer_loss(logits, targets, frames, labels, modified)
    expected = torch.stack(
        [
            enumerated_loss(x[:t, : u + 1], y[:u].tolist(), modified)
            for x, y, t, u in zip(logits, targets, frames, labels, strict=True)
        ]
    )
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    (grad,) = torch.autograd.grad(loss @ weights, logits)
    (expected_grad,) = torch.autograd.grad(expected @ weights.double(), logits)
    torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-4)


def test_gradient_equals_finite_differences():
    logits, targets, frames, labels = random_case(7)
    (grad,) = torch.autograd.grad(transducer_loss(logits, targets, frames, labels).sum(), logits)
    for index in [(0, 0, 0, 0), (0, 2, 1, 3), (3, 1, 1, 0), (2, 0, 1, 5)]:
        shift = torch.zeros_like(logits)
        shift[index] = 0.01
        up, down = (transducer_loss(logits + s, targets, frames, labels).double().sum() for s in (shift, -shift))
        assert grad[index].item() == pytest.approx((up - down).item() / 0.02, abs=2e-3)


def test_more_labels_than_frames_have_no_modified_path():
    logits, targets, frames, labels = random_case(0)
    loss = transducer_loss(logits, targets, frames, labels, modified=True)  # the third: 1 frame, 2 labels
    assert loss.isinf().tolist() == [False, False, True, False]
    (grad,) = torch.autograd.grad(loss[loss.isfinite()].sum() + 0 * loss[2], logits)
    assert grad[[0, 1, 3]].isfinite().all()
    (grad,) = torch.autograd.grad(transducer_loss(logits, targets, frames, labels, modified=True)[2], logits)
    assert grad.abs().max() == 0


@pytest.mark.parametrize("modified", [False, True])
def test_padding_changes_nothing(modified):
    logits, targets, frames, labels = random_case(1)
    labels = torch.minimum(labels, frames)
    loss = transducer_loss(logits, targets, frames, labels, modified)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    for i in range(len(logits)):
        t, u = int(frames[i]), int(labels[i])
        alone = logits[i : i + 1, :t, : u + 1].detach().requires_grad_()
        single = transducer_loss(alone, targets[i : i + 1, :u], frames[i : i + 1], labels[i : i + 1], modified)
        torch.testing.assert_close(single[0], loss[i])
        torch.testing.assert_close(torch.autograd.grad(single, alone)[0][0], grad[i, :t, : u + 1])
        assert grad[i, t:].abs().max() == 0 if t < 5 else True
        assert grad[i, :, u + 1 :].abs().max() == 0 if u < 3 else True


def test_extreme_logits_stay_finite():
    logits, targets, frames, labels = random_case(2)
    big = (300 * logits.detach()).requires_grad_()
    loss = transducer_loss(big, targets, frames, labels)
    (grad,) = torch.autograd.grad(loss.sum(), big)
    assert loss.isfinite().all() and grad.isfinite().all()


def test_bfloat16_logits_keep_their_type_in_the_gradient():
    logits, targets, frames, labels = random_case(3)
    half = logits.detach().bfloat16().requires_grad_()
    loss = transducer_loss(half, targets, frames, labels)
    (grad,) = torch.autograd.grad(loss.sum(), half)
    assert loss.dtype == torch.float32 and grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, transducer_loss(half.detach().float(), targets, frames, labels))


@pytest.mark.parametrize(
    ("frames", "labels"), [([6, 3, 1, 4], [3, 0, 2, 1]), ([5, 3, 1, 4], [4, 0, 2, 1]), ([5, 3, 0, 4], [3, 0, 2, 1])]
)
def test_lengths_beyond_the_tensor_are_refused(frames, labels):
    logits, targets, _, _ = random_case(0)
    with pytest.raises(ValueError, match="lengths outside"):
        transducer_loss(logits, targets, torch.tensor(frames), torch.tensor(labels))
