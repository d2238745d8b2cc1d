"""Penalties that drive groups of weights to zero, as hooks of the training loop that add to the gradient of the loss.

With m the mean square of a group of n weights, M that of its layer before this training, and N the number of all
penalised weights, the penalties are strength / N times

    reweighted   Σ n log(m / M + ε), of which the tangent α m / M at the last refresh is taken, α = 1 / (m / M + ε):
                 weak groups are drawn to zero ever more, strong ones hardly at all (Gong et al., 2111.11581, after
                 Candes et al., "Enhancing sparsity by reweighted l1 minimization", 0711.1612)
    group lasso  Σ n √(m / M) (Yuan and Lin, "Model selection with grouped variables", 2006), by its subgradient
    ADMM         ρ/2 Σ (W - Z + U)² / M, Z the nearest weights to W + U that have ratios fixed beforehand, U the sum of
                 the differences W - Z (Zhang et al., "A systematic DNN weight pruning framework", 1804.03294)

Each weight thus pays the same in groups of all sizes, and, by M, in layers of all scales, which batch norm leaves
arbitrary. What a layer can spare is up to the loss: optimisers divide the sum of both gradients by its usual size, so
that where the loss is insensitive the penalty prevails. (Taken apart from it, as weight decay is by AdamW, the penalty
removed the same part of every layer, and accuracy with it.) Where a ratio is asked for, strength is adapted at each
refresh until that part of the weights is in the dead zone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asrkit.compress.mapping import Mapping
from asrkit.compress.schemes import Scheme, make_mask, weight_scores
from asrkit.compress.sparsity import conv_groups
from asrkit.training.state import Hook, Progress, TrainingState

ADMM_GROWTH = 1000.0  # factor of ρ, 1 at first, from the first refresh to the last
EPSILON = 0.1  # of the reweighted penalty; it should be below what groups that stay have (Candes et al.), but not much
SMALLEST = 0.01  # of the group lasso's √(m / M): nearer to zero it is quadratic, so that its gradient has a bound


@dataclass(frozen=True)
class PruningConfig:
    """How it is decided which weights go."""

    method: Literal["reweighted", "group_lasso", "admm", "magnitude"] = "reweighted"
    """magnitude: what is smallest in the trained network goes at once; the others train it with a penalty first."""
    ratio: float | None = None
    """Part of the weights that goes, over all layers that the mapping gives no ratio; one threshold on all of them
    leaves each layer's share to the training. None: what the training has brought into the dead zone goes."""
    strength: float = 1.0
    """Factor of the penalty, nats a label; where ratios are given, only its first value."""
    refreshes: int = 16
    """Times that the penalty is adapted to the weights."""
    dead_zone: float = 0.1
    """Root mean square of a group, relative to its layer's before the training, below which it is as good as zero."""

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be from 0 to below 1, not {self.ratio}")
        if self.strength <= 0 or self.refreshes < 1 or not 0 < self.dead_zone < 1:
            raise ValueError("strength and refreshes must be above 0, dead_zone between 0 and 1")


