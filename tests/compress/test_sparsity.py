import copy

import pytest
import torch
from torch import nn

from asrkit.compress.schemes import Scheme, make_mask
from asrkit.compress.sparsity import (
    add_masks,
    conv_groups,
    global_ratios,
    make_plain,
    masks_of,
    prunable_layers,
    remove_masks,
    report,
    total,
)
from asrkit.errors import InputError
from asrkit.training.state import averaged_copy, flat_gradient, update_average


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


def masks_for(model, ratio=0.5):
    layers = prunable_layers(model)
    return {
        path: make_mask(layer.weight, Scheme("punched", (4, 1)), ratio, conv_groups(layer))
        for path, layer in layers.items()
    }


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_layers():
    assert list(prunable_layers(small_network())) == ["0", "3", "5"]
    assert [conv_groups(layer) for layer in prunable_layers(small_network()).values()] == [1, 8, 1]


def test_masks_hold_while_training(images):
    model = small_network()
    masks = masks_for(model)
    parameter = model[0].weight
    add_masks(model, masks)
    assert any(parameter is known for known in model.parameters())  # as an optimiser would have it
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model(images).square().sum().backward()
        optimiser.step()
    for path, layer in prunable_layers(model).items():
        assert (layer.weight[~masks[path]] == 0).all() and layer.weight[masks[path]].all()
    assert (parameter.grad[~masks["0"]] == 0).all()


def test_adding_again_replaces_the_mask():
    model = small_network()
    former = model[5].weight.detach().clone()
    add_masks(model, masks_for(model, 0.9))
    new = {"5": torch.rand_like(former) < 0.5}
    add_masks(model, new)
    assert torch.equal(model[5].weight, former * new["5"])
    assert torch.equal(masks_of(model)["5"], new["5"]) and list(masks_of(model)) == ["0", "3", "5"]


def test_removing_masks_leaves_a_plain_network_and_its_copies_alone(images):
    model = small_network()
    names, parameter = [name for name, _ in model.named_parameters()], model[0].weight
    add_masks(model, masks_for(model))
    masked = copy.deepcopy(model)
    expected = model.eval()(images)
    remove_masks(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert model[0].weight is parameter and type(model[0]) is nn.Conv2d
    assert torch.equal(model(images), expected) and masks_of(model) == {}
    assert torch.equal(masked.eval()(images), expected) and len(masks_of(masked)) == 3


def test_weight_norm_below_a_mask():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    model = nn.Sequential(layer)
    add_masks(model, {"0": torch.eye(6, 4) == 0})
    expected = layer.weight.detach().clone()
    assert (expected.diagonal() == 0).all()
    remove_masks(model)
    assert torch.equal(layer.weight, expected) and type(layer) is nn.Linear
    make_plain(plain := nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)))
    assert [name for name, _ in plain.named_parameters()] == ["weight", "bias"]


def test_state_dict_round_trip(images, tmp_path):
    model, other = small_network(), small_network()
    add_masks(model, masks_for(model))
    add_masks(other, {path: torch.ones_like(mask) for path, mask in masks_of(model).items()})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other.eval()(images), model.eval()(images))
    assert all(torch.equal(mask, masks_of(model)[path]) for path, mask in masks_of(other).items())


def test_running_average_follows_masked_training(images):
    model = small_network()
    averaged = averaged_copy(model)
    masks = masks_for(model)
    for network in (model, averaged):
        add_masks(network, masks)
    gradient = flat_gradient(model)
    model(images).sum().backward()
    assert gradient.any()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    update_average(averaged, model, 1.0)
    assert torch.equal(averaged[0].weight, model[0].weight)
    assert not any(parameter.requires_grad for parameter in averaged.parameters())
    copied = averaged_copy(model)
    update_average(copied, model, 0.5)
    remove_masks(copied)
    assert (copied[0].weight[~masks["0"]] == 0).all()
    remove_masks(model)
    update_average(copied, model, 1.0)
    assert torch.equal(copied[0].weight, model[0].weight)


