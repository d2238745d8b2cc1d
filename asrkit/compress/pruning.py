"""Pruning a trained network: what matters least goes, and what stays is trained on.

`prune_network` decides what goes, after a training with a penalty (`asrkit.compress.regularisers`) or at once;
`finetune_network` trains the rest. Both run the one training loop, so they work for any model that it trains.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from asrkit.compress.mapping import Mapping, write_mapping
from asrkit.compress.regularisers import REGULARISERS, PruningConfig, relative_scores
from asrkit.compress.schemes import check, check_ratio, make_mask
from asrkit.compress.sparsity import add_masks, conv_groups, global_ratios, prunable_layers, remove_masks
from asrkit.errors import InputError
from asrkit.models.checkpoint import load_weights, save_weights
from asrkit.training.config import TrainingConfig
from asrkit.training.distributed import rank_and_world
from asrkit.training.loop import Loader, train
from asrkit.training.state import Progress

LEAST_PATTERN_RATIO = 5 / 9
TINY = 1e-12  # in place of a size that is zero


def prune_network(
    model: nn.Module,
    train_data: Loader,
    mapping: Mapping,
    pruning: PruningConfig,
    training: TrainingConfig,
    folder: Path,
    part: str = "",
) -> Mapping:
    """Prune `model`, in place, into `folder`: `model.pt` with plain zeros and `mapping.yaml` with the ratios reached.

    The training with a penalty is in `folder/regularised`; a killed run goes on from there when it is given the same
    model again.

    Args:
        model: trained, as the training loop wants it.
        train_data: to train with the penalty.
        mapping: the scheme of each layer that is to be pruned, and its ratio where that is not left to training.
        pruning: how it is decided what goes.
        training: of the model with the penalty.
        folder: experiment directory.
        part: path of the submodule of `model` of whose layers the mapping speaks, for instance "network".

    Returns:
        the mapping, with the ratios reached.

    Raises:
        InputError: a layer is not there or cannot take its scheme, or the training fails.
    """
    network = model.get_submodule(part)
    check_mapping(network, mapping)
    if all(entry.scheme.kind == "dense" for entry in mapping.values()):
        raise InputError("the mapping prunes no layer")
    scales = scales_of(network, mapping)
    if pruning.ratio is not None or pruning.method in ("admm", "magnitude"):
        mapping = with_ratios(network, mapping, scales, pruning)
    if pruning.method != "magnitude":
        hook = REGULARISERS[pruning.method](mapping, scales, pruning, _done(training, train_data), part)
        train(model, train_data, None, training, folder / "regularised", [hook])
    mapping = with_ratios(network, mapping, scales, pruning)
    add_masks(network, masks_at(network, mapping))
    remove_masks(network)
    layers = prunable_layers(network)
    mapping = {path: replace(entry, ratio=_part_of_zeros(layers[path])) for path, entry in mapping.items()}
    if rank_and_world()[0] == 0:
        save_weights(model, folder / "model.pt")
        write_mapping(mapping, folder / "mapping.yaml")
    return mapping


def finetune_network(
    model: nn.Module, train_data: Loader, valid_data: Loader | None, training: TrainingConfig, folder: Path
) -> None:
    """Train a pruned model, its zeros staying zero, into `folder/model.pt`, whose weights are plain again.

    Masks that the model has already, of batch norms for instance, are kept as well. The training is in
    `folder/finetuning`; a killed run goes on from there when it is given the same model again.

    Raises:
        InputError: no weight is zero, or the training fails.
    """
    weights = {path: layer.weight for path, layer in prunable_layers(model).items()}
    masks = {path: weight != 0 for path, weight in weights.items() if not weight.all()}
    if not masks:
        raise InputError("the model is not pruned: no weight is zero")
    add_masks(model, masks)
    train(model, train_data, valid_data, training, folder / "finetuning")
    if rank_and_world()[0] == 0:
        load_weights(model, folder / "finetuning" / "model.pt")
        remove_masks(model)
        save_weights(model, folder / "model.pt")


def quick_accuracy(
    model: nn.Module,
    train_data: Loader,
    accuracy: Callable[[nn.Module], float],
    mapping: Mapping,
    training: TrainingConfig,
    part: str = "",
) -> float:
    """Return the accuracy of a copy of `model`, pruned at once by magnitude and trained for a moment.

    Args:
        model: trained; stays as it is.
        train_data: to train the copy.
        accuracy: measures a model.
        mapping: schemes, and the ratio of each layer.
        training: of the copy, some tens of steps.
        part: as in `prune_network`.

    Raises:
        InputError: a layer is not there, or cannot take its scheme or ratio.
    """
    pruned = copy.deepcopy(model)
    network = pruned.get_submodule(part)
    check_mapping(network, mapping)
    add_masks(network, masks_at(network, mapping))
    with TemporaryDirectory() as folder:
        train(pruned, train_data, None, training, Path(folder))
    return accuracy(pruned)


# Details


def check_mapping(network: nn.Module, mapping: Mapping) -> None:
    """Raise InputError for the first layer that is not there or that cannot take its scheme or ratio."""
    layers = prunable_layers(network)
    for path, entry in mapping.items():
        if path not in layers:
            raise InputError(f"layer {path!r}: not a linear or convolution layer of this network")
        try:
            check(entry.scheme, layers[path].weight)
            if entry.ratio is not None:
                check_ratio(entry.scheme, entry.ratio)
        except InputError as error:
            raise InputError(f"layer {path!r}: {error}") from None


def scales_of(network: nn.Module, mapping: Mapping) -> dict[str, float]:
    """Return the root mean square of the weights of each layer of the mapping."""
    weights = {path: network.get_submodule(path).weight for path in mapping}
    return {path: max(weight.square().mean().sqrt().item(), TINY) for path, weight in weights.items()}


def with_ratios(network: nn.Module, mapping: Mapping, scales: dict[str, float], pruning: PruningConfig) -> Mapping:
    """Return the mapping with a ratio for every layer: those that it leaves open are read off the weights.

    `scales` are those of the layers before the training.

    Raises:
        InputError: the method needs a ratio, and there is none.
    """
    layers = prunable_layers(network)
    free = {path: entry.scheme for path, entry in mapping.items() if entry.ratio is None}
    free = {path: scheme for path, scheme in free.items() if scheme.kind != "dense"}
    if free and pruning.ratio is None and pruning.method in ("admm", "magnitude"):
        raise InputError(f"method {pruning.method} does not find ratios: give one, over all or for each layer")
    if pruning.ratio is not None:
        ratios = global_ratios(layers, free, pruning.ratio)
    else:
        scores = {path: relative_scores(layers[path], scheme, scales[path]) for path, scheme in free.items()}
        ratios = {path: (of_layer < pruning.dead_zone).float().mean().item() for path, of_layer in scores.items()}
        ratios = {path: min(ratio, 1 - 1 / scores[path].numel()) for path, ratio in ratios.items()}
    ratios = {path: max(r, LEAST_PATTERN_RATIO) if free[path].kind == "pattern" else r for path, r in ratios.items()}
    return {path: replace(entry, ratio=ratios.get(path, entry.ratio or 0.0)) for path, entry in mapping.items()}


def masks_at(network: nn.Module, mapping: Mapping) -> dict[str, Tensor]:
    """Return the masks of the layers at their ratios, what is smallest going first."""
    layers = prunable_layers(network)
    return {
        path: make_mask(layers[path].weight, entry.scheme, entry.ratio, conv_groups(layers[path]))
        for path, entry in mapping.items()
        if entry.scheme.kind != "dense"
    }


def _done(config: TrainingConfig, data: Loader) -> Callable[[Progress], float]:
    """Return the function that tells how much of a training is done."""
    if config.steps:
        return lambda progress: progress.step / config.steps
    return lambda progress: progress.hours / (config.epochs * data.hours)


def _part_of_zeros(layer: nn.Module) -> float:
    return 1 - layer.weight.count_nonzero().item() / layer.weight.numel()
