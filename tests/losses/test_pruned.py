"""The pruned loss against enumeration of paths and finite differences, its ranges against their definition."""

import importlib

import pytest
import torch
from torch import Tensor

from asrkit.losses.pruned import (
    CTC_POWER,
    ctc_occupations,
    pruned_logits_loss,
    pruned_loss,
    pruned_transducer_loss,
    pruning_ranges,
    simple_loss,
)

TOPOLOGIES = ["regular", "modified", "constrained"]


def enumerated_loss(blank: Tensor, label: Tensor, topology: str = "regular", kept: Tensor | None = None) -> Tensor:
    """-log of the sum over every path, one by one; blank (T, U + 1), label (T, U), kept (T, U + 1) bool."""
    frames, columns = blank.shape
    kept = torch.ones_like(blank, dtype=torch.bool) if kept is None else kept
    scores = []

    def walk(t: int, u: int, score: Tensor) -> None:
        if t == frames:
            if u == columns - 1:
                scores.append(score)
            return
        if not kept[t, u]:
            return
        walk(t + 1, u, score + blank[t, u])
        if u == columns - 1:
            return
        if topology == "regular":
            walk(t, u + 1, score + label[t, u])
        elif topology == "modified":
            walk(t + 1, u + 1, score + label[t, u])
        elif kept[t, u + 1]:
            walk(t + 1, u + 1, score + label[t, u] + blank[t, u + 1])

    walk(0, 0, blank.new_zeros(()))
    return -torch.stack(scores).logsumexp(dim=0) if scores else torch.tensor(torch.inf, dtype=blank.dtype)


def log_probs(logits: Tensor, labels: Tensor, factored: bool, delay_penalty: float) -> tuple[Tensor, Tensor]:
    """Blank (T, U + 1) and label (T, U) log-probabilities of logits (T, U + 1, V)."""
    if factored:
        blank = logits[..., 0].sigmoid()
        others = (1 - blank)[..., None] * logits[..., 1:].softmax(dim=-1)
        logits = torch.cat([blank[..., None], others], dim=-1).log()
    else:
        logits = logits.log_softmax(dim=-1)
    label = logits[:, torch.arange(len(labels)), labels]
    penalty = (len(logits) - 1) / 2 - torch.arange(len(logits))
    return logits[..., 0], label + delay_penalty * penalty[:, None]


LENS = torch.tensor([5, 3, 1, 4]), torch.tensor([3, 0, 1, 2])


def random_joiner(seed: int, n: int = 4, frames: int = 5, labels: int = 3, vocab: int = 6, dim: int = 3):
    """Encoder, predictor, weight, bias (all differentiable) and targets."""
    torch.manual_seed(seed)
    shapes = [(n, frames, dim), (n, labels + 1, dim), (vocab, dim), (vocab,)]
    return [(2 * torch.randn(s)).requires_grad_() for s in shapes], torch.randint(1, vocab, (n, labels))


def joiner_logits(encoder: Tensor, predictor: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(encoder[:, :, None] + predictor[:, None]) @ weight.t() + bias


def band(starts: list[list[int]], size: int) -> Tensor:
    return torch.tensor(starts)[:, :, None] + torch.arange(size)


FULL = torch.arange(4).expand(4, 5, 4)
BANDS = {"full": FULL, "two": band([[0, 0, 1, 2, 2], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 2]], 2)}


def expected_losses(parameters, targets, ranges, topology, factored, delay_penalty) -> Tensor:
    """Enumeration of each utterance, in float64."""
    logits = joiner_logits(*(x.double() for x in parameters))
    losses = []
    for x, y, r, t, u in zip(logits, targets, ranges, *LENS, strict=True):
        kept = torch.zeros(x.shape[:2], dtype=torch.bool).scatter(1, r, True)[:t, : u + 1]
        losses.append(enumerated_loss(*log_probs(x[:t, : u + 1], y[:u], factored, delay_penalty), topology, kept))
    return torch.stack(losses)


