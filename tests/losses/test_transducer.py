"""The full-sum loss in both forms against enumeration of every path, by backend, topology and output."""

import itertools

import pytest
import torch

from asrkit.errors import InputError
from asrkit.losses.transducer import emission_posteriors, joint_transducer_loss, sequence_log_probs, transducer_loss

TOPOLOGIES = ["regular", "modified", "constrained"]


def paths_of(frames: int, labels: int, topology: str):
    """Every path, as its arcs (t, u, whether it is a label)."""
    if topology == "regular":
        steps = frames - 1 + labels
        for label_steps in itertools.combinations(range(steps), labels):
            arcs, t, u = [], 0, 0
            for step in range(steps):
                arcs.append((t, u, step in label_steps))
                t, u = (t, u + 1) if step in label_steps else (t + 1, u)
            yield [*arcs, (t, u, False)]
        return
    for label_frames in itertools.combinations(range(frames), labels):
        arcs, u = [], 0
        for t in range(frames):
            arcs.append((t, u, t in label_frames))
            u += t in label_frames
            if topology == "constrained" and t in label_frames:
                arcs.append((t, u, False))
        yield arcs


def enumerated_loss(logits, labels, topology="regular", factored=False, delay_penalty=0.0) -> torch.Tensor:
    """-log of the sum over every path, one by one; logits (T, U + 1, V)."""
    frames = len(logits)
    log_probs = logits.double().log_softmax(dim=-1)
    if factored:
        blank = logits[..., :1].double()
        rest = logits[..., 1:].double().log_softmax(dim=-1) - torch.nn.functional.softplus(blank)
        log_probs = torch.cat([-torch.nn.functional.softplus(-blank), rest], dim=-1)
    scores = [
        sum(
            log_probs[t, u, labels[u]] + delay_penalty * ((frames - 1) / 2 - t) if is_label else log_probs[t, u, 0]
            for t, u, is_label in path
        )
        for path in paths_of(frames, len(labels), topology)
    ]
    return -torch.stack(scores).logsumexp(dim=0)


def random_case(seed: int, dtype: torch.dtype = torch.float32):
    torch.manual_seed(seed)
    logits = (3 * torch.randn(4, 5, 4, 6)).to(dtype).requires_grad_()
    return logits, torch.randint(1, 6, (4, 3)), torch.tensor([5, 3, 1, 4]), torch.tensor([3, 0, 1, 2])


def enumerated(logits, targets, frames, labels, *options) -> torch.Tensor:
    cases = zip(logits, targets, frames, labels, strict=True)
    return torch.stack([enumerated_loss(x[:t, : u + 1], y[:u].tolist(), *options) for x, y, t, u in cases])


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_value_and_gradient_equal_enumeration(topology, factored, delay_penalty, backend):
    options = topology, factored, delay_penalty
    logits, *case = random_case(0)
    loss = transducer_loss(logits, *case, *options, backend)
    expected = enumerated(logits, *case, *options)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    (grad,) = torch.autograd.grad(loss @ weights, logits)
    (expected_grad,) = torch.autograd.grad(expected @ weights.double(), logits)
    torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gradient_equals_finite_differences(topology, factored):
    logits, *case = random_case(7, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: transducer_loss(x, *case, topology, factored, 0.1), logits, fast_mode=True
    )


def joiner(seed: int, dtype: torch.dtype = torch.float32, size: int = 8):
    """encoder (3, 6, J), predictor (3, 4, J), weight (5, J), bias (5,)."""
    torch.manual_seed(seed)
    shapes = [(3, 6, size), (3, 4, size), (5, size), (5,)]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def joint_case():
    torch.manual_seed(1)
    return torch.randint(1, 5, (3, 3)), torch.tensor([6, 4, 3]), torch.tensor([3, 0, 2])


def joint_logits(encoder, predictor, weight, bias):
    return torch.tanh(encoder[:, :, None] + predictor[:, None]) @ weight.T + bias


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_joint_form_equals_that_on_logits(topology, factored, backend, monkeypatch):
    monkeypatch.setattr("asrkit.losses.joint.CPU_CHUNK", 7 * 13)  # chunks of seven nodes, across sequences
    options = topology, factored, 0.2
    parts, case, weights = joiner(0), joint_case(), torch.tensor([1.0, -2.0, 0.5])
    loss = joint_transducer_loss(*parts, *case, *options, backend)
    expected = transducer_loss(joint_logits(*parts), *case, *options, "torch")
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    grads, expected = (torch.autograd.grad(x @ weights, parts) for x in (loss, expected))
    for grad, by_logits in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, by_logits, atol=1e-5, rtol=1e-4)


