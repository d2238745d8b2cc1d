"""Engines compute what torch does, and take turns."""

import pytest
import torch
from torch import nn

from asrkit.compress import engines as module

PACKAGES = {"onnxruntime": ("onnx", "onnxruntime"), "executorch": ("executorch",)}


class TwoOutputs(nn.Module):
    """An image, and a state that comes back."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, image, state):
        found = self.conv(image).relu().mean((2, 3)) + state
        return self.linear(found), found


@pytest.mark.parametrize("engine", module.ENGINES)
def test_engines_compute_what_torch_does(engine, tmp_path):
    for package in PACKAGES.get(engine, ()):
        pytest.importorskip(package)
    torch.manual_seed(0)
    network, inputs = TwoOutputs().eval(), (torch.randn(1, 3, 9, 9), torch.randn(1, 8))
    ready = module.ENGINES[engine](network, inputs, tmp_path, ((1, 1),))
    assert module.difference(network, inputs, ready) < 1e-5
    others = tuple(map(torch.randn_like, inputs))
    assert module.difference(network, others, ready) < 1e-5
    ready.bound()
    network.linear.weight.data += 0.1
    assert engine == "torch" or module.difference(network, inputs, ready) > 1e-2
    assert bool(list(tmp_path.iterdir())) == (engine != "torch")


def test_the_difference_is_relative_to_large_outputs_only():
    network, inputs = nn.Identity(), (torch.tensor([[0.5, 0.0]]),)
    ready = module.Ready(lambda x: [x + 0.25], lambda: None)
    assert module.difference(network, inputs, ready) == 0.25
    assert module.difference(network, (torch.tensor([[10.0, 0.0]]),), ready) == pytest.approx(0.025)


def test_filters_of_zeros_go():
    network, inputs = (
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)).eval(),
        (torch.randn(1, 1, 9, 9),),
    )
    assert module.smallest(network, inputs) is network
    network[0].weight.data[:2], network[0].bias.data[:2] = 0.0, 0.0
    smaller = module.smallest(network, inputs)
    assert smaller[0].out_channels == 4
    assert module.count_weights(smaller) == 4 * 10 + 2 * (4 * 9 + 1)
    torch.testing.assert_close(smaller(*inputs), network(*inputs))


def test_turns(monkeypatch):
    """A clock that contestants move themselves; what disturbs some of their turns does not count."""
    now, calls = [0.0], []
    monkeypatch.setattr(module.time, "process_time", lambda: now[0])

    def contestant(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds * (10 if len(calls) % 7 == 0 else 1)

        return run

    seconds = {"a": module.TURN / 2, "b": module.TURN}
    assert module.seconds_by_turns({name: contestant(name, s) for name, s in seconds.items()}) == pytest.approx(seconds)
    assert calls == ["a"] * 3 + ["b"] * 3 + ["a", "a", "b"] * module.TURNS
