"""Regularisers against their definitions, pruning and fine-tuning by the training loop, resuming, and bad input."""

import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet, MonoCut
from torch import Tensor, nn

from asrkit.compress.mapping import LayerMapping, read_mapping
from asrkit.compress.pruning import finetune_network, prune_network, quick_accuracy
from asrkit.compress.regularisers import EPSILON, Admm, GroupLasso, PruningConfig, Regulariser, Reweighted
from asrkit.compress.schemes import Scheme, group_norms, group_sizes
from asrkit.compress.sparsity import masks_of, prunable_layers
from asrkit.data.batching import Batch
from asrkit.errors import InputError
from asrkit.models.checkpoint import load_weights, read_checkpoint
from asrkit.models.transducer import Transducer, TransducerConfig
from asrkit.nn.decoders import PredictorConfig
from asrkit.nn.encoders import EncoderConfig
from asrkit.training.config import TrainingConfig
from asrkit.training.loop import train
from asrkit.training.state import Hook, TrainingState

USEFUL, USELESS, OUTPUTS, SIZE = 4, 12, 8, 16  # inputs of the first layer, outputs, examples of a batch
TRAINING = TrainingConfig(
    epochs=4, learning_rate=0.02, warm_up_hours=0, weight_decay=0, average=0, save_every=7, log_every=50
)


@dataclass
class ToyBatch:
    features: Tensor
    targets: Tensor
    hours: float = SIZE / 3600
    cuts: tuple = ()

    def to(self, device: torch.device) -> "ToyBatch":
        return replace(self, features=self.features.to(device), targets=self.targets.to(device))


@dataclass
class ToyData:
    """A fixed function of the first `USEFUL` of the inputs."""

    batches: int = 30

    @property
    def hours(self) -> float:
        return self.batches * SIZE / 3600

    def epoch(self, number: int, skip: int = 0):
        for index in range(skip, self.batches):
            draw = torch.Generator().manual_seed(1000 * number + index)
            features = torch.randn(SIZE, USEFUL + USELESS, generator=draw)
            mixing = torch.randn(USEFUL, 2, generator=torch.Generator().manual_seed(0))
            yield ToyBatch(features, torch.tanh(features[:, :USEFUL] @ mixing))


class ToyModel(nn.Module):
    """`network` is what is pruned; the head is not of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(USEFUL + USELESS, 32), nn.Tanh(), nn.Linear(32, OUTPUTS))
        self.head = nn.Linear(OUTPUTS, 2)

    def forward(self, batch: ToyBatch, hours: float = 0.0) -> dict[str, Tensor]:
        error = (self.head(self.network(batch.features)) - batch.targets).square().sum()
        return {"loss": error, "weight": batch.targets.numel()}


@dataclass
class SignalAt(Hook):
    step: int

    def after_step(self, state: TrainingState) -> None:
        if state.progress.step == self.step:
            signal.raise_signal(signal.SIGTERM)


def error_of(model: nn.Module) -> float:
    sums = [model.eval()(batch) for batch in ToyData(5).epoch(99)]
    return sum(s["loss"].item() for s in sums) / sum(s["weight"] for s in sums)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Tensor]:
    """Weights of a trained toy model."""
    model = ToyModel()
    train(model, ToyData(), None, TRAINING, tmp_path_factory.mktemp("dense"))
    assert error_of(model) < 0.06
    return model.state_dict()


@pytest.fixture
def model(trained) -> ToyModel:
    model = ToyModel()
    model.load_state_dict(trained)
    return model


def mapping_of(**schemes: str) -> dict[str, LayerMapping]:
    """Make a mapping of layers "0" and "2" as `mapping_of(_0="channel")`."""
    return {path.strip("_"): LayerMapping(Scheme.parse(text)) for path, text in schemes.items()}


# Penalties


def gradient_of(kind: type[Regulariser], text: str, weight: Tensor) -> Tensor:
    """Return the gradient of a penalty at strength N that has just been refreshed, on a layer with this weight."""
    layer = nn.Linear(1, 1)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    mapping, scales = {"a": LayerMapping(Scheme.parse(text))}, {"a": weight.square().mean().sqrt().item()}
    hook = kind(mapping, scales, PruningConfig(), lambda progress: 0.0)
    hook.refresh("a", layer)
    return hook.gradient("a", layer)


def mean_squares(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the sizes (G,) of the groups, and their mean squares (G,) over that of the layer, taken as constant."""
    sizes = group_sizes(weight, scheme)
    return sizes, group_norms(weight, scheme) / sizes / weight.detach().square().mean()


