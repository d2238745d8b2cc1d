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
removed the same part of every layer, and accuracy with it.) The strength of layers whose ratio is given is adapted at
each refresh so that the weights outside the dead zone become fewer by an equal factor each time. Groups are slow, so it
follows what will be at the next refresh if it goes on as it does, or it would grow until the network is lost.
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
RAMP = 0.8  # part of the training after which the ratio asked for shall be reached
SAVED = ("refreshed", "strength", "alive", "tensors")  # attributes of a penalty that are kept in checkpoints
SMALLEST = 0.01  # of the group lasso's √(m / M): nearer to zero it is quadratic, so that its gradient has a bound


@dataclass(frozen=True)
class PruningConfig:
    """How it is decided which weights go."""

    method: Literal["reweighted", "group_lasso", "admm", "magnitude"] = "reweighted"
    """magnitude: what is smallest in the trained network goes at once; the others train it with a penalty first."""
    ratio: float | None = None
    """Part of the weights that goes, over all layers that the mapping gives no ratio; one threshold on all of them, in
    the trained network, says each layer's share. None: what the training has brought into the dead zone goes."""
    strength: float = 1.0
    """Factor of the penalty, nats a label; where ratios are given, only its first value."""
    refreshes: int = 32
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
        self.refreshed = 0
        self.strength = dict.fromkeys(self.mapping, config.strength)
        self.alive = dict.fromkeys(self.mapping, 1.0)
        """The part of the weights outside the dead zone at the last refresh."""
        self.tensors: dict[str, dict[str, Tensor]] = {path: {} for path in self.mapping}
        """What the penalty of each layer is made of, by name."""

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        network = state.model.get_submodule(self.part)
        layers = {path: network.get_submodule(path) for path in self.mapping}
        if self.refreshed <= min(self.done(state.progress), 1 - 1e-9) * self.config.refreshes:
            for path, layer in layers.items():
                if self.refreshed:
                    self.adapt(path, layer)
                self.refresh(path, layer)
            self.refreshed += 1
        size = sum(layer.weight.numel() for layer in layers.values())
        for path, layer in layers.items():
            layer.weight.grad.add_(self.gradient(path, layer), alpha=self.strength[path] / size)

    def adapt(self, path: str, layer: nn.Module) -> None:
        """Make the penalty stronger if more weights will be outside the dead zone than shall be then, else weaker."""
        ratio = self.mapping[path].ratio
        if ratio is None:
            return
        alive = (self.scores(path, layer) >= self.config.dead_zone).float().mean().item()
        expected = alive * alive / (self.alive[path] or 1.0)
        grown = min((self.refreshed + 1) / self.config.refreshes / RAMP, 1.0)
        self.strength[path] *= min(max(expected / (1 - ratio) ** grown, 0.5), 2.0)
        self.alive[path] = alive

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
        return {name: getattr(self, name) for name in SAVED}

    def on_load(self, saved: dict[str, Any]) -> None:
        for name in SAVED:
            setattr(self, name, saved[name])


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

    def adapt(self, path: str, layer: nn.Module) -> None:
        self.strength[path] *= self.growth

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