def test_joint_gradient_equals_finite_differences():
    parts, case = joiner(3, torch.float64, size=3), joint_case()
    assert torch.autograd.gradcheck(lambda *x: joint_transducer_loss(*x, *case, "modified", True, 0.1), parts)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_emission_posteriors_are_the_derivatives_of_the_scores(topology):
    parts, (targets, frames, labels) = joiner(2), joint_case()
    blank, label = emission_posteriors(*parts, targets, frames, labels, topology)
    log_probs = joint_logits(*parts).double().log_softmax(dim=-1).detach().requires_grad_()
    for n, (x, y, t, u) in enumerate(zip(log_probs, targets, frames, labels, strict=True)):
        paths = paths_of(int(t), int(u), topology)
        scores = [sum(x[i, j, y[j] if is_label else 0] for i, j, is_label in path) for path in paths]
        (grad,) = torch.autograd.grad(torch.stack(scores).logsumexp(dim=0), log_probs)
        torch.testing.assert_close(blank[n].double(), grad[n, ..., 0], atol=1e-5, rtol=1e-4)
        expected = grad[n, :, :-1].gather(-1, y[None, :, None].expand(len(grad[n]), -1, 1)).squeeze(-1)
        torch.testing.assert_close(label[n].double(), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(label[n].sum(dim=0), (torch.arange(3) < u).float())


def test_hypotheses_share_the_encoder():
    encoder, predictor, weight, bias = joiner(4)
    hyps, frames, _ = joint_case()
    utterance, lens = torch.tensor([2, 0, 2]), torch.tensor([1, 3, 0])
    parts = encoder, predictor, weight, bias
    log_probs = sequence_log_probs(*parts, hyps, frames, lens, utterance, "modified")
    copied = encoder[utterance], predictor, weight, bias
    expected = -joint_transducer_loss(*copied, hyps, frames[utterance], lens, "modified")
    torch.testing.assert_close(log_probs, expected)
    weights = torch.tensor([1.0, 2.0, -3.0])
    grads, expected = (torch.autograd.grad(x @ weights, parts) for x in (log_probs, expected))
    for grad, with_copies in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, with_copies, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("topology", ["modified", "constrained"])
def test_more_labels_than_frames_have_no_path(topology):
    logits, targets, frames, _ = random_case(0)
    labels = torch.tensor([3, 0, 2, 1])  # the third: 1 frame, 2 labels
    loss = transducer_loss(logits, targets, frames, labels, topology)
    assert loss.isinf().tolist() == [False, False, True, False]
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad[2].abs().max() == 0 and grad[[0, 1, 3]].isfinite().all() and grad[3].abs().max() > 0


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_number_harms_its_utterance_only(topology, backend):
    logits, *case = random_case(5)
    clean = transducer_loss(logits, *case, topology)
    (clean_grad,) = torch.autograd.grad(clean.sum(), logits)
    broken = logits.detach().clone()
    broken[0, 2, 1, 4] = torch.nan
    broken[3, 4:] = torch.nan  # padding
    broken.requires_grad_()
    loss = transducer_loss(broken, *case, topology, backend=backend)
    assert loss.isnan().tolist() == [True, False, False, False]
    torch.testing.assert_close(loss[1:], clean[1:])
    (grad,) = torch.autograd.grad(loss.sum(), broken)
    assert grad[0].abs().max() == 0
    torch.testing.assert_close(grad[1:], clean_grad[1:])


def test_no_number_in_one_utterance_leaves_the_joint_weights_alone():
    encoder, *rest = joiner(6)
    with torch.no_grad():
        encoder[1, 0, 0] = torch.nan
    loss = joint_transducer_loss(encoder, *rest, *joint_case())
    assert loss.isnan().tolist() == [False, True, False]
    grads = torch.autograd.grad(loss.sum(), [encoder, *rest])
    assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_impossible_symbols_are_exact(topology):
    logits, targets, frames, labels = random_case(8)
    with torch.no_grad():
        logits[0, 1, :, 0] = -torch.inf  # no blank in frame 1
        logits[0, 2, 1, targets[0, 1]] = -torch.inf
        frames[0] = 5
    options = (topology,)
    loss = transducer_loss(logits, targets, frames, labels, *options)
    expected = enumerated(logits, targets, frames, labels, *options)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(loss[loss.isfinite()].sum(), logits)
    assert grad.isfinite().all()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_labels_at_all(topology):
    logits = torch.randn(2, 3, 1, 4, requires_grad=True)
    frames, labels = torch.tensor([3, 1]), torch.tensor([0, 0])
    loss = transducer_loss(logits, torch.zeros(2, 0, dtype=torch.int64), frames, labels, topology)
    blanks = logits.log_softmax(dim=-1)[:, :, 0, 0]
    torch.testing.assert_close(loss, -torch.stack([blanks[0].sum(), blanks[1, 0]]))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_padding_changes_nothing(topology):
    logits, targets, frames, labels = random_case(1)
    targets[1] = -1  # padding, whatever it holds
    loss = transducer_loss(logits, targets, frames, labels, topology)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    for i in range(len(logits)):
        t, u = int(frames[i]), int(labels[i])
        alone = logits[i : i + 1, :t, : u + 1].detach().requires_grad_()
        single = transducer_loss(alone, targets[i : i + 1, :u], frames[i : i + 1], labels[i : i + 1], topology)
        torch.testing.assert_close(single[0], loss[i])
        torch.testing.assert_close(torch.autograd.grad(single, alone)[0][0], grad[i, :t, : u + 1])
        assert grad[i, t:].abs().sum() == 0 and grad[i, :, u + 1 :].abs().sum() == 0


@pytest.mark.parametrize("scale", [300, 1e5])
def test_extreme_logits_keep_value_and_gradient(scale):
    logits, *case = random_case(2)
    big = (scale * logits.detach()).requires_grad_()
    loss, expected = (transducer_loss(big, *case, backend=backend) for backend in ("numba", "torch"))
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-6)
    grad, expected = (torch.autograd.grad(x.sum(), big)[0] for x in (loss, expected))
    torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-4)