@pytest.mark.parametrize("text", ["unstructured", "filter", "channel", "punched 4x1", "punched 3x2"])
def test_gradients_are_those_of_the_penalties(text):
    torch.manual_seed(0)
    weight = (torch.randn(10, 6, 3, 3) * torch.rand(10, 6, 1, 1)).requires_grad_()
    sizes, squares = mean_squares(weight, Scheme.parse(text))
    penalties = {
        Reweighted: (sizes * (squares + EPSILON).log()).sum(),
        GroupLasso: (sizes * torch.where(squares > 1e-4, squares.sqrt(), squares / 0.02)).sum(),
    }
    for kind, penalty in penalties.items():
        (expected,) = torch.autograd.grad(penalty, weight, retain_graph=True)
        found = gradient_of(kind, text, weight.detach())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_penalty_of_a_block_is_that_of_the_weaker_of_row_and_column():
    torch.manual_seed(0)
    weight = torch.randn(4, 4)
    rows, columns = weight.square().mean(1, keepdim=True), weight.square().mean(0, keepdim=True)
    weaker = torch.minimum(rows, columns) / weight.square().mean()
    found = gradient_of(Reweighted, "block 4x4", weight)
    torch.testing.assert_close(found, 2 * weight / (weaker + EPSILON) / weight.square().mean())


def test_what_is_outside_the_pattern_is_drawn_to_zero_most():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    pull = (gradient_of(Reweighted, "pattern", weight) / weight * weight.square().mean() / 2).flatten(2)
    outside = pull > 0.999 / EPSILON
    assert (outside.sum(-1) == 5).all() and pull[~outside].max() < 0.7 / EPSILON


def test_the_penalty_does_not_change_with_the_scale_of_a_layer():
    torch.manual_seed(0)
    weight = torch.randn(8, 6)
    for kind in (Reweighted, GroupLasso):
        gradient = gradient_of(kind, "filter", weight)
        torch.testing.assert_close(gradient_of(kind, "filter", 10 * weight), gradient / 10)


def test_admm_brings_weights_to_their_projection(model, tmp_path):
    """At the end of the training, what is to be cut off is next to zero already."""
    cut: list[float] = []

    class Watch(Admm):
        def before_step(self, state: TrainingState) -> None:
            super().before_step(state)
            weight = state.model.network[0].weight.detach()
            rms = weight.square().mean(0).sqrt().sort().values
            cut.append((rms[:8].max() / rms[8:].min()).item())

    mapping = {"0": LayerMapping(Scheme("channel"), 0.5)}
    hook = Watch(
        mapping,
        {"0": 0.2},
        PruningConfig("admm", strength=10.0, refreshes=16),
        lambda progress: progress.step / 120,
        "network",
    )
    train(model, ToyData(), None, TRAINING, tmp_path, [hook])
    assert cut[-1] < 0.1 < cut[0]
    assert (hook.tensors["0"]["Z"] != 0).any(0).sum() == 8 and hook.refreshed == 16


def test_strength_follows_a_ratio_that_grows_to_the_one_asked_for(model):
    columns = model.network[0].weight.data
    mapping = {"0": LayerMapping(Scheme("channel"), 0.75)}
    hook = Reweighted(mapping, {"0": 0.2}, PruningConfig(strength=3.0, refreshes=20), lambda progress: 0.0)
    strengths = []
    for hook.refreshed, gone in ((7, 0), (15, 8), (19, 8), (20, 14), (20, 16)):  # of 16
        columns[:, :gone] = 0
        hook.adapt("0", model.network[0])
        strengths.append(hook.strength["0"])
    assert strengths == pytest.approx([6.0, 6.0, 12.0, 6.0, 3.0])
    free = Reweighted(mapping_of(_0="channel"), {"0": 0.2}, PruningConfig(strength=3.0), lambda progress: 0.0)
    free.adapt("0", model.network[0])
    assert free.strength["0"] == 3.0


# Pruning


