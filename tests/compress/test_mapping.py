"""Mapping files, the rule and the search, on a machine whose latencies are known."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from asrkit.compress.latency import DENSE, Layer
from asrkit.compress.mapping import (
    LayerMapping,
    MappingHeader,
    at_ratio,
    candidates,
    map_by_rule,
    read_header,
    read_mapping,
    rule_of_layer,
    write_mapping,
)
from asrkit.compress.mapping_search import SearchConfig, map_by_search
from asrkit.compress.schemes import Scheme
from asrkit.errors import InputError

RATES = {"dense": 1.0, "filter": 1.0, "unstructured": 0.3, "pattern": 0.6}


class KnownTable:
    """Latencies by formula: work over the speed of the scheme, which grows with the number of filters of a block."""

    def seconds(self, layer, scheme, ratio):
        rate = RATES.get(scheme.kind, math.prod(scheme.block) ** 0.5 / 4)  # 4x1: 0.5, 8x1: 0.7, 16x1: 1
        return min(layer.macs, layer.macs * (1 - ratio) / min(rate, 1.0)) * 1e-10

    def predict(self, layers, mapping):
        return sum(self.seconds(layer, mapping[layer.path].scheme, mapping[layer.path].ratio) for layer in layers)


TABLE = KnownTable()
LAYERS = [
    Layer("conv2d", 32, 3, (32, 32), (3, 3), (1, 1), path="first"),
    Layer("conv2d", 32, 32, (32, 32), (3, 3), (1, 1), groups=32, path="depthwise"),
    Layer("conv2d", 64, 32, (32, 32), (3, 3), (2, 2), path="conv"),
    Layer("conv2d", 128, 64, (16, 16), (1, 1), (1, 1), path="pointwise"),
    Layer("linear", 256, 128, (1,), path="hidden"),
    Layer("linear", 10, 128, (1,), path="out"),
]
DENSE_SECONDS = sum(layer.macs for layer in LAYERS) * 1e-10
MAPPING = {
    "first": LayerMapping(DENSE),
    "conv": LayerMapping(Scheme("pattern")),
    "blocks.3.pointwise": LayerMapping(Scheme("punched", (8, 4)), 0.8),
}


def test_file_round_trip(tmp_path):
    header = MappingHeader("exp/dense", "avx512", 0.00123, 0.85)
    write_mapping(MAPPING, tmp_path / "m.yaml", header)
    assert read_mapping(tmp_path / "m.yaml", MAPPING) == MAPPING
    assert read_header(tmp_path / "m.yaml") == header
    assert "  blocks.3.pointwise: {scheme: punched 8x4, ratio: 0.8}\n" in (tmp_path / "m.yaml").read_text()


def test_file_needs_no_header(tmp_path):
    write_mapping(MAPPING, tmp_path / "m.yaml")
    assert read_mapping(tmp_path / "m.yaml") == MAPPING
    assert read_header(tmp_path / "m.yaml") == MappingHeader()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers: {conv: {scheme: dens}}", r"m\.yaml: layers: conv: .*dens"),
        ("layers: {conv: {scheme: punched 4}}", r"m\.yaml: layers: conv: .*punched 4"),
        ("layers: {conv: {scheme: pattern, ratio: 1.5}}", r"m\.yaml: layers: conv: ratio .*1\.5"),
        ("layers: {conv: {scheme: pattern, ratio: -0.1}}", r"m\.yaml: layers: conv: ratio"),
        ("layers: {conv: {scheme: pattern, ratio: .nan}}", r"m\.yaml: layers: conv: ratio"),
        ("layers: {conv: {scheme: pattern, ratio: high}}", r"m\.yaml: layers: conv: ratio .*high"),
        ("layers: {conv: {scheme: pattern, ratio: true}}", r"m\.yaml: layers: conv: ratio"),
        ("layers: {conv: {scheme: pattern, rate: 0.5}}", r"m\.yaml: layers: conv: no option rate"),
        ("layers: {conv: {ratio: 0.5}}", r"m\.yaml: layers: conv: expected"),
        ("layers: {conv: pattern}", r"m\.yaml: layers: conv: expected"),
        ("layers: {other: {scheme: dense}}", r"m\.yaml: layers: the network has no layer other"),
        ("layers: {3: {scheme: dense}}", r"m\.yaml: layers: .*3"),
        ("layers: {}", r"m\.yaml: no layers"),
        ("layers: [conv]", r"m\.yaml: .*layers"),
        ("layer: {conv: {scheme: dense}}", r"m\.yaml: .*layer"),
        ("seconds: fast\nlayers: {conv: {scheme: dense}}", r"m\.yaml: .*seconds"),
        ("layers: {conv: {scheme", r"m\.yaml: not YAML: .*line 1"),
        ("just text", r"m\.yaml: expected a mapping"),
    ],
)
def test_mistakes_in_a_file_are_named_in_one_line(tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_mapping(tmp_path / "m.yaml", ["conv"])
    assert "\n" not in str(caught.value)


def test_missing_file():
    with pytest.raises(InputError, match="no-such.yaml"):
        read_mapping("no-such.yaml")


def test_at_ratio_fills_in_what_is_open():
    filled = at_ratio(MAPPING, 0.5)
    assert [layer.ratio for layer in filled.values()] == [0.0, 5 / 9, 0.8]


def test_first_depthwise_and_tiny_layers_stay_dense():
    options = {layer.path: candidates(LAYERS, layer) for layer in LAYERS}
    assert options["first"] == options["depthwise"] == options["out"] == [DENSE]
    assert Scheme("pattern") in options["conv"] and Scheme("pattern") not in options["pointwise"]
    assert {scheme.kind for scheme in options["hidden"]} >= {"dense", "block"}
    assert all(scheme.kind != "block" for path in ("conv", "pointwise") for scheme in options[path])


def test_rule_takes_the_smallest_block_within_a_fifth_of_structured_pruning():
    pointwise = LAYERS[3]
    assert rule_of_layer(LAYERS, pointwise, TABLE, 0.9) == Scheme("punched", (16, 1))  # 8x1: 1.4 times structured

    class Faster(KnownTable):
        def seconds(self, layer, scheme, ratio):
            return super().seconds(layer, scheme, ratio) / (1.2 if scheme.block == (8, 1) else 1)

    assert rule_of_layer(LAYERS, pointwise, Faster(), 0.9) == Scheme("punched", (8, 1))


def test_rule_takes_a_smaller_block_that_is_hardly_slower_than_the_fastest():
    class Alike(KnownTable):
        def seconds(self, layer, scheme, ratio):
            of_blocks = layer.macs * (1 - ratio) * (2 + 1 / scheme.block[0])  # 4x1 is 1.06 times 8x1
            return of_blocks * 1e-10 if scheme.has_block else super().seconds(layer, scheme, ratio)

    assert rule_of_layer(LAYERS, LAYERS[3], Alike(), 0.9) == Scheme("punched", (4, 1))


def test_rule_takes_patterns_where_the_ratio_they_need_is_modest():
    kinds = [map_by_rule(LAYERS, TABLE, part * DENSE_SECONDS)[0]["conv"].scheme.kind for part in (0.95, 0.8, 0.7, 0.4)]
    assert kinds == ["pattern", "pattern", "pattern", "punched"]


def test_rule_leaves_dense_what_pruning_does_not_make_faster():
    class Slow(KnownTable):
        def seconds(self, layer, scheme, ratio):
            return (
                layer.macs * 1e-10 if scheme.kind in ("punched", "pattern") else super().seconds(layer, scheme, ratio)
            )

    assert rule_of_layer(LAYERS, LAYERS[3], Slow(), 0.9) == DENSE
    assert rule_of_layer(LAYERS, LAYERS[2], Slow(), 0.6, patterns=True) == DENSE


@pytest.mark.parametrize("part", [0.9, 0.7, 0.5, 0.35])
def test_rule_meets_the_latency_at_the_smallest_ratio(part):
    mapping, ratio = map_by_rule(LAYERS, TABLE, part * DENSE_SECONDS)
    assert set(mapping) == {layer.path for layer in LAYERS}
    assert all(layer.ratio is None for layer in mapping.values())
    assert TABLE.predict(LAYERS, at_ratio(mapping, ratio)) <= part * DENSE_SECONDS
    if (patterns := mapping["conv"].scheme.kind == "pattern") and ratio < 5 / 9 + 0.002:
        return  # patterns remove no less
    below = ratio - 0.002
    schemes = {n.path: LayerMapping(rule_of_layer(LAYERS, n, TABLE, below, patterns)) for n in LAYERS}
    assert TABLE.predict(LAYERS, at_ratio(schemes, below)) > part * DENSE_SECONDS


def test_rule_leaves_a_network_dense_that_is_fast_enough():
    mapping, ratio = map_by_rule(LAYERS, TABLE, 1.01 * DENSE_SECONDS)
    assert ratio == 0 and {layer.scheme for layer in mapping.values()} == {DENSE}


def test_a_latency_out_of_reach_is_refused_with_the_best_there_is():
    with pytest.raises(InputError, match=r"a latency of .* ms cannot be met: .* ms at a ratio of 0\.97"):
        map_by_rule(LAYERS, TABLE, 1e-3 * DENSE_SECONDS)


# Search on a toy problem small enough to try all mappings


NETWORK = [Layer("conv2d", 64, 64, (16, 16), (3, 3), (1, 1), path=str(number)) for number in range(6)]
OPTIONS = [candidates(NETWORK, layer) for layer in NETWORK]
TARGET = 0.35 * sum(layer.macs for layer in NETWORK) * 1e-10
RATIO = map_by_rule(NETWORK, TABLE, TARGET)[1]
EVALUATIONS = 250


@functools.cache
def damage(path: str, scheme: Scheme) -> float:
    return float(np.random.default_rng([int(path), *str(scheme).encode()]).uniform(0, 0.1))


def proxy(mapping) -> float:
    torch.manual_seed(0)  # as one that trains would
    assert all(layer.ratio is not None for layer in mapping.values())
    return 1 - sum(damage(path, layer.scheme) for path, layer in mapping.items())


@functools.cache
def reward_of(schemes: tuple[Scheme, ...]) -> float:
    mapping = at_ratio({n.path: LayerMapping(s) for n, s in zip(NETWORK, schemes, strict=True)}, RATIO)
    return proxy(mapping) - SearchConfig().penalty * max(0.0, TABLE.predict(NETWORK, mapping) / TARGET - 1)


@functools.cache
def searched(seed: int):
    calls = []

    def counted(mapping) -> float:
        calls.append(mapping)
        return proxy(mapping)

    config = SearchConfig(evaluations=EVALUATIONS, seed=seed)
    return *map_by_search(NETWORK, TABLE, TARGET, counted, config), len(calls)


def test_search_finds_the_best_mapping_and_is_ahead_of_random_search():
    best = max(map(reward_of, itertools.product(*OPTIONS)))
    found = [reward_of(tuple(layer.scheme for layer in searched(seed)[0].values())) for seed in range(2)]
    random = np.random.default_rng(0)
    drawn = [
        max(reward_of(tuple(options[random.integers(len(options))] for options in OPTIONS)) for _ in range(EVALUATIONS))
        for _ in range(3)
    ]
    assert max(found) == pytest.approx(best)
    assert min(found) > max(drawn)


def test_search_starts_from_the_rule_and_counts_only_new_mappings():
    mapping, ratio, trials, calls = searched(0)
    assert ratio == RATIO and trials[0].mapping == map_by_rule(NETWORK, TABLE, TARGET)[0]
    assert len(trials) == calls <= EVALUATIONS
    assert len({tuple(layer.scheme for layer in trial.mapping.values()) for trial in trials}) == len(trials)
    assert max(trials, key=lambda trial: trial.reward).mapping == mapping
    assert all(layer.ratio is None for layer in mapping.values())


def test_search_repeats_itself_with_the_same_seed():
    again = map_by_search(NETWORK, TABLE, TARGET, proxy, SearchConfig(evaluations=40, seed=1))[2]
    assert again == searched(1)[2][:40]


def test_search_of_a_network_that_is_fast_enough_leaves_it_dense():
    mapping, ratio, trials = map_by_search(NETWORK, TABLE, 10 * TARGET, proxy)
    assert ratio == 0 and len(trials) == 1 and {layer.scheme for layer in mapping.values()} == {DENSE}