def test_masked_batch_norm(images):
    model = small_network()
    nn.init.ones_(model[1].bias)
    silent = torch.arange(8) >= 3
    add_masks(model, {"1": silent})
    normed = model.eval()[:2](images)
    assert (normed[:, :3] == 0).all() and normed[:, 3:].all()
    remove_masks(model)
    assert (model[1].bias[:3] == 0).all() and [name for name, _ in model[1].named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize(
    "path, shape, message",
    [("9", (1,), "'9': not a linear or conv"), ("2", (1,), "'2'"), ("5", (5, 4), "weight is 5x128, its mask 5x4")],
)
def test_bad_masks_change_nothing(path, shape, message):
    model = small_network()
    with pytest.raises(InputError, match=message):
        add_masks(model, {"0": torch.ones(8, 3, 3, 3), path: torch.ones(shape)})
    assert masks_of(model) == {}


def test_report(images):
    model = small_network().train()
    add_masks(model, {"3": torch.arange(72).reshape(8, 1, 3, 3) % 4 == 0})
    nn.init.zeros_(model[5].weight[:1])
    running_mean = model[1].running_mean.clone()
    rows = report(model, (images[:1],), {"3": Scheme("unstructured")})
    assert [(row.path, row.kind, row.shape) for row in rows] == [
        ("0", "conv2d", (8, 3, 3, 3)),
        ("3", "conv2d", (8, 1, 3, 3)),
        ("5", "linear", (5, 128)),
    ]
    assert [row.ratio for row in rows] == pytest.approx([0, 0.75, 0.2])
    assert [str(row.scheme) for row in rows] == ["dense", "unstructured", "dense"]
    assert [(row.macs, row.macs_kept) for row in rows] == [(16 * 216, 16 * 216), (16 * 72, 16 * 18), (640, 512)]
    summed = total(rows)
    assert (summed.weights, summed.kept, summed.macs) == (216 + 72 + 640, 216 + 18 + 512, 16 * 288 + 640)
    assert torch.equal(model[1].running_mean, running_mean) and model[1].training
    assert [row.macs for row in report(model)] == [0, 0, 0]


@pytest.mark.parametrize("scheme", ["unstructured", "punched 4x1", "block 4x8", "filter"])
def test_one_threshold_gives_each_layer_its_ratio(scheme):
    layers = {"even": nn.Linear(64, 64), "peaked": nn.Linear(64, 64)}
    torch.manual_seed(0)
    nn.init.normal_(layers["even"].weight)
    layers["peaked"].weight.data = 100 * torch.randn(64, 64) * torch.logspace(0, -4, 64)[:, None]
    schemes = dict.fromkeys(layers, Scheme.parse(scheme))
    ratios = global_ratios(layers, schemes, 0.6)
    assert sum(ratios.values()) / 2 == pytest.approx(0.6, abs=0.03)
    assert ratios["peaked"] > ratios["even"]
    for path, ratio in ratios.items():
        mask = make_mask(layers[path].weight, schemes[path], ratio)
        assert 1 - mask.float().mean().item() == pytest.approx(ratio, abs=64 / 4096)  # a filter


def test_one_threshold_leaves_patterns_their_five_ninths():
    layers = {"a": nn.Conv2d(8, 8, 3), "b": nn.Conv2d(8, 8, 3), "c": nn.Linear(3, 3)}
    nn.init.constant_(layers["a"].weight, 1.0)
    ratios = global_ratios(layers, {"a": Scheme("pattern"), "b": Scheme("filter"), "c": Scheme()}, 0.5)
    assert ratios["a"] >= 5 / 9 - 1e-6 and list(ratios) == ["a", "b"]
    with pytest.raises(InputError, match="layer 'c': scheme pattern"):
        global_ratios(layers, {"c": Scheme("pattern")}, 0.6)