@pytest.mark.parametrize("method, strength", [("reweighted", 0.03), ("group_lasso", 0.1)])
def test_ratios_come_out_of_training(model, tmp_path, method, strength):
    """Inputs of no use go, useful ones stay; nobody says how many there are."""
    before = error_of(model)
    pruning = PruningConfig(method, strength=strength)
    reached = prune_network(model, ToyData(), mapping_of(_0="channel"), pruning, TRAINING, tmp_path, "network")
    columns = (model.network[0].weight != 0).any(0)
    assert columns.tolist() == [True] * USEFUL + [False] * USELESS
    assert reached["0"].ratio == USELESS / (USEFUL + USELESS)
    assert error_of(model) < 4 * before + 0.01
    assert read_mapping(tmp_path / "mapping.yaml") == reached
    written = ToyModel()
    load_weights(written, tmp_path / "model.pt")  # plain weights
    assert torch.equal(written.network[0].weight, model.network[0].weight)


@pytest.mark.parametrize("method", ["reweighted", "group_lasso", "admm", "magnitude"])
def test_one_threshold_over_layers_reaches_the_ratio_asked_for(model, tmp_path, method):
    mapping = mapping_of(_0="punched 4x1", _2="unstructured")
    short = replace(TRAINING, epochs=1)
    reached = prune_network(model, ToyData(), mapping, PruningConfig(method, 0.7), short, tmp_path, "network")
    weights = [model.network[int(path)].weight for path in mapping]
    zeros = sum((weight == 0).sum().item() for weight in weights) / sum(weight.numel() for weight in weights)
    assert zeros == pytest.approx(0.7, abs=0.01)
    assert all(0.4 < entry.ratio < 0.95 for entry in reached.values())
    assert (model.head.weight != 0).all()


def test_fine_tuning_keeps_zeros_and_helps(model, tmp_path):
    training = replace(TRAINING, average=0.3)
    pruning = PruningConfig("magnitude", 0.8)
    prune_network(model, ToyData(), mapping_of(_0="punched 4x1", _2="filter"), pruning, training, tmp_path, "network")
    zeros = {path: layer.weight == 0 for path, layer in prunable_layers(model).items()}
    before = error_of(model)
    finetune_network(model, ToyData(), ToyData(3), training, tmp_path)
    assert error_of(model) < before / 2
    weights = read_checkpoint(tmp_path / "model.pt")["model"]
    for path, gone in zeros.items():
        assert torch.equal(weights[f"{path}.weight"] == 0, gone)
    assert set(weights) == set(ToyModel().state_dict()) and not masks_of(model)


def killed_and_resumed(run, folder: Path, monkeypatch, step: int) -> None:
    """Call `run` such that its training ends by SIGTERM after `step`, then again to the end."""
    from asrkit.compress import pruning

    loop = pruning.train
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "train", lambda *a: loop(*a[:5], [*(a[5] if len(a) > 5 else []), SignalAt(step)]))
        with pytest.raises(SystemExit):
            run(folder)
    run(folder)


