import pytest
import torch
from torch import nn
from torch.nn import functional as F

from asrkit.compress.schemes import Scheme, make_mask
from asrkit.compress.shrink import shrink, silent_channels
from asrkit.compress.sparsity import add_masks, conv_groups, prunable_layers, report, total
from asrkit.errors import InputError


def convolution(channels, outputs, kernel=3, **options):
    options = {"padding": kernel // 2, "bias": False} | options
    return nn.Sequential(nn.Conv2d(channels, outputs, kernel, **options), nn.BatchNorm2d(outputs), nn.ReLU())


def vgg():
    return nn.Sequential(
        *convolution(3, 16),
        *convolution(16, 16),
        nn.MaxPool2d(2),
        *convolution(16, 24),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 4, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(20, 10),
    )


class Block(nn.Module):
    def __init__(self, channels, outputs, stride=1):
        super().__init__()
        self.first = convolution(channels, outputs, stride=stride)
        self.second = convolution(outputs, outputs)[:-1]
        same = channels == outputs
        self.shortcut = nn.Identity() if same else convolution(channels, outputs, 1, stride=stride)[:-1]

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)]
    return nn.Sequential(*convolution(3, 16), Block(16, 16), Block(16, 16), Block(16, 24, 2), *head)


def mobilenet():
    pairs = [layer for _ in range(2) for layer in (*convolution(16, 16, groups=16), *convolution(16, 16, 1))]
    return nn.Sequential(*convolution(3, 16), *pairs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def mlp():
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 32), nn.Sigmoid(), nn.Linear(32, 5))


