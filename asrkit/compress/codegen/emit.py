"""The C of a plan: one function a step, one kernel for each shape of block that occurs, weights in a file beside it."""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from asrkit.compress.codegen import views, winograd
from asrkit.compress.codegen.chains import Chain
from asrkit.compress.codegen.expressions import c_expression
from asrkit.compress.codegen.graph import IDENTITY
from asrkit.compress.codegen.kernels import Kernels, Shape
from asrkit.compress.codegen.pack import Packed, pack
from asrkit.compress.codegen.plan import Plan
from asrkit.compress.codegen.steps import (
    Clear,
    Elementwise,
    Gather,
    LayerNorm,
    Lookup,
    Matmul,
    Pool,
    Product,
    Reduce,
    Softmax,
    Winograd,
)
from asrkit.compress.codegen.target import Target
from asrkit.compress.codegen.views import Buffer, View

ALIGNMENT = 64  # bytes
MAGIC = b"asrkit-c"
PREFETCHED = 2**19  # bytes of input beyond which a product asks for its next pixels ahead of time


class Weights:
    """The file of weights: arrays one after another, each at a multiple of ALIGNMENT."""

    def __init__(self) -> None:
        self.contents = bytearray(ALIGNMENT)  # the place of the header
        self.places: dict[bytes, int] = {}

    def add(self, array: np.ndarray) -> int:
        """Return where the contents of an array lie, in bytes; equal ones lie there once."""
        data = np.ascontiguousarray(array).tobytes()
        if data not in self.places:
            self.contents += bytes(-len(self.contents) % ALIGNMENT)
            self.places[data] = len(self.contents)
            self.contents += data
        return self.places[data]

    def file(self) -> bytes:
        """Return the whole file; its header is the magic word, the size and a checksum of the rest."""
        self.contents += bytes(
            -len(self.contents) % ALIGNMENT + ALIGNMENT
        )  # the last vector may reach beyond its array
        body = bytes(self.contents[ALIGNMENT:])
        header = MAGIC + len(self.contents).to_bytes(8, "little") + checksum(body).to_bytes(8, "little")
        return header.ljust(ALIGNMENT, b"\0") + body