@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("ranges", BANDS.values(), ids=BANDS)
def test_value_and_gradient_equal_enumeration_inside_the_ranges(ranges, topology, factored, delay_penalty):
    parameters, targets = random_joiner(0)
    options = {"topology": topology, "factored": factored, "delay_penalty": delay_penalty}
    expected = expected_losses(parameters, targets, ranges, **options)
    assert expected.isfinite().all()
    loss = pruned_loss(*parameters, ranges, targets, *LENS, **options)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)

    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    grads = torch.autograd.grad(loss @ weights, parameters)
    expected_grads = torch.autograd.grad(expected @ weights.double(), parameters)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-4)

    logits = joiner_logits(*parameters).detach().gather(2, ranges[..., None].expand(-1, -1, -1, 6)).requires_grad_()
    from_logits = pruned_logits_loss(logits, ranges, targets, *LENS, **options)
    torch.testing.assert_close(from_logits, loss)
    (grad,) = torch.autograd.grad(from_logits @ weights, logits)
    by_bias = grad.sum(dim=(0, 1, 2))
    torch.testing.assert_close(by_bias, grads[3], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gradient_equals_finite_differences(topology, factored):
    parameters, targets = random_joiner(1)
    parameters = [x.detach().double().requires_grad_() for x in parameters]
    options = {"topology": topology, "factored": factored, "delay_penalty": 0.1}
    assert torch.autograd.gradcheck(
        lambda *x: pruned_loss(*x, BANDS["two"], targets, *LENS, **options), parameters, fast_mode=True
    )
    logits = torch.randn(4, 5, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: pruned_logits_loss(x, BANDS["two"], targets, *LENS, **options), logits, fast_mode=True
    )


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gradient_of_the_simple_loss_equals_finite_differences(topology):
    torch.manual_seed(14)
    logits = [torch.randn(4, n, 6, dtype=torch.float64, requires_grad=True) for n in (5, 4)]
    targets = torch.randint(1, 6, (4, 3))
    assert torch.autograd.gradcheck(
        lambda *x: simple_loss(*x, targets, *LENS, topology, 0.2, 0.3, 0.1)[0], logits, fast_mode=True
    )


def simple_scores(encoder: Tensor, predictor: Tensor, average: Tensor, labels: Tensor, own: float, average_only: float):
    """Smoothed blank (T, U + 1) and label (T, U) scores of logits (T, V) and (U + 1, V) by their definition."""
    joint = (encoder[:, None] + predictor).log_softmax(dim=-1)
    alone = predictor.log_softmax(dim=-1)
    with_average = (encoder + average.log()).log_softmax(dim=-1)[:, None]
    scores = (1 - own - average_only) * joint + own * alone + average_only * with_average
    return scores[..., 0], scores[:, torch.arange(len(labels)), labels]


@pytest.mark.parametrize(("own", "average_only"), [(0.0, 0.0), (0.25, 0.0), (0.2, 0.3)])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_simple_loss_equals_enumeration(topology, own, average_only):
    torch.manual_seed(2)
    encoder, predictor = ((2 * torch.randn(4, n, 6)).requires_grad_() for n in (5, 4))
    targets = torch.randint(1, 6, (4, 3))
    loss, blank, label = simple_loss(encoder, predictor, targets, *LENS, topology, own, average_only)
    real = torch.arange(4) <= LENS[1][:, None]
    average = predictor.double().softmax(dim=-1)[real].mean(dim=0)
    expected, arcs = [], []
    for a, p, y, t, u in zip(encoder.double(), predictor.double(), targets, *LENS, strict=True):
        arcs.append(simple_scores(a[:t], p[: u + 1], average, y[:u], own, average_only))
        expected.append(enumerated_loss(*arcs[-1], topology))
    expected = torch.stack(expected)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    grads = torch.autograd.grad(loss @ weights, [encoder, predictor])
    expected_grads = torch.autograd.grad(expected @ weights.double(), [encoder, predictor], retain_graph=True)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-4)
    if topology != "constrained":  # there the arcs of the lattice are two symbols each
        for n, (t, u) in enumerate(zip(*LENS, strict=True)):
            by_blank, by_label = torch.autograd.grad(-expected[n], arcs[n], retain_graph=True, materialize_grads=True)
            torch.testing.assert_close(blank[n, :t, : u + 1].double(), by_blank, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(label[n, :t, :u].double(), by_label, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_ctc_occupations_equal_enumeration(topology):
    torch.manual_seed(18)
    scores = (2 * torch.randn(4, 5, 6)).log_softmax(dim=-1)
    targets = torch.randint(1, 6, (4, 3))
    targets[1] = -7  # padding
    blank, label = ctc_occupations(scores, targets, *LENS, topology)
    for n, (t, u) in enumerate(zip(*LENS, strict=True)):
        powers = CTC_POWER * scores[n, :t].double()
        enters = powers[:, targets[n, :u]]  # (T, U)
        stays = torch.cat([powers[:, :1], powers[:, :1].logaddexp(enters)], dim=1).requires_grad_()
        enters.requires_grad_()
        total = -enumerated_loss(stays, enters, "modified")
        by_stay, by_label = torch.autograd.grad(total, [stays, enters], materialize_grads=True)
        if topology != "modified":  # a blank follows a label in its frame
            by_stay[:, 1:] += by_label
        torch.testing.assert_close(blank[n, :t, : u + 1].double(), by_stay, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(label[n, :t, :u].double(), by_label, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_ranges_of_a_ctc_output_hold_its_alignment(topology):
    spoken = torch.tensor([0, 2, 2, 0, 0, 5, 1, 0, 1, 0])  # frame by frame, for the labels 2 5 1 1
    log_probs = (12.0 * torch.nn.functional.one_hot(spoken, 6)).log_softmax(dim=-1)[None]
    targets, lens = torch.tensor([[2, 5, 1, 1]]), (torch.tensor([10]), torch.tensor([4]))
    ranges = pruning_ranges(*ctc_occupations(log_probs, targets, *lens, topology), *lens, 2, topology)
    before, after = torch.tensor([0, 0, 1, 1, 1, 1, 2, 3, 3, 4]), torch.tensor([0, 1, 1, 1, 1, 2, 3, 3, 4, 4])
    assert (ranges[0] == before[:, None]).any(dim=1).all()
    if topology != "modified":
        assert (ranges[0] == after[:, None]).any(dim=1).all()


def occupations(seed: int, topology: str, peak: float = 1.0, n: int = 6, frames: int = 30, labels: int = 12):
    torch.manual_seed(seed)
    targets = torch.randint(1, 20, (n, labels))
    frame_lens, target_lens = torch.randint(labels, frames + 1, (n,)), torch.randint(0, labels + 1, (n,))
    frame_lens[0], target_lens[0] = frames, labels
    logits = peak * torch.randn(n, frames, 20), peak * torch.randn(n, labels + 1, 20)
    _, blank, label = simple_loss(*logits, targets, frame_lens, target_lens, topology)
    return blank, label, frame_lens, target_lens


@pytest.mark.parametrize("peak", [0.1, 8.0])
@pytest.mark.parametrize("size", [1, 2, 4, 40])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_ranges_rise_in_steps_that_leave_a_path(topology, size, peak):
    if topology == "regular" and size == 1:
        size = 3
    blank, label, frame_lens, target_lens = occupations(3, topology, peak)
    ranges = pruning_ranges(blank, label, frame_lens, target_lens, size, topology)
    size = min(size, 13)
    assert ranges.shape == (6, 30, size)
    assert (ranges.diff(dim=2) == 1).all()
    start = ranges[:, :, 0]
    assert (start[:, 0] == 0).all() and ranges.min() == 0 and ranges.max() <= 12
    step = start.diff(dim=1)
    assert step.min() >= 0 and step.max() <= (size - 1 if topology == "regular" else 1)
    last = torch.stack([r[t - 1, -1] for r, t in zip(ranges, frame_lens, strict=True)])
    assert (last >= target_lens).all()


def test_ranges_are_the_windows_of_highest_occupation():
    """One path, with a window of two: at each frame the window must hold the column where the path leaves it."""
    path = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4])  # labels emitted when the frame is left
    blank, label = torch.zeros(1, 8, 5), torch.zeros(1, 8, 4)
    blank[0, torch.arange(8), path] = 1.0
    for t in range(1, 8):
        label[0, t, path[t - 1] : path[t]] = 1.0
    ranges = pruning_ranges(blank, label, torch.tensor([8]), torch.tensor([4]), 2)
    assert (ranges[0] == path[:, None]).any(dim=1).all()
    before = torch.cat([path[:1], path[:-1]])  # where the path enters the frame
    assert (ranges[0] == before[:, None]).any(dim=1).all()


def test_ranges_widen_when_a_regular_path_would_not_fit():
    blank, label = torch.rand(1, 2, 8), torch.rand(1, 2, 7)
    ranges = pruning_ranges(blank, label, torch.tensor([2]), torch.tensor([7]), 2)
    assert ranges.tolist() == [[[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]]]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_pruning_keeps_nearly_all_of_a_peaked_sum(topology):
    """The encoder says which label, so few alignments matter; five columns a frame hold them."""
    torch.manual_seed(4)
    targets = torch.arange(1, 13)[None]
    encoder = torch.zeros(1, 40, 13)
    spoken = torch.zeros(40, dtype=torch.int64)
    spoken[torch.arange(12) * 3 + 2] = targets[0]
    encoder[0, torch.arange(40), spoken] = 6.0
    lens = torch.tensor([40]), torch.tensor([12])
    eye, zero = torch.eye(13), torch.zeros(13)
    common = (eye, zero, targets, *lens)
    arguments = encoder, torch.zeros(1, 13, 13), encoder.clamp(max=3.0), torch.zeros(1, 13, 13)
    _, pruned = pruned_transducer_loss(*arguments, 6 * eye, *common[1:], topology=topology)
    _, whole = pruned_transducer_loss(*arguments, 6 * eye, *common[1:], size=13, topology=topology)
    assert whole.item() <= pruned.item() < whole.item() + 1e-3


@pytest.fixture(params=["k2", "fast_rnnt"])
def peer(request):
    try:
        return importlib.import_module(request.param)
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"{request.param} does not import: {error}")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_equals_peers(peer, topology):
    """Each step on the same input, so that a near tie between two ranges cannot matter."""
    inputs, targets = random_chain(15, frames=40, labels=12)
    lens = torch.tensor([40, 20, 12, 31]), torch.tensor([12, 8, 9, 4])
    boundary = torch.stack([torch.zeros_like(lens[0]), torch.zeros_like(lens[0]), lens[1], lens[0]], dim=1)
    common = {"boundary": boundary, "rnnt_type": topology, "reduction": "none", "delay_penalty": 0.1}
    simple, blank, label = simple_loss(*inputs[:2], targets, *lens, topology, delay_penalty=0.1)
    scales = {"lm_only_scale": 0.25, "am_only_scale": 0.0}
    theirs, (px_grad, py_grad) = peer.rnnt_loss_smoothed(
        inputs[1], inputs[0], targets, 0, return_grad=True, **scales, **common
    )
    torch.testing.assert_close(simple, theirs, atol=1e-3, rtol=1e-5)
    size = 5
    ranges = peer.get_rnnt_prune_ranges(px_grad, py_grad, boundary, size)
    px, py = px_grad[:, :, :40].transpose(1, 2), py_grad.transpose(1, 2)
    if topology == "constrained":
        py = py + torch.nn.functional.pad(px, (1, 0))
    assert torch.equal(pruning_ranges(py, px, *lens, size, topology), ranges)
    torch.testing.assert_close(label, px, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(blank, py, atol=1e-4, rtol=1e-3)
    joined = peer.do_rnnt_pruning(inputs[2], inputs[3], ranges)
    logits = torch.tanh(sum(joined)) @ inputs[4].t() + inputs[5]
    expected = peer.rnnt_loss_pruned(logits, targets, ranges, 0, **common)
    loss = pruned_loss(*inputs[2:], ranges, targets, *lens, topology=topology, delay_penalty=0.1)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)
    grads, expected_grads = (torch.autograd.grad(x.sum(), inputs[2:]) for x in (loss, expected))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=2e-3, rtol=2e-3)


