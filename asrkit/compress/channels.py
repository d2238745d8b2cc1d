"""Which channels of a network depend on which, and which have one known value whatever the input is.

The operations of the network are followed from its inputs to its outputs (torch.fx). Each channel that a layer writes
gets a number; what works channel by channel hands the numbers on, and a sum makes the channels that it adds one.
"""

from collections import Counter
from dataclasses import dataclass
from math import nan, prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from asrkit.compress.sparsity import NORMS, PRUNABLE
from asrkit.errors import InputError

# Modules, functions and methods by name, in lower case without underscores
ELEMENTWISE = set(
    """add iadd sub mul imul div truediv relu relu6 leakyrelu elu celu selu silu gelu mish softplus sigmoid tanh
    hardtanh hardswish hardsigmoid clamp identity dropout dropout1d dropout2d alphadropout clone contiguous""".split()
)
POOLING = {f"{kind}pool{n}d" for kind in ("max", "avg", "adaptivemax", "adaptiveavg") for n in (1, 2)}
SHAPE_ONLY = {"size", "dim", "getattr"}


@dataclass
class Channels:
    """The channels of one tensor, C of them."""

    ids: Tensor
    """(C,) int: which channels of the network they are."""
    constants: Tensor
    """(C,): the value that a channel has at all places; NaN if it has more than one."""
    axis: int


@dataclass
class LayerUse:
    """A layer with weights, and the channels that it reads and writes."""

    inputs: Channels
    outputs: Channels
    folds: Tensor | None = None
    """(C,) bool: inputs that can be folded into the bias. None for layers that work channel by channel."""
    reads: Tensor | None = None
    """(outputs, inputs) bool: weights that are not zero."""


