"""Scheme mapping by search: policy gradient over the schemes of all layers (arXiv:2111.11581).

The latency comes from a table, the accuracy of a mapping from a function that prunes quickly and tests.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrkit.compress.latency import LatencyTable, Layer
from asrkit.compress.mapping import LayerMapping, Mapping, at_ratio, candidates, map_by_rule
from asrkit.compress.schemes import Scheme
from asrkit.progress import progress_bar

MEMORY = 0.9  # of the moving average of rewards
PATIENCE = 20  # batches without a new mapping


@dataclass(frozen=True)
class Trial:
    """A mapping that was tried, the accuracy of the network quickly pruned to it, and its predicted latency."""

    mapping: Mapping
    accuracy: float
    seconds: float
    reward: float


@dataclass(frozen=True)
class SearchConfig:
    """Policy gradient over mappings."""

    evaluations: int = 200
    """Mappings whose accuracy is measured."""
    penalty: float = 1.0
    """Accuracy that a latency of twice the target costs."""
    batch: int = 8
    """Mappings drawn for one update."""
    learning_rate: float = 0.01
    entropy: float = 0.02
    """Weight of the policy's entropy, which keeps it from settling early."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.evaluations, self.batch) < 1 or min(self.penalty, self.learning_rate) <= 0 or self.entropy < 0:
            raise ValueError("evaluations, batch, penalty and learning_rate must be above 0, entropy not below")


def map_by_search(
    layers: Sequence[Layer],
    table: LatencyTable,
    seconds: float,
    proxy: Callable[[Mapping], float],
    config: SearchConfig = SearchConfig(),
) -> tuple[Mapping, float, list[Trial]]:
    """Choose schemes by policy gradient, starting from the choice by rule and at its ratio.

    All mappings are compared at one ratio, because the accuracy of a quickly pruned network ranks them only there.

    Args:
        layers: of the network, in order.
        table: of the target.
        seconds: latency to meet.
        proxy: accuracy in [0, 1] of the network quickly pruned to a mapping, all of whose ratios are given.
        config: of the search.

    Returns:
        the best mapping, whose ratios are left to training, the ratio assumed, and all trials in order, the first
        being the choice by rule.

    Raises:
        InputError: the latency cannot be met at any sensible ratio.
    """
    start, ratio = map_by_rule(layers, table, seconds)
    tried: dict[tuple[Scheme, ...], Trial] = {}

    def reward(schemes: tuple[Scheme, ...]) -> float:
        if schemes not in tried:
            mapping = {layer.path: LayerMapping(scheme) for layer, scheme in zip(layers, schemes, strict=True)}
            accuracy, latency = proxy(at_ratio(mapping, ratio)), table.predict(layers, at_ratio(mapping, ratio))
            excess = max(0.0, latency / seconds - 1)
            tried[schemes] = Trial(mapping, accuracy, latency, accuracy - config.penalty * excess)
            bar.update()
        return tried[schemes].reward

    with progress_bar(config.evaluations, "searching", "mapping") as bar:
        reward(tuple(start[layer.path].scheme for layer in layers))
        if ratio > 0:
            options = [candidates(layers, layer) for layer in layers]
            reinforce(options, _features(layers), reward, tried, config)
    trials = list(tried.values())
    return max(trials, key=lambda trial: trial.reward).mapping, ratio, trials


def reinforce(
    options: Sequence[Sequence[Scheme]],
    features: Tensor,
    reward: Callable[[tuple[Scheme, ...]], float],
    tried: Collection,
    config: SearchConfig,
) -> None:
    """Train a policy that draws one option for each of L layers towards high rewards (REINFORCE, Williams 1992).

    Stops when as many choices are in `tried` as the configuration allows, or when the policy brings no new ones.

    Args:
        options: those of each layer.
        features: (L, F) of the layers.
        reward: of one choice, which it puts into `tried`.
        tried: all choices so far.
        config: of the search.
    """
    actions = sorted({scheme for schemes in options for scheme in schemes}, key=str)
    allowed = torch.tensor([[action in schemes for action in actions] for schemes in options])
    policy = Policy(features, allowed, config.seed)
    optimiser = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    baseline, idle = None, 0
    while idle < PATIENCE:
        before = len(tried)
        choices, log_probs, entropy = policy(config.batch)
        rewards = []
        for choice in choices.tolist():
            if len(tried) >= config.evaluations:
                return
            rewards.append(reward(tuple(actions[action] for action in choice)))
        mean = sum(rewards) / len(rewards)
        advantage = torch.tensor(rewards) - (mean if baseline is None else baseline)
        baseline = mean if baseline is None else MEMORY * baseline + (1 - MEMORY) * mean
        loss = -(advantage * log_probs).mean() - config.entropy * entropy
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        idle = 0 if len(tried) > before else idle + 1


class Policy(nn.Module):
    """An LSTM over the layers of a network that gives each one a scheme, knowing those of the layers before it."""

    def __init__(self, features: Tensor, allowed: Tensor, seed: int, hidden: int = 32) -> None:
        """Take the features (L, F) of the layers and which of A actions each allows (L, A)."""
        super().__init__()
        self.features, self.allowed = features, allowed
        self.generator = torch.Generator().manual_seed(seed)  # its own: the proxy trains networks between draws
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.LSTMCell(features.size(1) + allowed.size(1), hidden)
        self.output = nn.Linear(hidden, allowed.size(1))
        nn.init.zeros_(self.output.weight)  # all schemes alike at first
        nn.init.zeros_(self.output.bias)

    def forward(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw actions (number, L); return them, their log-probabilities (number,) and the mean entropy ()."""
        previous, state = torch.zeros(number, self.allowed.size(1)), None
        actions, log_probs, entropies = [], [], []
        for features, allowed in zip(self.features, self.allowed, strict=True):
            state = self.cell(torch.cat([features.expand(number, -1), previous], dim=1), state)
            scores = self.output(state[0]).masked_fill(~allowed, -1e9).log_softmax(dim=1)  # (number, A)
            action = torch.multinomial(scores.exp(), 1, generator=self.generator)  # (number, 1)
            log_probs.append(scores.gather(1, action).squeeze(1))
            entropies.append(-(scores.exp() * scores).sum(dim=1).mean())
            actions.append(action)
            previous = torch.zeros_like(scores).scatter(1, action, 1.0)
        return torch.cat(actions, dim=1), torch.stack(log_probs).sum(dim=0), torch.stack(entropies).mean()


def _features(layers: Sequence[Layer]) -> Tensor:
    """Return what the policy sees of each layer, (L, 5): logarithms of its sizes, about 0 to 1."""
    sizes = [
        (layer.out_channels, layer.in_channels, math.prod(layer.kernel), layer.positions, number + 1)
        for number, layer in enumerate(layers)
    ]
    return torch.tensor(sizes).float().log() / 7.0
