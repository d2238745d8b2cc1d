"""Structured pruning made real: a network without the filters and channels whose weights are zero.

A channel of a tensor can go if everything that reads it can do without: the weights of its readers for it are zero, or
it has one known value at all places, which is then folded into the bias of its readers. A filter of zeros leaves such a
constant behind: its bias, or what batch norm and activation make of it. A convolution that pads with zeros sees another
value at the border, so that there only the constant 0 folds exactly; with any other constant the channel stays (see
`silent_channels`). Tensors that are added share their channels: these go in all of them or in none.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asrkit.compress.channels import ChannelFlow, LayerUse, bias_of, tap_sums
from asrkit.compress.sparsity import NORMS, make_plain
from asrkit.errors import InputError


@torch.no_grad()
def shrink(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return a copy of `model`, in evaluation mode and on the CPU, with smaller layers and the same outputs.

    Layers stay where they are in the network, with plain weights (masks and weight norm are applied). Linear layers,
    convolutions, batch norm, what works element by element, pooling, flattening, transposition, sums and concatenation
    are understood; all channels stay of what other operations read or write, of grouped convolutions that are not
    depthwise, of layers that are used more than once, and of the network's inputs and outputs.

    Args:
        model: a network that torch.fx can trace.
        example_inputs: of one run; the outputs for them are compared.

    Raises:
        InputError: the network cannot be traced, or counts on channels in a way that cannot be seen.
    """
    network = _plain_copy(model)
    example_inputs = tuple(tensor.cpu() for tensor in example_inputs)
    expected = network(*example_inputs)
    flow = ChannelFlow(network, example_inputs)
    kept = flow.kept()
    for path, use in flow.uses.items():
        _cut(network.get_submodule(path), use, kept)
    try:
        torch.testing.assert_close(network(*example_inputs), expected, rtol=1e-3, atol=1e-4, check_stride=False)
    except (AssertionError, RuntimeError) as error:
        raise InputError(f"network cannot be shrunk: its smaller form fails ({str(error).splitlines()[0]})") from error
    return network


@torch.no_grad()
def silent_channels(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return masks (C,) of batch norms, by path: False for channels in which zero filters leave only a constant.

    With these masks (`asrkit.compress.sparsity.add_masks`) the constants are zero, so that `shrink` can remove the
    channels whatever padding follows. This changes what the network says; fine-tuning follows.

    Raises:
        InputError: the network cannot be traced.
    """
    network = _plain_copy(model)
    masks = {}
    for path, use in ChannelFlow(network, example_inputs).uses.items():
        varies, norm = use.inputs.constants.isnan(), network.get_submodule(path)
        if isinstance(norm, NORMS) and norm.affine and not varies.all():
            masks[path] = varies
    return masks


def _plain_copy(model: nn.Module) -> nn.Module:
    network = copy.deepcopy(model).cpu().eval()
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            make_plain(module)
    return network


def _cut(layer: nn.Module, use: LayerUse, kept: Tensor) -> None:
    """Make `layer` smaller, and add to its bias what inputs that go contributed."""
    inputs, outputs = kept[use.inputs.ids], kept[use.outputs.ids]
    if isinstance(layer, NORMS):
        layer.num_features = int(outputs.sum())
        layer.running_mean, layer.running_var = layer.running_mean[outputs], layer.running_var[outputs]
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = int(inputs.sum()), int(outputs.sum())
    else:
        layer.in_channels, layer.out_channels = int(inputs.sum()), int(outputs.sum())
    if use.folds is not None:
        folded = use.folds & ~inputs
        constant = tap_sums(layer.weight)[:, folded] @ use.inputs.constants[folded]
        if constant.any():
            layer.bias = nn.Parameter(bias_of(layer) + constant)
        layer.weight = nn.Parameter(layer.weight[:, inputs])
    elif not isinstance(layer, NORMS):
        layer.groups = layer.in_channels
    for name in ("weight", "bias"):
        parameter = getattr(layer, name)
        if parameter is not None:
            setattr(layer, name, nn.Parameter(parameter[outputs]))