def checksum(body: bytes) -> int:
    """Return the sum of all 32-bit words, and the sum of these sums, each modulo 2^32 (Fletcher's checksum)."""
    words = np.frombuffer(body, np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        sums = np.cumsum(words)
        return int(sums[-1] & 0xFFFFFFFF) | int(np.sum(sums & 0xFFFFFFFF) & 0xFFFFFFFF) << 32


class Emitter:
    """Writes the functions of a plan.

    `texts` are the functions, `run` the names of those that make up the network, one for each step or chain, and
    `packed` is what became of each product.
    """

    def __init__(self, plan: Plan, target: Target) -> None:
        self.target = target
        self.weights = Weights()
        self.kernels = Kernels(target)
        self.packed: dict[int, Packed] = {}
        self.constants = {}
        self.texts = []
        self.run = []
        chains = {i: chain for chain in plan.chains for i in range(chain.first, chain.last + 1)}
        for i, step in enumerate(plan.steps):
            self.step = i
            comment = f"/* {step.path}: {type(step).__name__.lower()} */\n"
            write = getattr(self, f"_{type(step).__name__.lower()}")
            if chain := chains.get(i):
                self.texts.append(comment + _function(f"PART(part_{i})", write(step, chain)))
                self.texts.append(_function(f"STEP(step_{i})", _parts(range(i, i + 1), chain.chunks)))
                if i == chain.last:
                    parts = ["PARALLEL", *_parts(range(chain.first, i + 1), chain.chunks)]
                    self.texts.append(_function(f"STEP(chain_{i})", parts))
                    self.run.append(f"chain_{i}")
            else:
                self.texts.append(comment + _function(f"STEP(step_{i})", write(step)))
                self.run.append(f"step_{i}")

    # --- pointers

    def pointer(self, buffer: Buffer, start: int) -> str:
        """Return C for a pointer to an element of a buffer."""
        if buffer.kind == "workspace":
            return f"(work + {buffer.start + start})"
        if buffer.kind == "constant":
            if buffer not in self.constants:
                self.constants[buffer] = self.weights.add(buffer.array)
            return f"({self.floats(self.constants[buffer])} + {start})"
        return f"({buffer.kind}s[{buffer.index}] + {start})"

    def floats(self, place: int) -> str:
        return f"(const float *)(weights + {place})"

    def table(self, array: np.ndarray) -> str:
        """Return C for a pointer to a table of whole numbers."""
        return f"(const int *)(weights + {self.weights.add(array.astype(np.int32))})"

    def array(self, values: np.ndarray) -> str:
        return self.floats(self.weights.add(np.asarray(values, np.float32)))

    # --- products

    def _product(self, step: Product, chain: Chain | None = None) -> list[str]:
        """Return a product at all pixels, or at those of one `chunk` of a chain."""
        packed = self.packed[self.step] = pack(step, self.target)
        rows, order = packed.rows, packed.order
        blocks = len(packed.counts)
        padded = np.zeros(blocks * (self.target.lanes if packed.kernel == "vector" else rows), np.float32)
        padded[: len(order)] = step.bias[order]
        table = _block_table(packed)
        backwards = len(self.packed) % 2 == 0  # to begin with what the product before has left in the cache
        call = self._call(step, packed, backwards, chain)
        lines = [
            f"const float *x = {self._at(step.x, step.start, chain)};",
            f"float *y = {self._at(step.out.buffer, step.out.offset, chain)};",
            f"const int *blocks = {self.table(table)};",
            f"const int *columns = {self.table(packed.columns)};",
            f"const float *w = {self.array(packed.weights)};",
            f"const float *bias = {self.array(padded)};",
        ]
        width = table.shape[1]
        if packed.kernel == "vector":
            lines += [
                "PARALLEL",
                f"for (int b = 0; b < {blocks}; ++b) {{",
                f"  const int *block = blocks + b * {width};",
            ]
            lanes = self.target.lanes
            lines += ["  " + call(rows, lanes // rows, f"b * {lanes}", "0"), "}"]
            return lines
        lines.append(f"const int *rows = {self.table(step.rows[order])};")

        def tiles(vectors: int) -> list[str]:
            return self._tiles(packed, vectors, width, backwards, call)

        if chain is None:
            return [*lines, "PARALLEL", *tiles(-(-step.pixels // self.target.lanes))]
        lines.insert(0, _first_of(chain))
        if chain.large == chain.chunks:
            return [*lines, *tiles(chain.most)]
        fewer = ["} else {", *tiles(chain.most - 1), "}"]
        return [*lines, f"if (chunk < {chain.large}) {{", *tiles(chain.most), *fewer]

    def _at(self, buffer: Buffer, start: int, chain: Chain | None, stride: int = 1) -> str:
        """Return C for a pointer to the first pixel that a function computes; pixels lie a stride apart."""
        pointer = self.pointer(buffer, start)
        if chain is None:
            return pointer
        return f"({pointer} + {f'PLACE(chunk) * {buffer.apart}' if buffer.apart else f'first * {stride}'})"

    def _tiles(
        self, packed: Packed, vectors: int, width: int, backwards: bool, call: Callable[[int, int, str, str], str]
    ) -> list[str]:
        """Return a loop over tiles of so many vectors of pixels; `width` is that of the table of blocks."""
        rows = packed.rows
        tiles = -(-vectors // self.target.tiles[rows])
        most, large = -(-vectors // tiles), vectors % tiles or tiles
        full, rest = divmod(len(packed.order), rows)
        body: list[str] = []
        for vectors_here, condition in ((most, f"tile < {large}"), (most - 1, "1")):
            if vectors_here and (vectors_here == most or large < tiles):
                body.append(f"  if ({condition}) {{")
                body.append(f"    for (int b = 0; b < {full}; ++b) {{")
                body.append(f"      const int *block = blocks + b * {width};")
                body += ["      " + call(rows, vectors_here, f"b * {rows}", "p"), "    }"]
                if rest:
                    body.append(f"    const int *block = blocks + {full * width};")
                    body.append("    " + call(rest, vectors_here, f"{full * rows}", "p"))
                body += ["    continue;", "  }"]
        return [
            f"for (int n = 0; n < {tiles}; ++n) {{",
            f"  const int tile = {f'{tiles - 1} - n' if backwards else 'n'};",
            f"  const int p = {_first_pixel('tile', most, large)};",
            *body,
            "}",
        ]

    def _call(
        self, step: Product, packed: Packed, backwards: bool, chain: Chain | None
    ) -> Callable[[int, int, str, str], str]:
        """Return what gives C for the call of a kernel on a block: rows, vectors, first row, first pixel."""
        operands = []
        for operand in step.operands:
            if packed.kernel == "vector":
                operands.append((False, self.pointer(operand.buffer, operand.start), None))
            else:
                base = self._at(operand.buffer, operand.start, None if operand.per_row else chain)
                operands.append((operand.per_row, base, self.table(operand.offsets[packed.order])))
        far = chain is None and step.x.size * 4 > PREFETCHED and packed.kernel != "vector"
        prefetch = (-1 if backwards else 1) * far
        single = step.pixels == 1 and packed.kernel != "vector"

        def call(rows: int, vectors: int, first: str, pixel: str) -> str:
            masked = packed.kernel == "masked" and rows == packed.rows
            kind = "vector" if packed.kernel == "vector" else "masked" if masked else "shared"
            per_row = tuple(p for p, _, _ in operands)
            name = self.kernels.name(Shape(kind, rows, vectors, step.epilogue, per_row, prefetch, single))
            arguments = [f"x + {pixel}", "w + block[1]", "columns + block[0]", "block + 2", f"bias + {first}"]
            if kind == "vector":
                arguments.append(f"y + {first}")
                arguments += [f"{base} + {first}" for _, base, _ in operands]
            else:
                arguments += [f"y + {pixel}", f"rows + {first}"]
                for per_row, base, table in operands:
                    arguments += [base if per_row else f"{base} + {pixel}", f"{table} + {first}"]
            return f"{name}({', '.join(arguments)});"

        return call

    def _winograd(self, step: Winograd) -> list[str]:
        return winograd.emit(step, self)

    # --- loops over views

    def _nest(
        self, outer: Sequence[tuple[int, tuple[int, ...]]], pointers: list[str], parallel: bool = True
    ) -> tuple[list[str], list[str]]:
        """Return the heads of nested loops, and the pointers moved by them."""
        lines = ["PARALLEL"] if outer and parallel else []
        for depth, (n, strides) in enumerate(outer):
            lines.append("  " * depth + f"for (int i{depth} = 0; i{depth} < {n}; ++i{depth}) {{")
            pointers = [f"{p} + i{depth} * {s}" if s else p for p, s in zip(pointers, strides, strict=True)]
        return lines, pointers

    def _elementwise(self, step: Elementwise, chain: Chain | None = None) -> list[str]:
        """Return loops over all elements, or over those of one `chunk` of a chain."""
        if chain is None:
            nest = step.nest or [(1, (1,) * (len(step.inputs) + 1))]
            return self._each(step, nest, [self.pointer(view.buffer, view.offset) for view in (step.out, *step.inputs)])
        _, strides = step.nest[step.along]
        pointers = [
            self._at(view.buffer, view.offset, chain, stride)
            for view, stride in zip((step.out, *step.inputs), strides, strict=True)
        ]

        def pixels(count: int) -> list[str]:
            nest = [(count if i == step.along else n, s) for i, (n, s) in enumerate(step.nest)]
            return self._each(step, nest, pointers)

        lanes, last = self.target.lanes, chain.chunks - 1
        cases = [(f"chunk == {last}", chain.last_pixels), (f"chunk < {chain.large}", chain.most * lanes)]
        if chain.large < last:
            cases.append(("1", (chain.most - 1) * lanes))
        lines = [_first_of(chain)]
        for i, (condition, count) in enumerate(cases):
            lines += [f"{'else ' * (i > 0)}if ({condition}) {{", *pixels(count), "}"]
        return lines

    def _each(self, step: Elementwise, nest: Sequence[tuple[int, tuple[int, ...]]], pointers: list[str]) -> list[str]:
        if lines := self._transposed(step, nest, pointers):
            return lines
        (*outer, (length, strides)) = nest
        lines, pointers = self._nest(outer, pointers, step.along is None)  # a chain shares its chunks among the threads
        lines.append(f"float *y = {pointers[0]};")
        lines += [f"const float *x{i} = {p};" for i, p in enumerate(pointers[1:])]
        room = step.room and self._room(step.out, [stride[0] for _, stride in outer], length) and strides[0] == 1

        def set_vector(count: int) -> str:
            loads = [
                self._load(f"x{i}", view, stride, count)
                for i, (view, stride) in enumerate(zip(step.inputs, strides[1:], strict=True))
            ]
            value = c_expression(step.expression, loads)
            if strides[0] == 1 and (count == self.target.lanes or room):
                return f"v_store(y + j, {value});"
            return f"v_store_part(y + j * {strides[0]}, {strides[0]}, {value}, {count});"

        full = length // self.target.lanes * self.target.lanes
        if full:
            lines.append(f"for (int j = 0; j < {full}; j += LANES) {set_vector(self.target.lanes)}")
        if length > full:
            lines.append(f"{{ const int j = {full}; {set_vector(length - full)} }}")
        return [*lines, *"}" * len(outer)]

    def _transposed(
        self, step: Elementwise, nest: Sequence[tuple[int, tuple[int, ...]]], pointers: list[str]
    ) -> list[str]:
        """Return a copy between two orders of dimensions as transpositions of matrices, or nothing if it is none."""
        *outer, (columns, strides) = nest
        rows = next((loop for loop in outer if loop[1][1:] == (1,)), None)
        if step.expression != IDENTITY or strides[0] != 1 or rows is None or min(rows[0], columns) < self.target.lanes:
            return []
        outer.remove(rows)
        lines, (y, x) = self._nest(outer, pointers, step.along is None)
        sizes = f"{rows[1][0]}, {x}, {strides[1]}, {rows[0]}, {columns}"
        return [*lines, f"{self.kernels.transposition()}({y}, {sizes});", *"}" * len(outer)]

    def _room(self, out: View, strides: Sequence[int], length: int) -> bool:
        """Return whether the last vector of rows of this length may reach beyond their ends."""
        whole = -(-length // self.target.lanes) * self.target.lanes
        return out.buffer.kind == "workspace" and all(stride >= whole for stride in strides)

    def _load(self, pointer: str, view: View, stride: int, count: int) -> str:
        if stride == 0:
            return f"v_splat(*{pointer})"
        if stride == 1 and (count == self.target.lanes or view.buffer.kind != "input"):
            return f"v_load({pointer} + j)"
        return f"v_load_part({pointer} + j * {stride}, {stride}, {count})"

    def _gather(self, step: Gather) -> list[str]:
        (channels, apart), (height, row), (width, column) = map(_only, step.x.dims)
        (_, channel), (_, plane), (_, pitch), _ = map(_only, step.out.dims)
        lines = [
            f"const float *x = {self.pointer(step.x.buffer, step.x.offset)};",
            f"float *y = {self.pointer(step.out.buffer, step.out.offset)};",
            "PARALLEL",
            f"for (int c = 0; c < {channels}; ++c) {{",
        ]
        for s, (top, left) in enumerate(step.firsts):
            i0, i1 = _inside(top, step.stride[0], height, step.picture[0])
            j0, j1 = _inside(left, step.stride[1], width, step.picture[1])
            sizes = ", ".join(
                map(str, (*step.picture, pitch, i0, i1, j0, j1, step.stride[0] * row, step.stride[1] * column))
            )
            first = top * row + left * column
            lines.append(f"copy_picture(y + c * {channel} + {s * plane}, x + c * {apart} + ({first}), {sizes});")
        return [*lines, "}"]

    def _clear(self, step: Clear) -> list[str]:
        picture = step.picture
        around = picture.margins[0] * picture.pitch + picture.margins[1]
        sizes = f"{picture.base}, {picture.height}, {picture.width}, {picture.pitch}, {around}"
        return [
            f"float *y = {self.pointer(step.out.buffer, 0)};",
            "PARALLEL",
            f"for (int c = 0; c < {step.channels}; ++c) clear_margins(y + c * {picture.plane}, {sizes});",
        ]

    def _pool(self, step: Pool) -> list[str]:
        (channels, apart), (tall, row), (wide, column) = map(_only, step.x.dims)
        (_, plane), (height, pitch), (width, _) = map(_only, step.out.dims)
        numbers = (tall, wide, row, column, *step.kernel, *step.stride, *step.padding, int(step.count_padding))
        sizes = ", ".join(map(str, numbers))
        return [
            f"const float *x = {self.pointer(step.x.buffer, step.x.offset)};",
            f"float *y = {self.pointer(step.out.buffer, step.out.offset)};",
            "PARALLEL",
            f"for (int c = 0; c < {channels}; ++c)",
            f"  for (int i = 0; i < {height}; ++i)",
            f"    pool_row_{step.how}(y + c * {plane} + i * {pitch}, x + c * {apart}, i, {width}, {sizes});",
        ]

    # --- over several elements: vectors go along other dimensions than those that are summed

    def _over(self, kept: Sequence[View], body: Callable[[int], list[str]]) -> list[str]:
        """Return loops over views, the first written to; `body(count)` is for `count` elements at *y, *x0, *x1, …"""
        nest = list(views.loops(kept))
        beside = bool(nest) and set(nest[-1][1]) <= {0, 1} and nest[-1][1][:2] == (1, 1)
        outer, length = (nest[:-1], nest[-1][0]) if beside else (nest, 1)
        lines, pointers = self._nest(outer, [self.pointer(view.buffer, view.offset) for view in kept])
        moved = [f" + j * {s}" if s else "" for s in nest[-1][1]] if beside else [""] * len(kept)
        names = ["float *y", *(f"const float *x{i}" for i in range(len(kept) - 1))]
        starts = " ".join(f"{name} = {p}{move};" for name, p, move in zip(names, pointers, moved, strict=True))
        lanes = self.target.lanes
        full = length // lanes * lanes
        if full:
            lines += [f"for (int j = 0; j < {full}; j += LANES) {{ {starts}", *body(lanes), "}"]
        if length > full:
            room = beside and self._room(kept[0], [s[0] for _, s in outer], length)
            fits = room and all(view.buffer.kind != "input" for view in kept[1:])
            lines += [f"{{ const int j = {full}; (void)j; {starts}", *body(lanes if fits else length - full), "}"]
        return [*lines, *"}" * len(outer)]

    def _reduce(self, step: Reduce) -> list[str]:
        kept = _without(step.x, step.dims)
        inside = views.merged(factor for i in step.dims for factor in step.x.dims[i])
        total = prod(n for n, _ in inside)
        start, add = ("v_splat(-3.4e38f)", "s = v_max(s, {});") if step.how == "max" else ("v_splat(0.0f)", "s += {};")
        scale = f" * {1 / total!r}f" if step.how == "mean" else ""

        def body(count: int) -> list[str]:
            lines, place = [f"vf s = {start};"], "x0"
            for i, (n, stride) in enumerate(inside):
                lines.append(f"for (int k{i} = 0; k{i} < {n}; ++k{i})")
                place += f" + k{i} * {stride}"
            lines.append(add.format(self._lanes(place, count)))
            return [*lines, self._set("y", f"s{scale}", count)]

        return self._over([step.out, kept], body)

    def _lanes(self, place: str, count: int) -> str:
        return f"v_load({place})" if count == self.target.lanes else f"v_load_part({place}, 1, {count})"

    def _set(self, place: str, value: str, count: int) -> str:
        if count == self.target.lanes:
            return f"v_store({place}, {value});"
        return f"v_store_part({place}, 1, {value}, {count});"

    def _softmax(self, step: Softmax) -> list[str]:
        (n, x_step), (_, y_step) = (_only(view.dims[step.dim]) for view in (step.x, step.out))

        def body(count: int) -> list[str]:
            x, y = (self._lanes(f"{name} + k * {s}", count) for name, s in (("x0", x_step), ("y", y_step)))
            each = f"for (int k = 0; k < {n}; ++k)"
            return [
                "vf top = v_splat(-3.4e38f), sum = v_splat(0.0f);",
                f"{each} top = v_max(top, {x});",
                f"{each} {{ vf e = v_exp({x} - top); sum += e; {self._set(f'y + k * {y_step}', 'e', count)} }}",
                "sum = 1.0f / sum;",
                f"{each} {{ vf e = {y} * sum; {self._set(f'y + k * {y_step}', 'e', count)} }}",
            ]

        return self._over([_without(step.out, [step.dim]), _without(step.x, [step.dim])], body)

    def _layernorm(self, step: LayerNorm) -> list[str]:
        (n, x_step), (_, y_step) = _only(step.x.dims[0]), _only(step.out.dims[0])
        steps = [_only(view.dims[0])[1] for view in step.operands]
        weight, bias = self.array(step.weight), self.array(step.bias)

        def body(count: int) -> list[str]:
            x = self._lanes(f"x0 + k * {x_step}", count)
            inputs = [f"(({x} - mean) * scale * weight[k] + bias[k])"]
            for i, (view, s) in enumerate(zip(step.operands, steps, strict=True), 1):
                same = all(stride == 0 for _, stride in view.dims[1])
                place = f"x{i} + k * {s}"
                inputs.append(f"v_splat(*({place}))" if same else self._lanes(place, count))
            value = c_expression(step.epilogue, inputs)
            each = f"for (int k = 0; k < {n}; ++k)"
            return [
                "vf mean = v_splat(0.0f), scale = mean;",
                f"{each} mean += {x};",
                f"mean = mean * {1 / n!r}f;",
                f"{each} {{ vf d = {x} - mean; scale += d * d; }}",
                f"scale = 1.0f / v_sqrt(scale * {1 / n!r}f + {step.epsilon!r}f);",
                f"{each} {{ {self._set(f'y + k * {y_step}', value, count)} }}",
            ]

        kept = [_without(view, [0]) for view in (step.out, step.x, *step.operands)]
        return [f"const float *weight = {weight}, *bias = {bias};", *self._over(kept, body)]

    def _lookup(self, step: Lookup) -> list[str]:
        rows, dim = step.table.shape
        ((count, apart),) = map(_only, step.x.dims)
        (_, down), (_, beside) = map(_only, step.out.dims)
        return [
            f"const float *x = {self.pointer(step.x.buffer, step.x.offset)}, *table = {self.array(step.table)};",
            f"float *y = {self.pointer(step.out.buffer, step.out.offset)};",
            f"for (int p = 0; p < {count}; ++p) {{",
            f"  const float number = x[p * {apart}];",
            f"  const float *row = table + (number < {rows - 1} ? number > 0 ? (int)number : 0 : {rows - 1}) * {dim};",
            f"  for (int d = 0; d < {dim}; ++d) y[d * {down} + p * {beside}] = row[d];",
            "}",
        ]

    def _matmul(self, step: Matmul) -> list[str]:
        (count, scalar_step), (_, pixel_step) = _only(step.scalars.dims[-1]), _only(step.pixels.dims[-2])
        (rows, row), (_, out_row) = _only(step.scalars.dims[-2]), _only(step.out.dims[-2])
        batch = [View(v.buffer, v.offset, v.dims[:-2]) for v in (step.out, step.scalars, step.pixels)]
        lines, (y, s, x) = self._nest(list(views.loops(batch)), [self.pointer(v.buffer, v.offset) for v in batch])
        vectors = -(-step.pixels.shape[-1] // self.target.lanes)
        most, first = max(self.target.tiles), 0
        width = max(1, min(vectors, self.target.tiles[most]))
        while first < vectors:
            here = min(width, vectors - first)
            pixels, r = f"{first} * LANES", 0
            while r < rows:
                block = max(n for n in (*self.target.tiles, 1) if n <= min(rows - r, most))
                kernel = self.kernels.matmul(block, here)
                lines.append(
                    f"{kernel}({s} + {r * row}, {row}, {scalar_step}, {x} + {pixels}, {pixel_step}, {count},"
                    f" {y} + {r * out_row} + {pixels}, {out_row});"
                )
                r += block
            first += here
        return [*lines, *"}" * (len(list(views.loops(batch))))]


def _function(head: str, body: Sequence[str]) -> str:
    text = "\n".join(f"  {line}" for line in body)
    return f"{head} {{\n{text}\n}}\n"


def _first_pixel(part: str, most: int, large: int) -> str:
    """Return C for the first pixel of a part; the first `large` have `most` vectors and the others one less."""
    return f"({part} * {most - 1} + ({part} < {large} ? {part} : {large})) * LANES"


def _first_of(chain: Chain) -> str:
    return f"const int first UNUSED = {_first_pixel('chunk', chain.most, chain.large)};"


def _parts(steps: Sequence[int], chunks: int) -> list[str]:
    """Return the loop over the chunks of steps."""
    calls = " ".join(f"part_{i}(weights, work, inputs, outputs, chunk);" for i in steps)
    return [f"for (int chunk = 0; chunk < {chunks}; ++chunk) {{ {calls} }}"]


def _block_table(packed: Packed) -> np.ndarray:
    """Return where the columns and the weights of each block begin, and its counts of columns."""
    rows, blocks = packed.rows, len(packed.counts)
    heights = np.minimum(rows, len(packed.order) - np.arange(blocks) * rows)
    if packed.kernel == "vector":
        sizes = packed.counts.sum(axis=1) * rows
    elif packed.kernel == "masked":
        bits = np.array([bin(n).count("1") for n in range(1, packed.counts.shape[1] + 1)])
        sizes = np.where(heights == rows, packed.counts @ bits, packed.counts[:, 0] * heights)
    else:
        sizes = packed.counts[:, 0] * heights
    first_column = np.cumsum([0, *packed.counts.sum(axis=1)[:-1]])
    first_weight = np.cumsum([0, *sizes[:-1]])
    return np.column_stack([first_column, first_weight, packed.counts])


def _only(factors: views.Factors) -> tuple[int, int]:
    """Return size and stride of a dimension with one stride."""
    if len(factors) > 1:
        raise AssertionError(f"a dimension with the strides of {factors}")
    return factors[0] if factors else (1, 0)


def _without(view: View, dims: Sequence[int]) -> View:
    return View(view.buffer, view.offset, tuple(() if i in dims else dim for i, dim in enumerate(view.dims)))


def _inside(first: int, step: int, size: int, count: int) -> tuple[int, int]:
    """Return the range of i < count for which first + i * step lies in [0, size)."""
    begin = min(count, max(0, -(first // step)))
    return begin, max(begin, min(count, -(-(size - first) // step)))
