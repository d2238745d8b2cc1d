"""The latency table: its interpolation against a known machine, its file, calibration, and the layers of networks."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from asrkit.compress import measuring
from asrkit.compress.codegen import compile_network, load_network, native_target
from asrkit.compress.latency import (
    BLOCKS,
    DENSE,
    LatencyTable,
    Layer,
    Point,
    calibration_line,
    header_line,
    layers_of,
    point_line,
    read_table,
)
from asrkit.compress.schemes import Scheme, make_mask
from asrkit.compress.surfaces import vectors_of
from asrkit.errors import InputError

LINE = (
    '{"kind": "linear", "out_channels": 8, "in_channels": 8, "groups": 1, "size": [1], "kernel": [], "stride": [], '
    '"scheme": "dense", "ratio": 0.0, "seconds": %s}'
)
RATES = {"dense": 50e9, "unstructured": 20e9, "pattern": 25e9, "block": 45e9, "punched": 40e9}


def known_seconds(point: Point, *_) -> float:
    """A machine with an overhead, a speed for each scheme, worse with few channels, whole vectors, memory traffic."""
    layer, kept = point.layer, 1 - point.ratio
    positions = 16 * math.ceil(layer.positions / 16)
    filling = (min(1.0, layer.out_channels / 64) * min(1.0, layer.in_channels / layer.groups / 32)) ** 0.3
    traffic = 4 * (layer.weights * kept + positions * (layer.in_channels + layer.out_channels)) / 30e9
    return 3e-7 + layer.weights * positions * kept / (RATES[point.scheme.kind] * filling) + traffic


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return LatencyTable("avx512", "none", {point: known_seconds(point) for point in measuring.grid()})


def random_layer(random: np.random.Generator, family: measuring.Family) -> Layer:
    channels = 4 * int(random.integers(4, 128))
    size = (int(random.integers(4, 24)),) * max(1, len(family.kernel))
    groups = channels if family.depthwise else 1
    return Layer(family.kind, channels, channels, size, family.kernel, (family.stride,) * len(family.kernel), groups)


def test_interpolation_is_close_on_layers_between_those_measured(table):
    random = np.random.default_rng(0)
    errors = []
    for family in measuring.FAMILIES:
        for scheme in measuring.schemes_of(family):
            for _ in range(8):
                ratio = 0.0 if scheme == DENSE else float(random.uniform(0.6, 0.95))
                point = Point(random_layer(random, family), scheme, ratio)
                errors.append(abs(np.log(table.seconds(point.layer, scheme, ratio) / known_seconds(point))))
    assert np.median(errors) < 0.08 and np.quantile(errors, 0.95) < 0.35


def test_outside_the_grid_latency_follows_the_work(table):
    layer, larger = Layer("linear", 2048, 1024, (1024,)), Layer("linear", 4096, 2048, (2048,))
    assert table.seconds(larger, DENSE, 0.0) == pytest.approx(8 * table.seconds(layer, DENSE, 0.0), rel=0.05)


def test_unmeasured_families_and_blocks_take_the_nearest(table):
    seven = Layer("conv2d", 64, 64, (8, 8), (7, 7), (1, 1))
    five = Layer("conv2d", 64, 64, (8, 8), (5, 5), (1, 1))
    assert table.seconds(seven, DENSE, 0.0) == pytest.approx(known_seconds(Point(seven, DENSE, 0.0)), rel=0.25)
    assert table.seconds(five, Scheme("punched", (5, 1)), 0.8) == table.seconds(five, Scheme("punched", (4, 1)), 0.8)


def test_structured_pruning_is_a_smaller_dense_layer_and_no_scheme_is_slower_than_dense(table):
    layer = Layer("conv2d", 128, 64, (8, 8), (3, 3), (1, 1))
    half = Layer("conv2d", 64, 64, (8, 8), (3, 3), (1, 1))
    dense = table.seconds(layer, DENSE, 0.0)
    assert table.seconds(layer, Scheme("filter"), 0.5) == table.seconds(half, DENSE, 0.0)
    assert table.seconds(layer, Scheme("unstructured"), 0.1) == dense
    assert table.seconds(layer, Scheme("unstructured"), 0.0) == dense


def test_an_image_of_one_pixel_meets_only_the_centres_of_kernels(table):
    one = Layer("conv2d", 128, 64, (1, 1), (3, 3), (1, 1))
    linear = Layer("linear", 128, 64, (1,))
    assert table.seconds(one, DENSE, 0.0) == table.seconds(linear, DENSE, 0.0)
    kept = table.seconds(linear, Scheme("unstructured"), 1 - 9 / 4 * 0.2)
    assert table.seconds(one, Scheme("pattern"), 0.8) == pytest.approx(kept)


def test_latency_falls_with_the_ratio(table):
    layer = Layer("conv2d", 128, 128, (8, 8), (3, 3), (1, 1))
    for scheme in (*BLOCKS[:3], Scheme("pattern")):
        seconds = [table.seconds(layer, scheme, ratio) for ratio in np.linspace(0.6, 0.95, 8)]
        assert seconds == sorted(seconds, reverse=True)


def test_ratio_out_of_range_is_refused(table):
    with pytest.raises(InputError, match="ratio must be"):
        table.seconds(Layer("linear", 64, 64, (1,)), DENSE, 1.0)


def test_a_scheme_that_was_not_measured_is_refused(table):
    dense_only = LatencyTable("avx512", "none", {p: s for p, s in table.measured.items() if p.scheme == DENSE})
    with pytest.raises(InputError, match="no measurement of scheme pattern"):
        dense_only.seconds(Layer("conv2d", 64, 64, (8, 8), (3, 3), (1, 1)), Scheme("pattern"), 0.8)


def test_calibration_recovers_factor_and_overhead(table):
    random = np.random.default_rng(1)
    networks = []
    for count in (3, 8, 20):
        layers = [random_layer(random, measuring.FAMILIES[0]) for _ in range(count)]
        networks.append((layers, {}, 1.3 * table.predict(layers, {}) + 2e-6 * count))
    calibrated = LatencyTable("avx512", "none", table.measured)
    calibrated.calibrate(networks)
    assert (calibrated.factor, calibrated.overhead) == pytest.approx((1.3, 2e-6), rel=1e-3)
    assert [calibrated.predict(layers, {}) for layers, _, _ in networks] == pytest.approx([s for *_, s in networks])


def test_layers_of_a_network_with_their_sizes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.line = nn.Conv1d(8, 4, 5)
            self.out = nn.Linear(12, 2)

        def forward(self, images):
            hidden = self.depthwise(self.depthwise(self.conv(images)))
            return self.out(self.line(hidden.flatten(2)))

    net = Net()
    layers = layers_of(net, (torch.zeros(1, 3, 8, 8),))
    assert layers == [
        Layer("conv2d", 8, 3, (4, 4), (3, 3), (2, 2), path="conv"),
        *[Layer("conv2d", 8, 8, (4, 4), (3, 3), (1, 1), groups=8, path="depthwise")] * 2,
        Layer("conv1d", 4, 8, (12,), (5,), (1,), path="line"),
        Layer("linear", 2, 12, (4,), path="out"),
    ]
    assert [layer.path for layer in layers] == ["conv", "depthwise", "depthwise", "line", "out"]
    assert [layer.depthwise for layer in layers] == [False, True, True, False, False]
    assert sum(layer.macs for layer in layers) == 27 * 8 * 16 + 2 * 72 * 16 + 160 * 12 + 24 * 4
    assert not any(module._forward_hooks for module in net.modules())


def write_table(table: LatencyTable, file) -> None:
    points = [point_line(point, seconds) for point, seconds in table.measured.items()]
    file.write_text("".join([header_line(table), *points, calibration_line(table)]))


def test_file_round_trip(table, tmp_path):
    part = LatencyTable("avx512", "none", factor=1.25, overhead=3e-7)
    for point, seconds in list(table.measured.items())[:40]:
        part.add(point, seconds)
    write_table(part, tmp_path / "t.jsonl")
    assert read_table(tmp_path / "t.jsonl") == part


def test_the_least_of_several_measurements_counts():
    table, point = LatencyTable("avx512", "none"), measuring.grid()[0]
    for seconds in (2e-6, 1e-6, 3e-6):
        table.add(point, seconds)
    assert table.measured == {point: 1e-6} and table.passes == {point: 3}


@pytest.fixture
def quick(monkeypatch):
    """The points that were measured; none of them is compiled."""
    measured, points = [], measuring.grid()[:12]

    def stopwatch(points, target):
        measured.extend(points)
        return lambda: [known_seconds(point) for point in points]

    monkeypatch.setattr(measuring, "stopwatch", stopwatch)
    monkeypatch.setattr(measuring, "grid", lambda: points)
    monkeypatch.setattr(measuring, "calibrate", lambda table, target: setattr(table, "factor", 1.5))
    return measured


def test_measuring_resumes_and_drops_a_line_that_was_cut_off(tmp_path, caplog, quick):
    file = tmp_path / "t.jsonl"
    whole = measuring.measure_table(file)
    assert whole.measured == {point: known_seconds(point) for point in measuring.grid()} and whole.calibrated
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:20])
    quick.clear()
    with caplog.at_level(logging.WARNING):
        assert measuring.measure_table(file) == whole == read_table(file)
    assert len(quick) == 2 * 12 - 2 and "cut off" in caplog.text
    quick.clear()
    assert measuring.measure_table(file) == whole and not quick


def test_table_of_another_target_is_not_continued(tmp_path):
    write_table(LatencyTable("portable", "none"), tmp_path / "t.jsonl")
    with pytest.raises(InputError, match=r"t\.jsonl: a table of target portable"):
        measuring.measure_table(tmp_path / "t.jsonl")


def test_layers_and_networks_are_really_measured():
    target = measuring.native_target()
    point = Point(Layer("conv2d", 32, 32, (8, 8), (3, 3), (1, 1)), Scheme("punched", (4, 1)), 0.9)
    other = Point(Layer("linear", 32, 16, (4,)), DENSE, 0.0)
    assert all(0 < seconds < 1 for seconds in measuring.stopwatch([point, other], target)())


def test_vectors_are_those_that_the_compiler_computes(tmp_path):
    channels = [(8, 1), (8, 2), (8, 1), (8, 2), (8, 1)]  # and stride: images of 16, 8 and 4
    convolutions = [nn.Conv2d(8, out, 3, stride, padding=1) for out, stride in channels]
    with torch.no_grad():
        for convolution in convolutions:  # too sparse for Winograd's algorithm
            convolution.weight *= make_mask(convolution.weight, Scheme("punched", (4, 1)), 0.9)
    network, image = nn.Sequential(*convolutions), torch.zeros(1, 8, 16, 16)
    target = native_target()
    compile_network(network, (image,), tmp_path / "c", target)
    compiled = {layer["path"]: layer["pixels"] for layer in load_network(tmp_path / "c").layers}
    expected = {layer.path: vectors_of(layer, target.lanes)[0] for layer in layers_of(network, (image,))}
    assert {path: math.ceil(pixels / target.lanes) for path, pixels in compiled.items()} == expected


def test_a_table_is_calibrated_on_real_networks(table, monkeypatch):
    config = measuring.NetworkConfig(kind="vgg16", width=0.125, size=8)
    monkeypatch.setattr(measuring, "CALIBRATION", ((config, 0.0), (config, 0.8)))
    fresh = LatencyTable(table.target, "none", table.measured)
    measuring.calibrate(fresh, measuring.native_target())
    assert fresh.calibrated and min(fresh.factor, fresh.overhead) >= 0


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"kind": "conv9d"}',
        '{"kind": "linear", "size": [1], "seconds": 1}',
        '{"factor": "x"}',
        LINE % "0.0",
        LINE % '"x"',
        LINE % "NaN",
    ],
)
def test_corrupt_lines_are_named(tmp_path, line):
    header = json.dumps({"target": "avx512", "machine": "none"})
    (tmp_path / "t.jsonl").write_text(f"{header}\n{line}\n")
    with pytest.raises(InputError, match=r"t\.jsonl: line 2"):
        read_table(tmp_path / "t.jsonl")


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_table(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(InputError, match="empty"):
        read_table(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"t\.jsonl"):
        read_table(tmp_path / "t.jsonl")
