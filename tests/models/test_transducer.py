"""The losses of the transducer: what may not change them, and what its options do."""

import pytest
import torch
from lhotse import CutSet
from torch import Tensor

from asrkit.data.alignment import UNLABELLED
from asrkit.data.batching import Batch
from asrkit.models.transducer import Transducer, TransducerConfig
from asrkit.nn.decoders import PredictorConfig
from asrkit.nn.encoders import EncoderConfig

BINS, VOCAB, UNITS = 12, 6, 4
LOSSES = ("loss", "transducer", "ctc", "frame")


def tiny_model(kind: str = "conformer", **options) -> Transducer:
    """Return a conformer of the modified topology with a stateless predictor, or LSTMs with the regular topology."""
    torch.manual_seed(0)
    config = TransducerConfig(
        encoder=EncoderConfig(kind=kind, dim=8, layers=2, heads=2, feedforward_dim=8, subsampling_channels=4),
        predictor=PredictorConfig(kind="lstm" if kind == "lstm" else "stateless", dim=8),
        topology="regular" if kind == "lstm" else "modified",
        joiner_dim=8,
        frame_weight=0.5,
        vocab_size=VOCAB,
        num_mel_bins=BINS,
        frame_units=UNITS,
        **options,
    )
    return Transducer(config).eval()