class Conv1d(nn.Module):
    """Convolutions over time (N, T, D), with what encoders do between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(12, 16, 5, stride=2)
        self.left, self.right = nn.Conv1d(16, 8, 3, padding=2, dilation=2), nn.Conv1d(16, 8, 1)
        self.linear = nn.Linear(16, 16)
        self.output = nn.utils.parametrizations.weight_norm(nn.Linear(16, 5))

    def forward(self, x):
        x = F.silu(self.first(x.transpose(1, 2)))
        x = torch.cat([self.left(x), self.right(x)], dim=1).permute(0, 2, 1)
        x = x * torch.sigmoid(self.linear(x))
        return self.output(x.mean(dim=1).view(x.size(0), -1))


class Functional(nn.Module):
    """Two depthwise filters a channel, and operations that are functions."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8)
        self.mixing, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.output = nn.Linear(6, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = self.mixing(F.avg_pool2d(F.leaky_relu(self.depthwise(x)), 2))
        x += 1.5
        x = F.adaptive_avg_pool2d(F.hardswish(x), (4, 4))
        x = F.dropout(F.adaptive_max_pool2d(self.last(x), 1), 0.5, self.training)
        return self.output(x.reshape(x.shape[0], -1))


NETWORKS = {
    "vgg": vgg,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "mlp": mlp,
    "conv1d": Conv1d,
    "functional": Functional,
}
SHAPES = {"mlp": (4, 12), "conv1d": (2, 30, 12), "functional": (2, 3, 20, 20)}


def trained(name):
    """Return a network whose batch norms look trained, and an input."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for values in (norm.bias, norm.running_mean):
                nn.init.normal_(values, 0, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model, torch.randn(SHAPES.get(name, (2, 3, 8, 8)))


def prune(model, kind, ratio=0.5):
    """Mask all layers but the last in filters, but the first in channels."""
    layers = list(prunable_layers(model).items())
    layers = layers[:-1] if kind == "filter" else layers[1:]
    scheme = Scheme(kind)
    add_masks(model, {path: make_mask(layer.weight, scheme, ratio, conv_groups(layer)) for path, layer in layers})


def shapes(model):
    return {path: tuple(layer.weight.shape) for path, layer in prunable_layers(model).items()}


@pytest.mark.parametrize("kind", ["filter", "channel", "unstructured"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_outputs_are_the_same_and_silent_channels_are_gone(name, kind):
    model, inputs = trained(name)
    before = total(report(model)).weights
    prune(model, kind)
    small = shrink(model, (inputs,))
    torch.testing.assert_close(small(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    assert total(report(small)).weights < 0.95 * before or kind == "unstructured"
    add_masks(model, silent_channels(model, (inputs,)))
    smaller = shrink(model, (inputs,))
    torch.testing.assert_close(smaller(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    assert total(report(smaller)).weights <= total(report(small)).weights
    other = torch.randn(3, *inputs.shape[1:])
    torch.testing.assert_close(smaller(other), model(other), rtol=1e-5, atol=1e-5)


def test_half_of_the_filters_leaves_a_quarter():
    model, inputs = trained("vgg")
    prune(model, "filter")
    add_masks(model, silent_channels(model, (inputs,)))
    small = shapes(shrink(model, (inputs,)))
    assert list(small.values()) == [(8, 3, 3, 3), (8, 8, 3, 3), (12, 8, 3, 3), (10, 48), (10, 10)]


def test_constants_fold_into_linear_layers_exactly():
    model, inputs = trained("mlp")
    prune(model, "filter")
    small = shrink(model, (inputs,))  # though GELU and sigmoid of a bias are not zero
    assert list(shapes(small).values()) == [(16, 12), (16, 16), (5, 16)]


def layer_pair(bias, padding, padding_mode="zeros"):
    first, second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=padding, padding_mode=padding_mode, bias=False)
    nn.init.zeros_(first.weight[:2])
    nn.init.constant_(first.bias, bias)
    return nn.Sequential(first, nn.ReLU(), second)


@pytest.mark.parametrize(
    "bias, padding, padding_mode, kept",
    [
        (1.0, 0, "zeros", 2),
        (-1.0, 1, "zeros", 2),  # the ReLU makes it zero
        (1.0, 1, "zeros", 4),  # the border sees another value
        (1.0, 1, "replicate", 2),
        (1.0, "same", "zeros", 4),
        (1.0, "valid", "zeros", 2),
    ],
)
@torch.no_grad()
def test_constants_fold_into_convolutions_where_that_is_exact(bias, padding, padding_mode, kept):
    model, inputs = layer_pair(bias, padding, padding_mode), torch.randn(1, 2, 7, 7)
    small = shrink(model, (inputs,))
    assert small[0].out_channels == kept and small[2].weight.shape == (3, kept, 3, 3)
    torch.testing.assert_close(small(inputs), model(inputs))


@torch.no_grad()
def test_a_constant_travels_through_several_layers():
    model, inputs = trained("vgg")
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[1].bias, -1)  # silence up to the second convolution, whose filters are all constant
    nn.init.zeros_(model[1].running_mean)
    small = shrink(model, (inputs,))
    torch.testing.assert_close(small(inputs), model(inputs))
    assert small[0].out_channels == 1 and small[3].in_channels == 1


@torch.no_grad()
def test_a_residual_channel_goes_in_all_branches_or_none():
    model, inputs = trained("resnet")
    for path, layer in prunable_layers(model).items():
        if path in ("0", "3.second.0"):  # not the second block, which adds to the same channels
            nn.init.zeros_(layer.weight[:4])
    nn.init.zeros_(model[3].first[0].weight[:5])
    add_masks(model, silent_channels(model, (inputs,)))
    small = shapes(shrink(model, (inputs,)))
    assert small["0"][0] == small["3.second.0"][0] == 16 and small["3.first.0"] == (11, 16, 3, 3)
    nn.init.zeros_(model[4].second[0].weight[:3])
    add_masks(model, silent_channels(model, (inputs,)))
    small = shapes(shrink(model, (inputs,)))
    assert small["0"][0] == small["3.second.0"][0] == small["4.second.0"][0] == small["5.first.0"][1] == 13


class Awkward(nn.Module):
    """Does with channels what cannot be followed."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.grouped = nn.Conv1d(8, 8, 1, groups=2)

    def forward(self, x):
        x = self.norm(self.twice(torch.relu(self.twice(x))))
        return self.grouped(x.view(-1, 8, 1)).softmax(1)


@torch.no_grad()
def test_channels_that_cannot_be_followed_stay():
    model = Awkward().eval()
    for layer in (model.twice, model.grouped):
        nn.init.zeros_(layer.weight[::2])
        nn.init.zeros_(layer.bias)
    inputs = torch.randn(3, 8)
    small = shrink(model, (inputs,))
    assert shapes(small) == shapes(model)
    assert torch.equal(small(inputs), model(inputs))


class Tied(nn.Module):
    """Uses a layer's weight behind the layer's back."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))) + F.linear(x, self.second.weight)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_refused():
    with pytest.raises(InputError, match="torch.fx cannot trace it"):
        shrink(Branching(), (torch.ones(1),))
    tied = Tied()
    nn.init.zeros_(tied.first.weight[:3])
    with pytest.raises(InputError, match="its smaller form fails"):
        shrink(tied, (torch.ones(1, 6),))


@torch.no_grad()
def test_the_model_itself_is_left_alone():
    model, inputs = trained("vgg")
    prune(model, "filter")
    expected, names = model(inputs), list(model.state_dict())
    shrink(model, (inputs,))
    silent_channels(model, (inputs,))
    assert torch.equal(model(inputs), expected) and list(model.state_dict()) == names


@torch.no_grad()
def test_all_filters_zero():
    model, inputs = trained("mlp")
    for layer in prunable_layers(model).values():
        nn.init.zeros_(layer.weight)
    small = shrink(model, (inputs,))
    torch.testing.assert_close(small(inputs), model(inputs))
    assert list(shapes(small).values()) == [(1, 12), (1, 1), (5, 1)]