def test_weights_of_the_losses_and_strides_of_the_logits():
    logits, *case = random_case(4)
    weights = torch.tensor([0.5, -2.0, 0.0, 3.0])
    strided = logits.detach().permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0).requires_grad_()
    (expected,) = torch.autograd.grad(transducer_loss(logits, *case, backend="torch") @ weights, logits)
    for some in (logits, strided):
        (grad,) = torch.autograd.grad(transducer_loss(some, *case, backend="numba") @ weights, some)
        torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_half_logits_keep_their_type_in_the_gradient(dtype, backend):
    logits, *case = random_case(3)
    half = logits.detach().to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    loss, expected = transducer_loss(half, *case, backend=backend), transducer_loss(full, *case)
    (grad,), (expected_grad,) = torch.autograd.grad(loss.sum(), half), torch.autograd.grad(expected.sum(), full)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad.to(dtype), atol=1e-5, rtol=0.01)


def test_joint_under_autocast_is_near_and_its_gradients_are_float32():
    parts, case = joiner(9), joint_case()
    expected = joint_transducer_loss(*parts, *case)
    with torch.autocast("cpu", torch.bfloat16):
        loss = joint_transducer_loss(*parts, *case)
    assert loss.dtype == torch.float32 and not torch.equal(loss, expected)
    torch.testing.assert_close(loss, expected, atol=0.05, rtol=0.02)
    for grad, exact in zip(*(torch.autograd.grad(x.sum(), parts) for x in (loss, expected)), strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("frames", "labels"), [([6, 3, 1, 4], [3, 0, 2, 1]), ([5, 3, 1, 4], [4, 0, 2, 1]), ([5, 3, 0, 4], [3, 0, 2, 1])]
)
def test_lengths_beyond_the_tensor_are_refused(frames, labels):
    logits, targets, _, _ = random_case(0)
    with pytest.raises(ValueError, match="lengths outside 1 … 5 frames or 0 … 3 labels"):
        transducer_loss(logits, targets, torch.tensor(frames), torch.tensor(labels))


@pytest.mark.parametrize("label", [-1, 0, 6])
def test_labels_outside_the_vocabulary_are_refused(label):
    logits, targets, frames, labels = random_case(0)
    targets[0, 1] = label
    with pytest.raises(ValueError, match="labels outside 1 … 5"):
        transducer_loss(logits, targets, frames, labels)


def test_a_predictor_of_other_length_is_refused():
    encoder, predictor, weight, bias = joiner(0)
    with pytest.raises(ValueError, match="want predictor"):
        joint_transducer_loss(encoder, predictor[:, :-1], weight, bias, *joint_case())


def test_torchaudio_agrees_where_it_imports():
    logits, *case = random_case(4)
    try:
        loss = transducer_loss(logits, *case, backend="torchaudio")
    except InputError as error:
        assert "torchaudio" in str(error) and "pip install" in str(error)
        pytest.skip(str(error))
    torch.testing.assert_close(loss, transducer_loss(logits, *case))


def test_torchaudio_is_refused_for_what_it_lacks():
    logits, *case = random_case(4)
    with pytest.raises(InputError, match="regular topology only"):
        transducer_loss(logits, *case, "modified", backend="torchaudio")


def test_a_batch_of_no_numbers_has_no_gradient():
    encoder, *rest = joiner(6)
    loss = joint_transducer_loss(encoder * torch.nan, *rest, *joint_case())
    assert loss.isnan().all()
    assert all((grad == 0).all() for grad in torch.autograd.grad(loss.sum(), rest))
