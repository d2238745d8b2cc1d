"""Masks on the weights of a network, and how sparse they make it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asrkit.compress.schemes import Scheme, check, check_ratio, weight_scores
from asrkit.errors import InputError

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Masked(nn.Module):
    """A parametrisation that keeps pruned weights, and with them their gradients, at zero."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear and convolution layers of `model` by their path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, PRUNABLE)}


def conv_groups(layer: nn.Module) -> int:
    """Return the groups of a convolution, 1 for a linear layer."""
    return getattr(layer, "groups", 1)


def add_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Keep the weights of the layers `masks` (path -> bool, of the shape of the weight) at zero where these are False.

    The mask is a buffer beside the parameter, which stays the same object for optimisers; weights that are masked
    already get the new mask, and may come back with their former value. The mask of a batch norm is for its bias too
    (`asrkit.compress.shrink.silent_channels`).

    Raises:
        InputError: a path is no layer that can be pruned, or a mask has another shape than its weight.
    """
    norms = {path: norm for path, norm in model.named_modules() if isinstance(norm, NORMS) and norm.affine}
    layers = prunable_layers(model) | norms
    for path, mask in masks.items():
        if path not in layers:
            raise InputError(f"layer {path!r}: not a linear or convolution layer of this network")
        if mask.shape != layers[path].weight.shape:
            raise InputError(f"layer {path!r}: its weight is {_text(layers[path].weight)}, its mask {_text(mask)}")
    for path, mask in masks.items():
        for name in ("weight", "bias") if path in norms else ("weight",):
            _add_mask(layers[path], name, mask)


def remove_masks(model: nn.Module) -> None:
    """Make masked weights plain parameters again, in which what was pruned is zero."""
    for layer in list(model.modules()):
        if _masked(layer, "weight") is not None:
            make_plain(layer)


@torch.no_grad()
def make_plain(layer: nn.Module) -> None:
    """Turn what is parametrised in `layer` (masks, weight norm) into plain parameters.

    `parametrize.remove_parametrizations` would take the attribute from the class, and so from all deep copies.
    """
    plain = {}
    for name, chain in layer.parametrizations.items():
        value = getattr(layer, name)
        plain[name] = getattr(chain, "original", None)
        if plain[name] is None:  # weight norm has two
            plain[name] = nn.Parameter(value)
        plain[name].copy_(value)
    del layer.parametrizations
    layer.__class__ = layer.__class__.__bases__[0]
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer._parameters.update(plain | others)  # the order of `parameters()` is that of a new layer


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of all weights of `model` that have one, path -> bool."""
    masked = {path: _masked(layer, "weight") for path, layer in model.named_modules()}
    return {path: of_layer.mask for path, of_layer in masked.items() if of_layer is not None}


@torch.no_grad()
def global_ratios(layers: Mapping[str, nn.Module], schemes: Mapping[str, Scheme], ratio: float) -> dict[str, float]:
    """Return the ratio of each layer such that one threshold over all of them removes `ratio` of all their weights.

    What the threshold is set on is the layer-adaptive score: the square of a weight's score over the sum of all squares
    in its layer that are not smaller, which makes layers of different scale and size comparable (Lee et al.,
    "Layer-adaptive sparsity for the magnitude-based pruning", 2021). Dense layers are passed over.

    Raises:
        InputError: a scheme that its layer cannot take, or a ratio out of range.
    """
    check_ratio(Scheme("unstructured"), ratio)
    scores = {}
    for path, scheme in schemes.items():
        if scheme.kind != "dense":
            check_layer(path, layers[path], scheme)
            scores[path] = _adaptive_scores(weight_scores(layers[path].weight, scheme, conv_groups(layers[path])))
    if not scores:
        return {}
    everything = torch.cat(list(scores.values()))
    threshold = everything.kthvalue(max(1, round(ratio * len(everything)))).values
    return {
        path: min((of_layer <= threshold).float().mean().item(), 1 - 1 / len(of_layer))
        for path, of_layer in scores.items()
    }