def make_batch(sizes: list[tuple[int, int]], extra_frames: int = 0, extra_labels: int = 0) -> Batch:
    """Return a batch of utterances of (frames, labels); utterance i is always the same, its padding is not."""
    draws = [torch.Generator().manual_seed(i) for i in range(len(sizes))]
    features = [torch.randn(frames, BINS, generator=draw) - 8 for (frames, _), draw in zip(sizes, draws, strict=True)]
    tokens = [torch.randint(1, VOCAB, (u,), generator=draw) for (_, u), draw in zip(sizes, draws, strict=True)]
    labels = [torch.randint(UNITS, (-(-t // 4),), generator=draw) for (t, _), draw in zip(sizes, draws, strict=True)]
    longest = max(frames for frames, _ in sizes)
    return Batch(
        features=padded(features, 100.0, extra_frames),
        feature_lens=torch.tensor([frames for frames, _ in sizes]),
        tokens=padded(tokens, 0, extra_labels),
        token_lens=torch.tensor([u for _, u in sizes]),
        cuts=CutSet.from_cuts([]),
        frame_labels=padded(labels, UNLABELLED, -(-(longest + extra_frames) // 4) - -(-longest // 4)),
    )


def padded(rows: list[Tensor], value: float, extra: int) -> Tensor:
    rows = [torch.nn.functional.pad(row, (0, 0) * (row.ndim - 1) + (0, extra), value=value) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def alone(batch: Batch, i: int) -> Batch:
    """Return utterance i of a batch without any padding."""
    frames, labels = int(batch.feature_lens[i]), int(batch.token_lens[i])
    return Batch(
        batch.features[i : i + 1, :frames],
        batch.feature_lens[i : i + 1],
        batch.tokens[i : i + 1, :labels],
        batch.token_lens[i : i + 1],
        batch.cuts,
        batch.frame_labels[i : i + 1, : -(-frames // 4)],
    )


@pytest.mark.parametrize("kind", ["conformer", "lstm"])
@pytest.mark.parametrize("extra", [(0, 0), (1, 1), (64, 8)])
def test_padding_and_batch_size_change_no_loss(kind, extra):
    model = tiny_model(kind)
    batch = make_batch([(61, 5), (40, 2), (7, 1), (23, 4)], *extra)
    together, apart = model(batch), [model(alone(batch, i)) for i in range(4)]
    assert set(together) == {*LOSSES, "weight"} and together["weight"] == 12
    for name in LOSSES:
        assert together[name].item() == pytest.approx(sum(losses[name].item() for losses in apart), rel=1e-5)
    total = together["transducer"] + 0.3 * together["ctc"] + 0.5 * together["frame"]
    assert together["loss"].item() == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["conformer", "lstm"])
def test_padding_changes_no_gradient(kind):
    gradients = []
    for extra in (0, 37):
        model = tiny_model(kind)
        model(make_batch([(61, 5), (40, 2)], extra, extra))["loss"].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["conformer", "lstm"])
def test_gradients_are_finite_and_reach_every_weight(kind):
    """Also with a single path (as many labels as frames), or none for CTC, and with frames that are all the same."""
    model = tiny_model(kind).train()
    batch = make_batch([(61, 5), (20, 5)])
    batch.tokens[1] = 1
    batch.features[1] = -16.0
    losses = model(batch)
    losses["loss"].backward()
    assert all(losses[name].isfinite() and losses[name] > 0 for name in LOSSES)
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # A bias before a softmax over frames or a norm may have none, a matrix may not.
        assert parameter.ndim == 1 or parameter.grad.abs().max() > 0, name


def test_ctc_counts_nothing_where_it_has_no_path():
    model = tiny_model()
    batch = make_batch([(61, 5), (8, 5)])
    assert model(batch)["ctc"].item() == pytest.approx(model(alone(batch, 0))["ctc"].item(), rel=1e-5)


def test_the_warm_start_leaves_the_transducer_out():
    model, batch = tiny_model(warm_start_hours=0.5).train(), make_batch([(61, 5), (40, 2)])
    before = model(batch, hours=0.49)
    before["loss"].backward()
    assert "transducer" not in before
    assert before["loss"].item() == pytest.approx((0.3 * before["ctc"] + 0.5 * before["frame"]).item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(("predictor.", "joiner.")), name
    assert "transducer" in model(batch, hours=0.5)
    assert "transducer" in model.eval()(batch, hours=0.0)  # so that validation losses can be compared


VARIANTS = {
    "pruned": {"loss": "pruned", "prune_range": 3, "internal_lm_weight": 0.2},
    "pruned by a simple joiner": {"loss": "pruned", "prune_range": 3, "prune_by": "simple"},
    "factored": {"factored_blank": True, "internal_lm_weight": 0.2, "delay_penalty": 0.01},
    "pruned and factored": {"loss": "pruned", "prune_range": 3, "factored_blank": True},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_the_loss_add_up_and_padding_changes_nothing(options):
    model = tiny_model(**options)
    names = {"ctc": 0.3, "frame": 0.5, "transducer": 1.0}
    names |= {"simple": 0.5} if "prune_by" in options else {}
    names |= {"internal_lm": 0.2} if "internal_lm_weight" in options else {}
    batch = make_batch([(61, 5), (40, 2), (7, 1), (23, 4)], 9, 3)
    together, apart = model(batch), [model(alone(batch, i)) for i in range(4)]
    assert set(together) == {*names, "loss", "weight"}
    for name in names:
        assert together[name].item() == pytest.approx(sum(losses[name].item() for losses in apart), rel=1e-5)
    expected = sum(weight * together[name] for name, weight in names.items())
    assert together["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    together["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("prune_by", ["ctc", "simple"])
def test_a_pruned_loss_that_prunes_nothing_is_the_full_sum(prune_by):
    batch = make_batch([(61, 5), (40, 2)])
    pruned, full = tiny_model(loss="pruned", prune_by=prune_by, prune_range=6), tiny_model()
    full.load_state_dict(pruned.state_dict(), strict=False)
    assert pruned(batch)["transducer"].item() == pytest.approx(full(batch)["transducer"].item(), rel=1e-5)


def test_the_simple_loss_is_trained_from_the_start():
    model = tiny_model(loss="pruned", prune_by="simple", warm_start_hours=0.5).train()
    losses = model(make_batch([(61, 5), (40, 2)]), hours=0.1)
    assert set(losses) == {"loss", "ctc", "frame", "simple", "weight"}


def test_pruning_by_a_ctc_output_that_is_not_trained_is_refused():
    with pytest.raises(ValueError, match="ctc_weight"):
        TransducerConfig(loss="pruned", ctc_weight=0.0)


def test_the_internal_language_model_does_not_train_the_encoder():
    model = tiny_model(internal_lm_weight=0.2)
    model(make_batch([(61, 5), (40, 2)]))["internal_lm"].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in trained} == {"predictor", "joiner"}
    assert not any(name.startswith("joiner.project_encoder") for name in trained)


def test_utterances_without_times_have_no_frame_loss():
    model, batch = tiny_model(), make_batch([(61, 5), (40, 2), (7, 1)])
    first = model(alone(batch, 0))["frame"].item()
    batch.frame_labels[1:] = UNLABELLED
    losses = model(batch)
    assert losses["frame"].item() == pytest.approx(first, rel=1e-5)
    batch.frame_labels[0] = UNLABELLED
    model(batch)["loss"].backward()
    assert model(batch)["frame"] == 0 and not model.frames.weight.grad.any()


def test_the_frame_loss_is_a_mean_over_labelled_frames_times_the_labels():
    model, batch = tiny_model(), alone(make_batch([(40, 3)]), 0)
    batch.frame_labels[0, 2:5] = UNLABELLED
    log_probs = model.frames(model.encoder(batch.features, batch.feature_lens)[0])[0].log_softmax(dim=-1)  # (T, C)
    expected = [-log_probs[t, label] for t, label in enumerate(batch.frame_labels[0]) if label != UNLABELLED]
    assert len(expected) == 7
    assert model(batch)["frame"].item() == pytest.approx(3 * (sum(expected) / 7).item(), rel=1e-5)


def test_a_batch_without_frame_labels_has_no_frame_loss():
    batch = make_batch([(40, 2)])
    model = tiny_model()
    without = model(Batch(batch.features, batch.feature_lens, batch.tokens, batch.token_lens, batch.cuts))
    assert set(without) == {"loss", "transducer", "ctc", "weight"}
    assert without["ctc"] == model(batch)["ctc"]