def chain(inputs, targets, frame_lens, target_lens, **options) -> tuple[Tensor, Tensor, list[Tensor]]:
    losses = pruned_transducer_loss(*inputs, targets, frame_lens, target_lens, **options)
    return *losses, list(torch.autograd.grad((0.5 * losses[0] + losses[1]).sum(), inputs))


def random_chain(seed: int, n: int = 4, frames: int = 12, labels: int = 7, vocab: int = 9, dim: int = 8):
    (encoder, predictor, weight, bias), targets = random_joiner(seed, n, frames, labels, vocab, dim)
    logits = [torch.randn(n, size, vocab).requires_grad_() for size in (frames, labels + 1)]
    return [*logits, encoder, predictor, weight, bias], targets


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_padding_and_the_other_utterances_change_nothing(topology):
    inputs, targets = random_chain(5)
    frame_lens, target_lens = torch.tensor([12, 7, 9, 1]), torch.tensor([7, 0, 3, 1])
    simple, pruned, grads = chain(inputs, targets, frame_lens, target_lens, size=3, topology=topology)
    shared = [torch.zeros_like(x) for x in grads[4:]]
    for n, (t, u) in enumerate(zip(frame_lens.tolist(), target_lens.tolist(), strict=True)):
        cut = [t, u + 1, t, u + 1]
        alone = [x[n : n + 1, :c].detach().requires_grad_() for x, c in zip(inputs, cut, strict=False)] + inputs[4:]
        lens = frame_lens[n : n + 1], target_lens[n : n + 1]
        one_simple, one_pruned, one = chain(alone, targets[n : n + 1, :u], *lens, size=3, topology=topology)
        torch.testing.assert_close(torch.cat([one_simple, one_pruned]), torch.stack([simple[n], pruned[n]]))
        for grad, whole, c in zip(one[:4], grads, cut, strict=False):
            torch.testing.assert_close(grad[0], whole[n, :c], atol=1e-5, rtol=1e-4)
            assert not whole[n, c:].any()
        shared = [x + y for x, y in zip(shared, one[4:], strict=True)]
    for grad, whole in zip(shared, grads[4:], strict=True):
        torch.testing.assert_close(grad, whole, atol=1e-4, rtol=1e-4)