class ChannelFlow:
    """The layers of a network, by path, with the channels that they read and write, in `uses`.

    Args:
        network: in evaluation mode, its weights plain parameters on the CPU.
        example_inputs: of one run.

    Raises:
        InputError: torch.fx cannot trace the network.
    """

    def __init__(self, network: nn.Module, example_inputs: tuple[Tensor, ...]):
        self.network = network
        self.uses: dict[str, LayerUse] = {}
        self._channels: dict[fx.Node, Channels] = {}
        self._count = 0
        self._joined: list[tuple[Tensor, Tensor]] = []  # pairs of ids (C,) that go together
        self._pinned: list[Tensor] = []  # ids that stay
        graph = _trace(network, example_inputs)
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        self._once = {path for path, times in calls.items() if times == 1}
        for node in graph.nodes:
            self._visit(node)

    def kept(self) -> Tensor:
        """Return which channels stay, bool by id: all that are read, and at least one of each layer."""
        root = self._roots()
        kept = torch.zeros(self._count, dtype=torch.bool)
        for ids in self._pinned:
            kept[root[ids]] = True
        readers = [use for use in self.uses.values() if use.folds is not None]
        while True:
            before = int(kept.sum())
            for use in readers:
                read = use.reads[kept[root[use.outputs.ids]]].any(0) & ~use.folds
                kept[root[use.inputs.ids[read]]] = True
            if int(kept.sum()) == before:
                empty = [use for use in readers if not kept[root[use.outputs.ids]].any()]
                if not empty:
                    return kept[root]
                kept[root[empty[0].outputs.ids[0]]] = True

    def _roots(self) -> Tensor:
        """Return the least id (count,) of the channels that go together with each."""
        root = list(range(self._count))

        def find(channel: int) -> int:
            while root[channel] != channel:
                root[channel] = channel = root[root[channel]]
            return channel

        for ours, theirs in self._joined:
            for one, other in zip(ours.tolist(), theirs.tolist(), strict=True):
                one, other = find(one), find(other)
                root[max(one, other)] = min(one, other)
        return torch.tensor([find(channel) for channel in range(self._count)], dtype=torch.long)

    def _visit(self, node: fx.Node) -> None:
        """Follow the channels through one operation; where that is impossible, those that it reads stay."""
        name = self._name(node)
        tensors = [self._channels[read] for read in node.all_input_nodes if read in self._channels]
        unknown = [read for read in node.all_input_nodes if "tensor_meta" in read.meta and read not in self._channels]
        outputs = None
        if isinstance(self._module(node), PRUNABLE):
            outputs = self._layer(node, tensors[0] if tensors else None)
        elif tensors and not unknown and isinstance(node.meta.get("tensor_meta"), TensorMetadata):
            outputs = self._step(node, name, tensors)
        if outputs is not None:
            self._channels[node] = outputs
        elif name not in SHAPE_ONLY:
            self._pinned += [channels.ids for channels in tensors]

    def _step(self, node: fx.Node, name: str, tensors: list[Channels]) -> Channels | None:
        """Follow the channels of all that `node` reads through an operation without weights, or a batch norm."""
        first = tensors[0]
        if isinstance(self._module(node), NORMS):
            return self._norm(node, first)
        if name in ELEMENTWISE:
            return self._elementwise(node, tensors)
        if name in POOLING and first.axis == 1 and len(_shape(node)) == int(name[-2]) + 2:
            padded = "avg" in name and "adaptive" not in name and not self._averages_inside(node)
            return Channels(first.ids, _zero_or_nan(first.constants) if padded else first.constants, 1)
        if name == "cat":
            return self._concatenation(node)
        if name in ("flatten", "view", "reshape"):
            return self._flat(node, name, first)
        if name in ("transpose", "permute", "mean"):
            axis = _moved_axis(node, name, first.axis)
            return None if axis is None else Channels(first.ids, first.constants, axis)
        return None

    def _layer(self, node: fx.Node, inputs: Channels | None) -> Channels | None:
        layer, shape = self._module(node), _shape(node)
        axis = len(shape) - 1 if isinstance(layer, nn.Linear) else 1
        batched = isinstance(layer, nn.Linear) or len(shape) == layer.weight.ndim
        if not batched or node.target not in self._once or (inputs is not None and inputs.axis != axis):
            return None
        if getattr(layer, "groups", 1) > 1:
            depthwise = inputs is not None and layer.groups == layer.in_channels
            return self._depthwise(node, layer, inputs) if depthwise else None
        if inputs is None:
            inputs = Channels(self._new(layer.weight.shape[1]), torch.full((layer.weight.shape[1],), nan), axis)
            self._pinned.append(inputs.ids)
        folds = (_zero_or_nan(inputs.constants) if _pads_with_zeros(layer) else inputs.constants).isfinite()
        reads = (layer.weight != 0).reshape(*layer.weight.shape[:2], -1).any(-1)
        constants = bias_of(layer) + tap_sums(layer.weight) @ inputs.constants.where(folds, 0)
        constants = constants.masked_fill((reads & ~folds).any(-1), nan)
        self.uses[node.target] = LayerUse(inputs, Channels(self._new(len(reads)), constants, axis), folds, reads)
        return self.uses[node.target].outputs

    def _depthwise(self, node: fx.Node, layer: nn.Module, inputs: Channels) -> Channels:
        """Each input channel has its own filters and goes with them."""
        times = layer.out_channels // layer.in_channels
        constants = _zero_or_nan(inputs.constants) if _pads_with_zeros(layer) else inputs.constants
        through = tap_sums(layer.weight)[:, 0] * constants.repeat_interleave(times)
        constants = bias_of(layer) + through.masked_fill((layer.weight == 0).flatten(1).all(1), 0)
        outputs = Channels(inputs.ids.repeat_interleave(times), constants, 1)
        self.uses[node.target] = LayerUse(inputs, outputs)
        return outputs

    def _norm(self, node: fx.Node, inputs: Channels) -> Channels | None:
        norm = self._module(node)
        if node.target not in self._once or inputs.axis != 1 or norm.running_mean is None:
            return None
        parameters = norm.running_mean, norm.running_var, norm.weight, norm.bias
        values = nn.functional.batch_norm(inputs.constants[None], *parameters, eps=norm.eps)[0]
        if norm.affine:
            values = torch.where(norm.weight == 0, norm.bias, values)
        self.uses[node.target] = LayerUse(inputs, Channels(inputs.ids, values, 1))
        return self.uses[node.target].outputs

    def _elementwise(self, node: fx.Node, tensors: list[Channels]) -> Channels | None:
        alike = {_shape(read) + (self._channels[read].axis,) for read in node.all_input_nodes if read in self._channels}
        if len(alike) > 1 or len(tensors) < len(node.all_input_nodes):
            return None
        self._joined += [(tensors[0].ids, other.ids) for other in tensors[1:]]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda read: self._channels[read].constants.clone())
        if node.op == "call_method":
            values = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            values = (self._module(node) or node.target)(*args, **kwargs)
        return Channels(tensors[0].ids, values, tensors[0].axis)

    def _concatenation(self, node: fx.Node) -> Channels | None:
        parts = [self._channels[read] for read in _argument(node, 0, "tensors")]
        axis = _argument(node, 1, "dim", 0) % len(_shape(node))
        if any(part.axis != axis for part in parts):
            return None
        return Channels(torch.cat([part.ids for part in parts]), torch.cat([part.constants for part in parts]), axis)

    def _flat(self, node: fx.Node, name: str, inputs: Channels) -> Channels | None:
        """(N, C, H, W) to (N, C * H * W), however the program writes it, as long as it does not count channels."""
        before, after = _shape(node.all_input_nodes[0]), _shape(node)
        if inputs.axis != 1 or after != (before[0], prod(before[1:])):
            return None
        sizes = node.args[1] if isinstance(node.args[-1], (list, tuple)) else node.args[1:]
        if name != "flatten" and sizes[-1] != -1:
            return None
        places = prod(before[2:])
        return Channels(inputs.ids.repeat_interleave(places), inputs.constants.repeat_interleave(places), 1)

    def _averages_inside(self, node: fx.Node) -> bool:
        """Whether an average pooling averages over nothing but the input."""
        pool = self._module(node)
        if pool is None:
            padding, divisor = _argument(node, 3, "padding", 0), _argument(node, 6, "divisor_override")
        else:
            padding, divisor = pool.padding, getattr(pool, "divisor_override", None)
        return padding in (0, (0,), (0, 0)) and divisor is None

    def _new(self, count: int) -> Tensor:
        self._count += count
        return torch.arange(self._count - count, self._count)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.network.get_submodule(node.target) if node.op == "call_module" else None

    def _name(self, node: fx.Node) -> str:
        module = self._module(node)
        if module is not None:
            name = type(module).__name__
        else:
            name = getattr(node.target, "__name__", str(node.target))
        return name.replace("_", "").lower()


