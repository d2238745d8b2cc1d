"""Dense 3x3 convolutions by Winograd's algorithm F(M x M, 3 x 3) (Lavin and Gray, 1509.09308).

The picture is cut into tiles of M x M outputs, of (M + 2) x (M + 2) inputs each. Input and kernel are transformed so
that the convolution becomes (M + 2)^2 products of matrices (O, I) and (I, tiles), for which there are the kernels of
dense products: 4 times fewer multiplications for M = 4, 2.25 times fewer for M = 2. Rows of tiles are computed a band
at a time, whose transformed input and output stay in the cache.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asrkit.compress.codegen.expressions import c_expression
from asrkit.compress.codegen.graph import IDENTITY
from asrkit.compress.codegen.kernels import Shape
from asrkit.compress.codegen.pack import choose
from asrkit.compress.codegen.steps import Picture, Tiling, Winograd
from asrkit.compress.codegen.target import Target

if TYPE_CHECKING:
    from asrkit.compress.codegen.emit import Emitter

FUNCTIONS = Path(__file__).parent / "c" / "winograd.h"
POINTS = {2: (0, 1, -1), 4: (0, 0.75, -0.75, 1.5, -1.5)}  # of polynomials, and infinity; those of c/winograd.h
BAND = 2**20  # bytes that the transformed input and output of a band may take
# In the unit of `pack.choose`, as measured: transforms of a vector of tiles of a channel, by the size of a tile, and
# weights that have to come from afar as there are more of them than the caches hold.
READ_COST, WRITE_COST, WEIGHT_COST = {2: 200.0, 4: 490.0}, {2: 130.0, 4: 375.0}, 0.3
CACHED = 2**17


def tilings(height: int, width: int, channels: int, lanes: int) -> list[Tiling]:
    """Return how to cut a picture with each size of tiles, in bands that take the fewest vectors.

    `channels` are those of the input and of the output together.
    """
    found = []
    for tile in POINTS:
        rows, columns = -(-height // tile), -(-width // tile)
        ways = [Tiling(tile, rows, columns, band, lanes) for band in range(1, rows + 1)]
        sizes = {way: 4 * way.products * way.apart(channels) for way in ways}
        fitting = [way for way in ways if sizes[way] <= max(BAND, sizes[ways[0]])]
        found.append(min(fitting, key=lambda way: (way.bands * way.vectors, way.bands)))
    return found


def best_tiling(weight: np.ndarray, picture: Picture, target: Target) -> Tiling | None:
    """Return the tiling for a convolution (O, I, 3, 3), or None if it is better done directly."""
    outputs, inputs = weight.shape[:2]
    direct, *_ = choose(weight.reshape(outputs, -1) != 0, 1, picture.run, target)
    ways = tilings(picture.height, picture.width, inputs + outputs, target.lanes)
    costs = {way: cost(way, outputs, inputs, target) for way in ways}
    best = min(costs, key=costs.__getitem__)
    return best if costs[best] < direct else None


def cost(way: Tiling, outputs: int, inputs: int, target: Target) -> float:
    """Return what a convolution takes, in the unit of `pack.choose`."""
    product, *_ = choose(np.ones((outputs, inputs), bool), 1, way.vectors * way.lanes, target)
    transforms = READ_COST[way.tile] * inputs + WRITE_COST[way.tile] * outputs
    far = max(0, way.products * outputs * inputs - CACHED)
    return way.bands * (way.products * product + WEIGHT_COST * far + way.vectors * transforms)


def transformed(weight: np.ndarray, tile: int) -> np.ndarray:
    """Return the matrices of the products (products, O, I) of the kernels of a convolution (O, I * 9)."""
    points = np.array(POINTS[tile])
    others = np.prod(points[:, None] - points + np.eye(len(points)), axis=1)
    g = np.vstack([np.vander(points, 3, increasing=True) / others[:, None], [0, 0, 1]])
    kernels = weight.astype(np.float64).reshape(len(weight), -1, 3, 3)
    return np.einsum("ak,bl,oikl->aboi", g, g, kernels, optimize=True).reshape(-1, *kernels.shape[:2])


def spread(tile: int) -> np.ndarray:
    """Return what to add to each product (products,) so that 1 is added to each output."""
    at_points = np.vander(np.array(POINTS[tile]), tile, increasing=True)
    outputs = np.vstack([at_points, np.eye(tile)[-1]]).T
    ones = np.linalg.lstsq(outputs, np.ones(tile), rcond=None)[0]
    return np.outer(ones, ones).ravel()


def emit(step: Winograd, emitter: "Emitter") -> list[str]:
    """Return the C of a step: for each band, the transform of the input, the products, and that of the output."""
    way = step.tiling
    emitter.kernels.include(FUNCTIONS.read_text())
    emitter.kernels.include(f"W_FUNCTIONS({way.tile})\n")
    inputs = step.weight.shape[1] // 9
    lines = [
        f"const float *x = {emitter.pointer(step.x.buffer, step.x.offset)};",
        f"float *y = {emitter.pointer(step.out.buffer, step.out.offset)};",
        f"float *v = {emitter.pointer(step.scratch, 0)}, *m = v + {way.apart(inputs) * way.products};",
        f"for (int band = 0; band < {way.bands}; ++band) {{",
        f"  const int top = (band < {way.bands - 1} ? band * {way.band} : {way.rows - way.band}) * {way.tile};",
    ]
    for part in (_read(step, emitter), _products(step, emitter), _write(step, emitter)):
        lines += ["  PARALLEL", *(f"  {line}" for line in part)]
    return [*lines, "}"]


def _read(step: Winograd, emitter: "Emitter") -> list[str]:
    way, picture = step.tiling, step.picture
    channels, rows = step.x.offsets(0), step.x.dims[1]
    beside = np.arange(way.vectors * way.lanes) % way.columns
    edges = -np.stack([beside > 0, beside < way.columns - 1]).astype(np.int32)
    edges[1, -1] = 0  # there is nothing to its right, even if the tile is one too many
    arguments = [
        f"v + c * {way.vectors * way.lanes}, {way.apart(len(channels))}, {way.vectors}",
        f"x + channels[c], {np.diff(channels).max(initial=0)}, {rows[0][1] if rows else 0}",
        f"{picture.height}, {picture.width}, top, {way.band}, {way.columns}",
        f"edges, (float *)lines, (float *)phases, {way.span}",
    ]
    return [
        f"for (int c = 0; c < {len(channels)}; ++c) {{",
        f"  const int *channels = {emitter.table(channels)}, *edges = {emitter.table(edges)};",
        f"  vf lines[{way.tile * way.span // way.lanes + 1}], phases[{way.tile**2 * way.span // way.lanes + 1}];",
        f"  w_read_{way.tile}({', '.join(arguments)});",
        "}",
    ]


def _products(step: Winograd, emitter: "Emitter") -> list[str]:
    way = step.tiling
    weight = transformed(step.weight, way.tile)
    products, outputs, inputs = weight.shape
    _, _, rows, _ = choose(np.ones((outputs, inputs), bool), 1, way.vectors * way.lanes, emitter.target)
    blocks = [weight[:, first : first + rows].transpose(0, 2, 1) for first in range(0, outputs, rows)]
    blocks = np.concatenate([block.reshape(products, -1) for block in blocks], axis=1)
    bias = np.outer(spread(way.tile), step.bias)
    channels = emitter.table(np.arange(max(outputs, inputs)) * way.vectors * way.lanes)
    lines = [
        f"for (int k = 0; k < {products}; ++k) {{",
        f"  const float *w = {emitter.array(blocks)} + k * {outputs * inputs};",
        f"  const float *bias = {emitter.array(bias)} + k * {outputs}, *p = v + k * {way.apart(inputs)};",
        f"  float *q = m + k * {way.apart(outputs)};",
        f"  const int *channels = {channels}, count = {inputs};",
    ]

    def call(height: int, vectors: int, o: str, t: str) -> str:
        name = emitter.kernels.name(Shape("shared", height, vectors, IDENTITY, (), False, False))
        return f"{name}(p + {t}, w + {o} * {inputs}, channels, &count, bias + {o}, q + {t}, channels + {o});"

    full, rest = divmod(outputs, rows)
    for part in np.array_split(np.arange(way.vectors), -(-way.vectors // emitter.target.tiles[rows])):
        t = f"{part[0]} * LANES"
        lines.append(f"  for (int b = 0; b < {full}; ++b) {call(rows, len(part), f'b * {rows}', t)}")
        if rest:
            lines.append(f"  {call(rest, len(part), str(full * rows), t)}")
    return [*lines, "}"]


def _write(step: Winograd, emitter: "Emitter") -> list[str]:
    way, picture = step.tiling, step.picture
    outputs, plane, width = len(step.weight), way.vectors * way.lanes, picture.width
    lines = [
        f"for (int o = 0; o < {outputs}; ++o) {{",
        f"  const int *rows = {emitter.table(step.rows)};",
        f"  vf lines[{way.tile**2 * way.vectors + 1}];",
        f"  w_write_{way.tile}((float *)lines, m + o * {plane}, {way.apart(outputs)}, {way.vectors});",
    ]
    inputs = ["v_load(from + j)"]
    for i, operand in enumerate(step.operands):
        lines.append(f"  const int *e{i}_rows = {emitter.table(operand.offsets)};")
        lines.append(f"  const float *e{i} = {emitter.pointer(operand.buffer, operand.start)} + e{i}_rows[o];")
        inputs.append(f"v_splat(*e{i})" if operand.per_row else f"v_load(e{i} + r * {picture.pitch} + j)")
    value = c_expression(step.epilogue, inputs)
    store = f"v_store(out + j, {value});"
    if picture.base + (picture.height - 1) * picture.pitch + -(-width // way.lanes) * way.lanes > picture.plane:
        part = f"v_store_part(out + j, 1, {value}, {width % way.lanes});"
        store = f"if (j + LANES <= {width} || r + 1 < {picture.height}) {store} else {part}"
    return [
        *lines,
        f"  for (int r = top; r < top + {way.band * way.tile} && r < {picture.height}; ++r) {{",
        f"    const int row = (r - top) / {way.tile} * {way.columns * way.tile};",
        f"    const float *from = (const float *)lines + r % {way.tile} * {plane * way.tile} + row;",
        f"    float *out = y + rows[o] + r * {picture.pitch};",
        f"    for (int j = 0; j < {width}; j += LANES) {{",
        f"      __builtin_prefetch(out + {picture.plane} + j);",
        f"      {store}",
        "    }",
        "  }",
        "}",
    ]