def test_no_labels_at_all():
    inputs, targets = random_chain(6, n=2, labels=0)
    frame_lens = torch.tensor([12, 5])
    simple, pruned, grads = chain(inputs, targets, frame_lens, torch.tensor([0, 0]))
    blank = joiner_logits(*inputs[2:]).log_softmax(dim=-1)[:, :, 0, 0]
    torch.testing.assert_close(pruned, -torch.stack([blank[0].sum(), blank[1, :5].sum()]))
    assert simple.isfinite().all() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("topology", ["modified", "constrained"])
def test_more_labels_than_frames_have_no_path_and_no_gradient(topology):
    inputs, targets = random_chain(7)
    lens = torch.tensor([12, 3, 9, 1]), torch.tensor([7, 5, 3, 1])
    simple, pruned, grads = chain(inputs, targets, *lens, topology=topology)
    assert simple.isinf().tolist() == pruned.isinf().tolist() == [False, True, False, False]
    assert all(g.isfinite().all() for g in grads) and not any(g[1].any() for g in grads[:4])


def test_nan_stays_in_its_utterance():
    inputs, targets = random_chain(8)
    lens = torch.tensor([12, 8, 9, 6]), torch.tensor([7, 5, 3, 1])
    simple, pruned, _ = chain(inputs, targets, *lens)
    for i in range(4):
        broken = [x.detach().clone() for x in inputs]
        broken[i][1, 2, 3] = torch.nan
        broken = [x.requires_grad_() for x in broken]
        new_simple, new_pruned, grads = chain(broken, targets, *lens)
        others = torch.tensor([0, 2, 3])
        assert (new_simple if i < 2 else new_pruned)[1].isnan()
        torch.testing.assert_close(new_simple[others], simple[others])
        torch.testing.assert_close(new_pruned[others], pruned[others])
        assert all(g.isfinite().all() for g in grads)