class Regulariser(Hook):
    """A penalty on the groups of weights of a network, whose gradient is added to that of the loss.

    Args:
        mapping: schemes of the layers, and their ratios if those are fixed beforehand.
        scales: root mean square of the weights of each layer, before the training.
        config: strength, ratio over all layers, and number of refreshes, which come at equal distances.
        done: tells how much of the training is done, from 0 to 1.
        part: path of the network in the model that is trained.
    """

    def __init__(
        self,
        mapping: Mapping,
        scales: dict[str, float],
        config: PruningConfig,
        done: Callable[[Progress], float],
        part: str = "",
    ):
        self.mapping = {path: entry for path, entry in mapping.items() if entry.scheme.kind != "dense"}
        self.scales, self.config, self.done, self.part = scales, config, done, part
        self.strength, self.refreshed = config.strength, 0
        self.tensors: dict[str, dict[str, Tensor]] = {path: {} for path in self.mapping}
        """What the penalty of each layer is made of, by name; saved in checkpoints."""

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        network = state.model.get_submodule(self.part)
        layers = {path: network.get_submodule(path) for path in self.mapping}
        if self.refreshed <= min(self.done(state.progress), 1 - 1e-9) * self.config.refreshes:
            if self.refreshed:
                self.adapt(layers)
            for path, layer in layers.items():
                self.refresh(path, layer)
            self.refreshed += 1
        factor = self.strength / sum(layer.weight.numel() for layer in layers.values())
        for path, layer in layers.items():
            layer.weight.grad.add_(self.gradient(path, layer), alpha=factor)

    def adapt(self, layers: dict[str, nn.Module]) -> None:
        """Make the penalty stronger if more weights are outside the dead zone than shall be kept, else weaker."""
        alive = kept = 0.0
        for path, layer in layers.items():
            entry, size = self.mapping[path], layer.weight.numel()
            ratio = self.config.ratio if entry.ratio is None else entry.ratio
            if ratio is None:
                return
            kept += (1 - ratio) * size
            alive += (self.scores(path, layer) >= self.config.dead_zone).sum().item()
        self.strength *= min(max((alive / kept) ** 0.5, 0.5), 2.0)

    def scores(self, path: str, layer: nn.Module) -> Tensor:
        return relative_scores(layer, self.mapping[path].scheme, self.scales[path])

    def refresh(self, path: str, layer: nn.Module) -> None:
        """Adapt what is kept of a layer in `tensors` to its weight."""

    def gradient(self, path: str, layer: nn.Module) -> Tensor:
        """Return the gradient of the penalty, at strength N, on the weight of a layer."""
        raise NotImplementedError

    def stored(self, path: str, name: str, layer: nn.Module) -> Tensor:
        """Return one of `tensors` on the layer's device."""
        return self.tensors[path][name].to(layer.weight.device)

    def on_save(self, state: TrainingState) -> dict[str, Any]:
        return {"refreshed": self.refreshed, "strength": self.strength, "tensors": self.tensors}

    def on_load(self, saved: dict[str, Any]) -> None:
        self.refreshed, self.strength, self.tensors = saved["refreshed"], saved["strength"], saved["tensors"]


class Reweighted(Regulariser):
    """The reweighted penalty; a weight of two groups pays in the weaker one."""

    def refresh(self, path: str, layer: nn.Module) -> None:
        alpha = 1 / (self.scores(path, layer).square() + EPSILON)
        self.tensors[path]["factor"] = 2 * alpha / self.scales[path] ** 2

    def gradient(self, path: str, layer: nn.Module) -> Tensor:
        return self.stored(path, "factor", layer) * layer.weight


class GroupLasso(Regulariser):
    """The group lasso; a weight of two groups pays in the weaker one."""

    def gradient(self, path: str, layer: nn.Module) -> Tensor:
        return layer.weight / (self.scores(path, layer).clamp_min(SMALLEST) * self.scales[path] ** 2)


class Admm(Regulariser):
    """ADMM. ρ grows at each refresh, and U, whose unit is 1 / ρ, shrinks with it."""

    def adapt(self, layers: dict[str, nn.Module]) -> None:
        self.strength *= self.growth

    @property
    def growth(self) -> float:
        return ADMM_GROWTH ** (1 / max(1, self.config.refreshes - 1))

    def refresh(self, path: str, layer: nn.Module) -> None:
        weight, entry = layer.weight, self.mapping[path]
        dual = torch.zeros_like(weight)
        if self.refreshed:
            dual = (self.stored(path, "U", layer) + weight - self.stored(path, "Z", layer)) / self.growth
        target = weight + dual
        mask = make_mask(target, entry.scheme, entry.ratio, conv_groups(layer))
        self.tensors[path] = {"U": dual, "Z": target * mask}

    def gradient(self, path: str, layer: nn.Module) -> Tensor:
        target = self.stored(path, "Z", layer) - self.stored(path, "U", layer)
        return (layer.weight - target) / self.scales[path] ** 2


REGULARISERS = {"reweighted": Reweighted, "group_lasso": GroupLasso, "admm": Admm}


def relative_scores(layer: nn.Module, scheme: Scheme, scale: float) -> Tensor:
    """Return the root mean square of each weight's group over `scale`, 0 outside the pattern."""
    return weight_scores(layer.weight, scheme, conv_groups(layer)).clamp_min(0) / scale