def check_layer(path: str, layer: nn.Module, scheme: Scheme) -> None:
    """Refuse a scheme that the layer `path` cannot take.

    Raises:
        InputError: it cannot; names the layer.
    """
    try:
        check(scheme, layer.weight)
    except InputError as error:
        raise InputError(f"layer {path!r}: {error}") from None


@dataclass(frozen=True)
class LayerSparsity:
    """How much of one layer is left."""

    path: str
    kind: str
    """linear, conv1d or conv2d."""
    shape: tuple[int, ...]
    """Of the weight."""
    scheme: Scheme
    weights: int
    kept: int
    """Weights that are not zero."""
    macs: int
    """Multiply-accumulates of the dense layer; 0 if they were not counted."""
    macs_kept: int
    """Those with weights that are not zero."""

    @property
    def ratio(self) -> float:
        """The part of the weights that is zero."""
        return 1 - self.kept / max(1, self.weights)


@torch.no_grad()
def report(
    model: nn.Module, inputs: tuple[Tensor, ...] = (), schemes: Mapping[str, Scheme] | None = None
) -> list[LayerSparsity]:
    """Return what is left of each layer that can be pruned, masked or with plain zeros, in the order of the network.

    Args:
        model: any network.
        inputs: of one run of the network, for which multiply-accumulates are counted; without them they are 0.
        schemes: how layers were pruned, by path; the others are called dense.
    """
    positions = _positions(model, inputs) if inputs else {}
    rows = []
    for path, layer in prunable_layers(model).items():
        weight = layer.weight
        kept, places = int(weight.count_nonzero()), positions.get(path, 0)
        kind = next(base.__name__ for base in PRUNABLE if isinstance(layer, base)).lower()
        scheme = (schemes or {}).get(path, Scheme())
        macs = weight.numel() * places, kept * places
        rows.append(LayerSparsity(path, kind, tuple(weight.shape), scheme, weight.numel(), kept, *macs))
    return rows


def total(rows: Iterable[LayerSparsity]) -> LayerSparsity:
    """Return the sum over layers, as a layer called "total"."""
    rows = list(rows)
    sums = (sum(getattr(row, name) for row in rows) for name in ("weights", "kept", "macs", "macs_kept"))
    return LayerSparsity("total", "network", (), Scheme(), *sums)


def _add_mask(layer: nn.Module, name: str, mask: Tensor) -> None:
    masked = _masked(layer, name)
    if masked is not None:
        masked.mask.copy_(mask)
    else:
        parametrize.register_parametrization(layer, name, Masked(mask.to(getattr(layer, name).device, torch.bool)))


def _masked(layer: nn.Module, name: str) -> Masked | None:
    chain = layer.parametrizations[name] if parametrize.is_parametrized(layer, name) else ()
    return next((step for step in chain if isinstance(step, Masked)), None)


def _adaptive_scores(scores: Tensor) -> Tensor:
    """Return the layer-adaptive scores of `scores` (any shape) as a sorted vector; those below 0 stay."""
    ordered = scores.flatten().double().sort().values
    squares = ordered.square().masked_fill(ordered < 0, 0)
    return torch.where(ordered < 0, ordered, squares / squares.flip(0).cumsum(0).flip(0).clamp_min(1e-300))


def _positions(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """Return how often each layer uses each of its weights in one run of the network."""
    positions = {}

    def count(path: str, layer: nn.Module, output: Tensor) -> None:
        features = layer.out_channels if hasattr(layer, "out_channels") else layer.out_features
        positions[path] = positions.get(path, 0) + output.numel() // features

    handles = [
        layer.register_forward_hook(lambda layer, _, output, path=path: count(path, layer, output))
        for path, layer in prunable_layers(model).items()
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return positions


def _text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