def test_extreme_logits_stay_finite():
    inputs, targets = random_chain(9)
    inputs = [(100 * x.detach()).requires_grad_() for x in inputs]
    simple, pruned, grads = chain(inputs, targets, torch.tensor([12, 8, 9, 6]), torch.tensor([7, 5, 3, 1]))
    assert simple.isfinite().all() and pruned.isfinite().all() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type_in_the_gradient(kind):
    inputs, targets = random_chain(10)
    lens = torch.tensor([12, 8, 9, 6]), torch.tensor([7, 5, 3, 1])
    half = [x.detach().to(kind).requires_grad_() for x in inputs]
    simple, pruned, grads = chain(half, targets, *lens)
    exact_simple, exact, exact_grads = chain([x.detach().float().requires_grad_() for x in half], targets, *lens)
    assert simple.dtype == pruned.dtype == torch.float32 and all(g.dtype == kind for g in grads)
    torch.testing.assert_close(simple, exact_simple)
    torch.testing.assert_close(pruned, exact, atol=0.2, rtol=0.02)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert (grad.float() - exact_grad).norm() < 0.05 * exact_grad.norm()


def test_autocast_computes_products_in_its_type():
    inputs, targets = random_chain(11)
    lens = torch.tensor([12, 8, 9, 6]), torch.tensor([7, 5, 3, 1])
    simple, exact, exact_grads = chain(inputs, targets, *lens)
    with torch.autocast("cpu", torch.bfloat16):
        same, pruned, grads = chain(inputs, targets, *lens)
    torch.testing.assert_close(same, simple)  # the simple loss is always in float32
    assert 0 < (pruned - exact).abs().max() < 0.2
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - exact_grad).norm() < 0.05 * exact_grad.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_lens": torch.tensor([13, 8, 9, 6])}, "outside 1 … 12 frames"),
        ({"frame_lens": torch.tensor([0, 8, 9, 6])}, "outside 1 … 12 frames"),
        ({"target_lens": torch.tensor([8, 5, 3, 1])}, "0 … 7 labels"),
        ({"target_lens": torch.tensor([7, 5, 3])}, "lengths must have shape"),
        ({"targets": torch.ones(4, 6, dtype=torch.int64)}, "want predictor"),
        ({"topology": "monotonic"}, "none of regular, modified, constrained"),
        ({"size": 0}, "at least one label"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    inputs, targets = random_chain(12)
    lens = {"frame_lens": torch.tensor([12, 8, 9, 6]), "target_lens": torch.tensor([7, 5, 3, 1])}
    with pytest.raises(ValueError, match=message):
        pruned_transducer_loss(*inputs, **{"targets": targets, **lens, **change})


@pytest.mark.parametrize("ranges", [FULL[:, :4], FULL - 1, FULL.flip(2), FULL[:, :, 0]])
def test_ranges_that_are_none_are_refused(ranges):
    parameters, targets = random_joiner(13)
    with pytest.raises(ValueError, match="ranges"):
        pruned_loss(*parameters, ranges, targets, *LENS)


def test_ranges_without_a_path_have_infinite_loss_and_no_gradient():
    parameters, targets = random_joiner(16)
    ranges = band([[0, 0, 2, 2, 2], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], 2)
    loss = pruned_loss(*parameters, ranges, targets, *LENS)
    assert loss.isinf().tolist() == [True, False, False, True]
    grads = torch.autograd.grad(loss.sum(), parameters)
    assert all(g.isfinite().all() for g in grads)
    assert not any(g[[0, 3]].any() for g in grads[:2]) and all(g[2].any() for g in grads[:2])
