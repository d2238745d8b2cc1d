"""Which pruning scheme and block size suits each layer of a network best: by rule or by search, and the file of them.

Gong et al., "Automatic Mapping of the Best-Suited DNN Pruning Schemes for Real-Time Mobile Acceleration"
(arXiv:2111.11581). Both ways ask a latency table how long a layer takes; neither runs the network on the target.

A mapping file is YAML that a person can read and edit:

    network: exp/dense
    target: avx512
    seconds: 0.00123         # predicted
    ratio: 0.85              # of the weights of pruned layers, assumed in the prediction
    layers:
      features.0: {scheme: dense}
      features.3: {scheme: pattern}
      features.7: {scheme: punched 4x1, ratio: 0.8}

A layer without a ratio gets it from training; one that is not named stays dense.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from asrkit.compress.latency import BLOCKS, DENSE, LatencyTable, Layer
from asrkit.compress.schemes import Scheme
from asrkit.config import read_config
from asrkit.errors import InputError
from asrkit.files import atomic_write

BETA = 0.2  # how much slower than structured pruning a block may be
TINY = 2048  # weights: smaller layers are sensitive, and pruning them saves nothing
PATTERN = Scheme("pattern")
PATTERN_RATIOS = (5 / 9, 0.75)  # what patterns alone reach, and how far removing kernels on top does no harm
LARGEST_RATIO = 0.97  # a layer pruned further is as good as gone
BISECTIONS = 12


@dataclass(frozen=True)
class LayerMapping:
    """How one layer is pruned; `ratio` is the fraction of its weights to remove, None: training decides."""

    scheme: Scheme
    ratio: float | None = None


Mapping = dict[str, LayerMapping]


# The file


@dataclass(frozen=True)
class MappingHeader:
    """What a mapping was made for; all of it is information for people and for reports."""

    network: str = ""
    target: str = ""
    seconds: float | None = None
    """Latency predicted."""
    ratio: float | None = None
    """Ratio assumed for layers without one of their own."""


@dataclass(frozen=True)
class _MappingFile(MappingHeader):
    layers: dict[str, Any] = field(default_factory=dict)


def write_mapping(mapping: Mapping, file: Path | str, header: MappingHeader | None = None) -> None:
    """Write a mapping file that `read_mapping` and `read_header` read back to equal records."""
    known = {key: value for key, value in asdict(header or MappingHeader()).items() if value not in ("", None)}
    layers = {
        path: {"scheme": str(layer.scheme)} | ({} if layer.ratio is None else {"ratio": layer.ratio})
        for path, layer in mapping.items()
    }
    with atomic_write(file) as out:
        yaml.safe_dump(known | {"layers": layers}, out, sort_keys=False, default_flow_style=None, width=120)


def read_mapping(file: Path | str, layers: Collection[str] | None = None) -> Mapping:
    """Read a mapping file.

    Args:
        file: to read.
        layers: paths of the network's layers; when given, the file may name no others.

    Raises:
        InputError: the file is missing, no YAML, or wrong: names the file, the layer and what is wrong with it.
    """
    content = read_config(_MappingFile, [file])
    if not content.layers:
        raise InputError(f"{file}: no layers")
    mapping = {str(path): _layer_mapping(f"{file}: layers: {path}", entry) for path, entry in content.layers.items()}
    if layers is not None and (unknown := [path for path in mapping if path not in layers]):
        raise InputError(f"{file}: layers: the network has no layer {', '.join(unknown[:3])}")
    return mapping


def read_header(file: Path | str) -> MappingHeader:
    """Read what a mapping file was made for; errors as in `read_mapping`."""
    content = read_config(_MappingFile, [file])
    return MappingHeader(content.network, content.target, content.seconds, content.ratio)


def _layer_mapping(where: str, entry: Any) -> LayerMapping:
    if not isinstance(entry, dict) or "scheme" not in entry:
        raise InputError(f"{where}: expected {{scheme: ...}}, found {entry!r}")
    if unknown := set(entry) - {"scheme", "ratio"}:
        raise InputError(f"{where}: no option {', '.join(map(str, sorted(unknown, key=str)))}")
    try:
        scheme = Scheme.parse(str(entry["scheme"]))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    ratio = entry.get("ratio")
    if ratio is not None and not (type(ratio) in (int, float) and 0 <= ratio < 1):
        raise InputError(f"{where}: ratio must be a number from 0 to below 1, not {ratio!r}")
    return LayerMapping(scheme, None if ratio is None else float(ratio))


def at_ratio(mapping: Mapping, ratio: float) -> Mapping:
    """Return the mapping with `ratio` for layers that have none: 0 for dense ones, at least 5/9 for patterns."""

    def ratio_of(scheme: Scheme) -> float:
        return {"dense": 0.0, "pattern": max(ratio, PATTERN_RATIOS[0])}.get(scheme.kind, ratio)

    return {
        path: layer if layer.ratio is not None else replace(layer, ratio=ratio_of(layer.scheme))
        for path, layer in mapping.items()
    }


# By rule, without training


def candidates(layers: Sequence[Layer], layer: Layer) -> list[Scheme]:
    """Return the schemes worth trying on one layer of a network, dense first, then pattern, then the smallest block.

    The first layer, tiny ones and depthwise ones hold few weights and are sensitive: they stay dense.
    """
    if layer.path == layers[0].path or layer.weights < TINY or layer.depthwise:
        return [DENSE]
    pattern = [PATTERN] if layer.kernel == (3, 3) and layer.positions > 1 else []
    return [DENSE, *pattern, *(scheme for scheme in BLOCKS if _takes(layer, scheme))]


def _takes(layer: Layer, scheme: Scheme) -> bool:
    """Whether blocks of the scheme fit: "block" is of matrices, and no block is larger than the layer."""
    return (scheme.kind == "punched" or not layer.kernel) and scheme.block[0] <= layer.out_channels // layer.groups


def map_to_scheme(layers: Sequence[Layer], scheme: Scheme) -> Mapping:
    """Return the mapping of one scheme to every layer that is to be pruned and can take it; the others stay dense."""

    def fits(layer: Layer) -> bool:
        if scheme.has_block:
            return _takes(layer, scheme)
        return scheme.kind != "pattern" or layer.kernel == (3, 3)

    pruned = (len(candidates(layers, layer)) > 1 and fits(layer) for layer in layers)
    return {layer.path: LayerMapping(scheme if fit else DENSE) for layer, fit in zip(layers, pruned, strict=True)}


def rule_of_layer(
    layers: Sequence[Layer], layer: Layer, table: LatencyTable, ratio: float, patterns: bool = False
) -> Scheme:
    """Return the scheme for a layer at an assumed ratio.

    The pattern for 3x3 kernels if `patterns`; otherwise the smallest block within 20 % of the latency of structured
    pruning, or of the fastest block where none is as fast as that. A layer that pruning does not make faster stays
    dense.
    """
    schemes = candidates(layers, layer)
    dense = table.seconds(layer, DENSE, 0.0)
    if patterns and PATTERN in schemes:
        return PATTERN if table.seconds(layer, PATTERN, max(ratio, PATTERN_RATIOS[0])) < dense else DENSE
    blocks = {scheme: table.seconds(layer, scheme, ratio) for scheme in schemes if scheme.has_block}
    if not blocks or min(blocks.values()) >= dense:
        return DENSE
    limit = (1 + BETA) * max(table.seconds(layer, Scheme("filter"), ratio), min(blocks.values()))
    return next(scheme for scheme, seconds in blocks.items() if seconds <= limit)


def map_by_rule(layers: Sequence[Layer], table: LatencyTable, seconds: float) -> tuple[Mapping, float]:
    """Choose schemes by the paper's rule, which trains nothing, at the smallest ratio that meets a latency.

    The ratio is common to all pruned layers. 3x3 kernels get patterns if the ratio that is then needed is modest, and
    blocks otherwise. The paper has patterns for hard data sets and blocks for easy ones; the ratio needed is what that
    comes to (a reading).

    Args:
        layers: of the network, in order.
        table: of the target.
        seconds: latency to meet.

    Returns:
        the mapping, whose ratios are left to training, and the ratio assumed.

    Raises:
        InputError: the latency cannot be met at any sensible ratio; names the best that can.
    """

    def mapped(ratio: float, patterns: bool) -> Mapping:
        return {layer.path: LayerMapping(rule_of_layer(layers, layer, table, ratio, patterns)) for layer in layers}

    def predicted(ratio: float, patterns: bool) -> float:
        return table.predict(layers, at_ratio(mapped(ratio, patterns), ratio))

    dense = {layer.path: LayerMapping(DENSE) for layer in layers}
    if table.predict(layers, at_ratio(dense, 0.0)) <= seconds:
        return dense, 0.0
    patterns = predicted(PATTERN_RATIOS[1], True) <= seconds
    low, high = PATTERN_RATIOS if patterns else (0.0, LARGEST_RATIO)
    if (best := predicted(high, patterns)) > seconds:
        raise InputError(f"a latency of {1e3 * seconds:.3g} ms cannot be met: {1e3 * best:.3g} ms at a ratio of {high}")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if predicted(middle, patterns) <= seconds else (middle, high)
    return mapped(high, patterns), high
