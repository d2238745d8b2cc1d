"""Convolutions of 3x3 by Winograd's algorithm: the same results, chosen where they are faster."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from asrkit.compress.codegen import TARGETS, compile_network, load_network, native_target, plan, winograd
from asrkit.compress.codegen.steps import Picture
from asrkit.compress.codegen.target import runs_here

AVX512 = TARGETS["avx512"]


def convolution(inputs: int, outputs: int, **options) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})
    nn.init.normal_(layer.weight, std=(layer.weight[0].numel()) ** -0.5)
    return layer


def compiled(model: nn.Module, x: torch.Tensor, folder):
    """Return the network and its largest error."""
    compile_network(model.eval(), (x,), folder)
    network = load_network(folder)
    with torch.inference_mode():
        expected = model(x).numpy()
    return network, float(np.abs(network(x)[0] - expected).max())


def always(tile: int, band: int):
    """Return a choice that takes tiles and bands of this size for every convolution that can have them."""

    def choice(weight, picture, target):
        ways = winograd.tilings(picture.height, picture.width, sum(weight.shape[:2]), target.lanes)
        return next(replace(way, band=min(band, way.rows)) for way in ways if way.tile == tile)

    return choice


class Residual(nn.Module):
    """Two convolutions whose epilogues have a batch norm, an activation and what goes around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(convolution(channels, channels + 3), nn.BatchNorm2d(channels + 3), nn.SiLU())
        self.second = convolution(channels + 3, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(x)) + x)


class Each(nn.Module):
    """The same for several inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(map(self.model, inputs))


@pytest.mark.parametrize("tile", winograd.POINTS)
def test_transforms_of_kernels_and_of_ones(tile):
    """In the terms of polynomials: evaluation at points, products there, and the transpose of evaluation."""
    points = np.array(winograd.POINTS[tile])
    at_points = [np.vstack([np.vander(points, n, increasing=True), np.eye(n)[-1]]) for n in (tile, tile + 2)]
    denominators = np.append(np.prod(points[:, None] - points + np.eye(len(points)), axis=1), 1.0)
    rng = np.random.default_rng(1)
    kernel, x = rng.normal(size=(3, 3)), rng.normal(size=(tile + 2, tile + 2))
    inputs = denominators[:, None] * np.linalg.inv(at_points[1]).T
    products = winograd.transformed(kernel.reshape(1, 9), tile).reshape(tile + 2, tile + 2) * (inputs @ x @ inputs.T)
    expected = torch.conv2d(torch.tensor(x)[None, None], torch.tensor(kernel)[None, None])[0, 0]
    np.testing.assert_allclose(at_points[0].T @ products @ at_points[0], expected, atol=1e-10)
    ones = winograd.spread(tile).reshape(tile + 2, tile + 2)
    np.testing.assert_allclose(at_points[0].T @ ones @ at_points[0], np.ones((tile, tile)), atol=1e-10)


@pytest.mark.parametrize("channels, size", [(64, 32), (64, 56), (128, 16), (256, 8)])
def test_large_layers_are_computed_by_it_and_are_exact(tmp_path, channels, size):
    torch.manual_seed(0)
    network, error = compiled(convolution(channels, channels), torch.randn(1, channels, size, size), tmp_path / "net")
    if native_target().name == "avx512":
        assert [layer["kernel"] for layer in network.layers] == [f"winograd {2 if size == 8 else 4}"]
    assert error < 3e-5
    (layer,) = network.layers
    assert layer["shape"] == [channels, channels * 9] and layer["nonzero"] == channels**2 * 9


@pytest.mark.parametrize("target", [target for target in TARGETS.values() if runs_here(target)], ids=lambda t: t.name)
@pytest.mark.parametrize("tile, band", [(2, 3), (4, 2)])
def test_any_size_of_picture_with_epilogues(tmp_path, monkeypatch, target, tile, band):
    """Sizes that no tile and no vector divides, more than one band, the last one moved back."""
    torch.manual_seed(1)
    monkeypatch.setattr(plan, "best_tiling", always(tile, band))
    pictures = [torch.randn(1, 5, *size) for size in ((13, 19), (5, 33), (3, 5), (1, 9), (17, 1))]
    model = Residual(5).eval()
    compile_network(Each(model), tuple(pictures), tmp_path / "net", target)
    network = load_network(tmp_path / "net")
    assert {layer["kernel"] for layer in network.layers} == {f"winograd {tile}"}
    with torch.inference_mode():
        for x, found in zip(pictures, network(*pictures), strict=True):
            assert np.abs(found - model(x).numpy()).max() < 2e-5


def test_rows_that_end_with_their_picture_do_not_write_into_the_next_one(tmp_path, monkeypatch):
    """Without margins the last vector of a channel would reach into what is there already of the next one."""
    torch.manual_seed(2)
    monkeypatch.setattr(plan.Planner, "_margins", lambda self, graph: {})
    monkeypatch.setattr(plan, "best_tiling", always(4, 1))
    assert compiled(Residual(6), torch.randn(1, 6, 11, 18), tmp_path / "net")[1] < 2e-5


def weight_of(channels: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(channels, channels, 3, 3)) * (rng.random((channels, channels, 3, 3)) < density)


def test_it_is_chosen_where_it_takes_less():
    large, small = (Picture(n, n, n + 1, 0, n * n) for n in (32, 4))
    assert winograd.best_tiling(weight_of(64, 1.0), large, AVX512).tile == 4
    assert winograd.best_tiling(weight_of(64, 0.98), large, AVX512).tile == 4
    assert winograd.best_tiling(weight_of(64, 0.1), large, AVX512) is None
    assert winograd.best_tiling(weight_of(64, 1.0), small, AVX512) is None


def test_other_convolutions_are_not_computed_by_it(tmp_path):
    others = [{"stride": 2}, {"padding": 0}, {"dilation": 2, "padding": 2}, {"groups": 4}]
    model = nn.Sequential(*(convolution(32, 32, **options) for options in others))
    network, error = compiled(model, torch.randn(1, 32, 48, 48), tmp_path / "net")
    assert not any("winograd" in layer["kernel"] for layer in network.layers) and error < 3e-5


def test_bands_cover_all_tiles_and_stay_small():
    for way in winograd.tilings(180, 320, 64, 16):
        assert (way.bands - 1) * way.band < way.rows <= way.bands * way.band
        assert 4 * way.products * way.apart(64) <= winograd.BAND
        assert way.vectors * way.lanes >= way.band * way.columns