def tap_sums(weight: Tensor) -> Tensor:
    """Return the effect (outputs, inputs) of channels that are constant."""
    return weight.reshape(*weight.shape[:2], -1).sum(-1)


def bias_of(layer: nn.Module) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _trace(network: nn.Module, example_inputs: tuple[Tensor, ...]) -> fx.Graph:
    """Return the operations of `network`, with the shapes of what they make."""
    try:
        module = fx.symbolic_trace(network)
    except Exception as error:  # whatever the program does with a tensor that has no values
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"network cannot be shrunk: torch.fx cannot trace it ({reason})") from error
    ShapeProp(module).propagate(*(tensor.cpu() for tensor in example_inputs))
    return module.graph


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _moved_axis(node: fx.Node, name: str, axis: int) -> int | None:
    """Return which axis `axis` is after a transposition, or a mean over others; None if it is averaged itself."""
    ndim = len(_shape(node.all_input_nodes[0]))
    if name == "transpose":
        swapped = {_argument(node, 1, "dim0") % ndim, _argument(node, 2, "dim1") % ndim}
        return sum(swapped) - axis if axis in swapped and len(swapped) == 2 else axis
    if name == "permute":
        order = node.args[1] if isinstance(node.args[1], (list, tuple)) else node.args[1:]
        return [dim % ndim for dim in order].index(axis)
    dims = _argument(node, 1, "dim", range(ndim))
    dims = [dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)]
    before = 0 if _argument(node, 2, "keepdim", False) else sum(dim < axis for dim in dims)
    return None if axis in dims else axis - before


def _zero_or_nan(constants: Tensor) -> Tensor:
    """Return what is still a constant where zeros are put around it."""
    return constants.masked_fill(constants != 0, nan)


def _pads_with_zeros(layer: nn.Module) -> bool:
    padding = getattr(layer, "padding", 0)  # a linear layer has none
    if padding == "same":
        padding = [size - 1 for size in layer.kernel_size]
    return padding not in (0, "valid") and any(padding) and layer.padding_mode == "zeros"