@pytest.mark.parametrize("method", ["reweighted", "group_lasso", "admm"])
def test_a_killed_run_resumes_to_the_same_result(trained, tmp_path, monkeypatch, method):
    def run(folder: Path) -> None:
        model = ToyModel()
        model.load_state_dict(trained)
        pruning = PruningConfig(method, 0.6, refreshes=5)
        prune_network(model, ToyData(), mapping_of(_0="punched 4x1"), pruning, TRAINING, folder, "network")

    run(tmp_path / "whole")
    killed_and_resumed(run, tmp_path / "killed", monkeypatch, 53)
    whole, killed = (read_checkpoint(tmp_path / name / "model.pt")["model"] for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_killed_fine_tuning_resumes_to_the_same_result(trained, tmp_path, monkeypatch):
    def run(folder: Path) -> None:
        model = ToyModel()
        model.load_state_dict(trained)
        model.network[0].weight.data[:, USEFUL:] = 0
        finetune_network(model, ToyData(), None, TRAINING, folder)

    run(tmp_path / "whole")
    killed_and_resumed(run, tmp_path / "killed", monkeypatch, 53)
    whole, killed = (read_checkpoint(tmp_path / name / "model.pt")["model"] for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not killed["network.0.weight"][:, USEFUL:].any()


def test_quick_accuracy_leaves_the_model_alone(model, trained):
    mapping = {"0": LayerMapping(Scheme("channel"), 0.75), "2": LayerMapping(Scheme(), 0.0)}
    too_much = mapping | {"0": LayerMapping(Scheme("channel"), 0.9)}
    few = replace(TRAINING, steps=20)
    good, bad = (
        quick_accuracy(model, ToyData(), lambda m: -error_of(m), each, few, "network") for each in (mapping, too_much)
    )
    assert bad < -0.1 < good
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


@dataclass
class SpeechData:
    """Batches of noise with random transcripts."""

    hours: float = 5 * 2 / 3600

    def epoch(self, number: int, skip: int = 0):
        for index in range(skip, 5):
            draw = torch.Generator().manual_seed(10 * number + index)
            features, tokens = torch.randn(2, 40, 12, generator=draw), torch.randint(1, 6, (2, 4), generator=draw)
            cuts = CutSet.from_cuts(MonoCut(f"{number}-{index}-{n}", 0.0, 1.0, 0) for n in range(2))
            yield Batch(features, torch.tensor([40, 37]), tokens, torch.tensor([4, 2]), cuts)


def test_the_encoder_of_a_transducer_is_pruned_and_fine_tuned(tmp_path):
    """All linear and convolution layers of it, 1-D and 2-D, pointwise and depthwise."""
    torch.manual_seed(0)
    encoder = EncoderConfig(dim=8, layers=1, heads=2, feedforward_dim=16, subsampling_channels=4)
    config = TransducerConfig(encoder, PredictorConfig(dim=8), joiner_dim=8, vocab_size=6, num_mel_bins=12)
    model = Transducer(config)
    kinds = {nn.Linear: "block 4x4", nn.Conv1d: "punched 4x2", nn.Conv2d: "punched 4x1"}
    layers = prunable_layers(model.encoder)
    mapping = {path: LayerMapping(Scheme.parse(kinds[type(layer)])) for path, layer in layers.items()}
    assert {type(layer) for layer in layers.values()} == set(kinds)
    training = replace(TRAINING, epochs=2)
    reached = prune_network(model, SpeechData(), mapping, PruningConfig(ratio=0.5), training, tmp_path, "encoder")
    zeros = {path: layer.weight == 0 for path, layer in layers.items()}
    counts = [(gone.sum().item(), gone.numel()) for gone in zeros.values()]
    assert 0.49 < sum(gone for gone, _ in counts) / sum(size for _, size in counts) < 0.6
    assert all(reached[path].ratio == pytest.approx(gone.float().mean().item()) for path, gone in zeros.items())
    finetune_network(model, SpeechData(), SpeechData(), training, tmp_path)
    assert all(torch.equal(layer.weight == 0, zeros[path]) for path, layer in layers.items())


# Bad input


@pytest.mark.parametrize(
    "mapping, pruning, complaint",
    [
        (mapping_of(_9="filter"), PruningConfig(), "layer '9': not a linear"),
        (mapping_of(_0="pattern"), PruningConfig(), "layer '0': scheme pattern: takes 3x3"),
        (mapping_of(_0="dense"), PruningConfig(), "prunes no layer"),
        (mapping_of(_0="filter"), PruningConfig("magnitude"), "does not find ratios"),
        (mapping_of(_0="filter"), PruningConfig("admm"), "does not find ratios"),
        ({"0": LayerMapping(Scheme("filter"), 1.5)}, PruningConfig("magnitude"), "layer '0': pruning ratio 1.5"),
        ({"0": LayerMapping(Scheme("filter"), 1.5)}, PruningConfig(), "layer '0': pruning ratio 1.5"),
    ],
)
def test_bad_mappings_are_refused_before_training(model, tmp_path, mapping, pruning, complaint):
    with pytest.raises(InputError, match=complaint):
        prune_network(model, ToyData(), mapping, pruning, TRAINING, tmp_path / "out", "network")
    assert not (tmp_path / "out").exists()


def test_a_dense_model_is_not_fine_tuned(model, tmp_path):
    with pytest.raises(InputError, match="not pruned"):
        finetune_network(model, ToyData(), None, TRAINING, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong", [{"ratio": 1.0}, {"ratio": -0.1}, {"strength": 0.0}, {"refreshes": 0}, {"dead_zone": 1.0}]
)
def test_bad_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PruningConfig(**wrong)
