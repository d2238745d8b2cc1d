"""ScaledAdam against a slow reading of its equations."""

import copy
import math

import pytest
import torch
from toy_training import ToyData, toy_model

from asrkit.training import TrainingConfig
from asrkit.training.optimisers import ScaledAdam, build_optimiser


class SlowScaledAdam:
    """One tensor at a time, one equation a line."""

    def __init__(self, parameters, lr, clip, beta1=0.9, beta2=0.98, eta=0.1, eps=1e-8):
        self.parameters, self.lr, self.clip = parameters, lr, clip
        self.beta1, self.beta2, self.eta, self.eps = beta1, beta2, eta, eps
        self.m, self.v, self.n, self.w = ([0.0] * len(parameters) for _ in range(4))
        self.norms, self.t = [], 0

    def step(self):
        rms = [max(p.square().mean().sqrt().item(), 1e-5) for p in self.parameters]
        norm = math.sqrt(sum((p.grad * r).square().sum().item() for p, r in zip(self.parameters, rms, strict=True)))
        median = sorted(self.norms)[(len(self.norms) - 1) // 2] if self.norms else math.inf
        shorten = min(1.0, self.clip * median / norm)
        self.norms.append(norm)
        self.t += 1
        c = math.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        for i, (p, r) in enumerate(zip(self.parameters, rms, strict=True)):
            g = p.grad * shorten
            h = (g * p).sum().item() / r
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g * g
            self.n[i] = self.beta1 * self.n[i] + (1 - self.beta1) * h
            self.w[i] = self.beta2 * self.w[i] + (1 - self.beta2) * h * h
            direction = -self.lr * r * c * self.m[i] / (self.v[i].sqrt() + self.eps)
            scale = -self.eta * self.lr * r * c * self.n[i] / (math.sqrt(self.w[i]) + self.eps)
            p.add_(direction + scale * p / r)


def set_gradients(model, step: int) -> None:
    """The gradient grows tenfold at the third step, so that clipping sets in."""
    draw = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw) * (10.0 if step == 2 else 1.0)


def test_scaled_adam_follows_its_equations():
    model = toy_model()
    torch.nn.init.zeros_(model.first.bias)  # a tensor without a scale
    slow = copy.deepcopy(model)
    fast_optimiser = ScaledAdam(model.parameters(), lr=0.05, clip=2.0)
    slow_optimiser = SlowScaledAdam(list(slow.parameters()), lr=0.05, clip=2.0)
    for step in range(4):
        set_gradients(model, step)
        set_gradients(slow, step)
        fast_optimiser.step()
        with torch.no_grad():
            slow_optimiser.step()
        for ours, reference in zip(model.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)
    assert model.first.bias.abs().max() > 0


def test_scaled_adam_changes_large_and_small_tensors_alike():
    large = torch.nn.Parameter(torch.ones(5) * 100)
    small = torch.nn.Parameter(torch.ones(5) * 0.01)
    optimiser = ScaledAdam([large, small], lr=0.05)
    gradient = torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0])
    large.grad, small.grad = gradient.clone(), gradient.clone()
    optimiser.step()
    torch.testing.assert_close(large / 100, small / 0.01)


def test_scaled_adam_state_survives_saving():
    first, second = toy_model(), toy_model()
    saved = ScaledAdam(first.parameters())
    set_gradients(first, 0)
    saved.step()
    second.load_state_dict(first.state_dict())
    loaded = ScaledAdam(second.parameters())
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    for model, optimiser in ((first, saved), (second, loaded)):
        set_gradients(model, 2)
        optimiser.step()
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name, rate", [("adamw", 0.01), ("scaled_adam", 0.045)])
def test_each_optimiser_learns(name, rate):
    model, data = toy_model(dropout=0.0), ToyData(60)
    optimiser = build_optimiser(model, TrainingConfig(optimiser=name, learning_rate=rate))
    losses = []
    for batch in data.epoch(0):
        output = model(batch, 0.0)
        (output["loss"] / output["weight"]).backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(output["loss"].item() / output["weight"])
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_adamw_decays_matrices_only():
    model = toy_model()
    decays = {
        id(parameter): group["weight_decay"]
        for group in build_optimiser(model, TrainingConfig(weight_decay=0.1)).param_groups
        for parameter in group["params"]
    }
    assert [decays[id(parameter)] for parameter in model.parameters()] == [0.1, 0.0, 0.1, 0.0]


def test_frozen_parameters_are_left_out():
    model = toy_model()
    model.first.requires_grad_(False)
    for name in ("adamw", "scaled_adam"):
        groups = build_optimiser(model, TrainingConfig(optimiser=name)).param_groups
        assert sum(len(group["params"]) for group in groups) == 2
