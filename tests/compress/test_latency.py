"""The latency table: its interpolation against a known machine, its file, calibration, and the layers of networks."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from asrkit.compress import measuring
from asrkit.compress.latency import BLOCKS, DENSE, LatencyTable, Layer, Point, layers_of, read_table, write_table
from asrkit.compress.schemes import Scheme
from asrkit.errors import InputError

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
    return LatencyTable("known", 16, "none", {point: known_seconds(point) for point in measuring.grid()})


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
    layer = Layer("conv2d", 1024, 1024, (64, 64), (3, 3), (1, 1))
    larger = Layer("conv2d", 2048, 1024, (128, 128), (3, 3), (1, 1))
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


def test_latency_falls_with_the_ratio(table):
    layer = Layer("conv2d", 128, 128, (8, 8), (3, 3), (1, 1))
    for scheme in (*BLOCKS[:3], Scheme("pattern")):
        seconds = [table.seconds(layer, scheme, ratio) for ratio in np.linspace(0.6, 0.95, 8)]
        assert seconds == sorted(seconds, reverse=True)


def test_ratio_out_of_range_is_refused(table):
    with pytest.raises(InputError, match="ratio must be"):
        table.seconds(Layer("linear", 64, 64, (1,)), DENSE, 1.0)


def test_a_scheme_that_was_not_measured_is_refused(table):
    dense_only = LatencyTable("known", 16, "none", {p: s for p, s in table.measured.items() if p.scheme == DENSE})
    with pytest.raises(InputError, match="no measurement of scheme pattern"):
        dense_only.seconds(Layer("conv2d", 64, 64, (8, 8), (3, 3), (1, 1)), Scheme("pattern"), 0.8)


def test_calibration_recovers_factor_and_overhead(table):
    random = np.random.default_rng(1)
    networks = []
    for count in (3, 8, 20):
        layers = [random_layer(random, measuring.FAMILIES[0]) for _ in range(count)]
        networks.append((layers, {}, 1.3 * table.predict(layers, {}) + 2e-6 * count))
    calibrated = LatencyTable("known", 16, "none", table.measured)
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
    assert [layer.depthwise for layer in layers] == [False, True, True, False, False]
    assert sum(layer.macs for layer in layers) == 27 * 8 * 16 + 2 * 72 * 16 + 160 * 12 + 24 * 4
    assert not any(module._forward_hooks for module in net.modules())


def test_file_round_trip(table, tmp_path):
    part = LatencyTable("known", 16, "none", dict(list(table.measured.items())[:40]), 1.25, 3e-7)
    write_table(part, tmp_path / "t.jsonl")
    assert read_table(tmp_path / "t.jsonl") == part


def test_measuring_resumes_and_drops_a_line_that_was_cut_off(tmp_path, caplog):
    target = measuring.native_target()
    points, measured = measuring.grid()[:6], []

    def counted(point, target):
        measured.append(point)
        return known_seconds(point)

    whole = measuring.measure_table(tmp_path / "t.jsonl", target, counted, points)
    text = (tmp_path / "t.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    (tmp_path / "t.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    measured.clear()
    with caplog.at_level(logging.WARNING):
        assert measuring.measure_table(tmp_path / "t.jsonl", target, counted, points) == whole
    assert len(measured) == 4 and "cut off" in caplog.text
    measured.clear()
    assert measuring.measure_table(tmp_path / "t.jsonl", target, counted, points) == whole and not measured


def test_table_of_another_target_is_not_continued(tmp_path):
    write_table(LatencyTable("other", 16, "none"), tmp_path / "t.jsonl")
    with pytest.raises(InputError, match=r"t\.jsonl: a table of target other"):
        measuring.measure_table(tmp_path / "t.jsonl", measuring.native_target(), known_seconds, [])


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"kind": "conv9d"}', '{"kind": "linear", "size": [1], "seconds": 1}', '{"factor": "x"}']
)
def test_corrupt_lines_are_named(tmp_path, line):
    header = json.dumps({"target": "known", "lanes": 16, "machine": "none"})
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
