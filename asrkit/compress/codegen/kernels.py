"""The innermost loops, written out for each shape of block that a network needs.

A kernel keeps `rows` x `vectors` sums in registers. For each column it loads `vectors` vectors of pixels once, and adds
them to each row with that row's weight. Zeros that pruning left cost nothing: their columns are not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from asrkit.compress.codegen.expressions import c_expression
from asrkit.compress.codegen.graph import Expression
from asrkit.compress.codegen.target import Target

IN_FLIGHT = 8  # products that have to be under way for the units to be busy: their number times their latency
AHEAD = 512  # floats: weights are read once, one after another, and asked for that early
SETS = 15  # of rows that a column of the masked kernel may be for: all but none of 4


@dataclass(frozen=True)
class Shape:
    """What makes one kernel different from another."""

    kind: str
    rows: int
    vectors: int
    epilogue: Expression
    per_row: tuple[bool, ...]
    """Of each operand of the epilogue, whether it is the same for all pixels of a row."""
    prefetch: int
    """1 or -1: whether the tile after this or that before comes next, and is far; else 0."""
    single: bool
    """Whether there is one pixel only, which a vector must not overrun."""


class Kernels:
    """The kernels that were asked for, each written once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.names: dict[Shape, str] = {}
        self.texts: list[str] = []

    def name(self, shape: Shape) -> str:
        """Return the name of a kernel, which is written if it is new."""
        if shape not in self.names:
            self.names[shape] = f"{shape.kind}_{shape.rows}x{shape.vectors}_{len(self.names)}"
            write = {"shared": _shared, "masked": _masked, "vector": _vector}[shape.kind]
            self.texts.append(write(self.names[shape], shape))
        return self.names[shape]

    def include(self, text: str) -> None:
        """Add C that is not there yet."""
        if text not in self.texts:
            self.texts.append(text)

    def transposition(self) -> str:
        """Return the name of what writes a matrix the other way round."""
        self.include(_transposition(self.target.lanes))
        return "transpose"

    def matmul(self, rows: int, vectors: int) -> str:
        """Return the name of the kernel of a product of two tensors that are both computed."""
        shape = Shape("matmul", rows, vectors, 0.0, (), False, False)
        if shape not in self.names:
            self.names[shape] = f"matmul_{rows}x{vectors}"
            self.texts.append(_matmul(self.names[shape], rows, vectors))
        return self.names[shape]


def _signature(name: str, shape: Shape) -> str:
    parts = [
        "const float *x",
        "const float *w",
        "const int *columns",
        "const int *counts",
        "const float *bias",
        "float *y",
    ]
    if shape.kind != "vector":
        parts.append("const int *rows")
    for i in range(len(shape.per_row)):
        parts.append(f"const float *e{i}")
        if shape.kind != "vector":
            parts.append(f"const int *e{i}_rows")
    return f"static NOINLINE void {name}({', '.join(parts)}) {{"


def _sums(rows: int, vectors: int, start: str = "v_splat(bias[{r}])") -> list[str]:
    return ["  vf " + ", ".join(f"a{r}_{v} = {start.format(r=r)}" for v in range(vectors)) + ";" for r in range(rows)]


def _column(rows: Sequence[int], vectors: int, prefetch: int, part: str = "") -> list[str]:
    """Return one column's products; `part` tells sums of columns apart that are added up at the end."""
    lines = ["const float *p = x + *columns++;"]
    if prefetch:
        lines.append("__builtin_prefetch(p + ahead);")
    lines.append("vf " + ", ".join(f"x{v} = v_load(p + {v} * LANES)" for v in range(vectors)) + ";")
    for n, r in enumerate(rows):
        products = " ".join(f"a{r}_{v}{part} += w{n} * x{v};" for v in range(vectors))
        lines.append(f"{{ vf w{n} = v_splat(w[{n}]); {products} }}")
    lines.append(f"w += {len(rows)};")
    lines.append(f"__builtin_prefetch(w + {AHEAD});")
    return lines


def _ahead(shape: Shape) -> str:
    """Return C for the distance of a vector of the next tile."""
    first = shape.prefetch * shape.vectors
    return f"  const int ahead = ({first} + counts[0] % {shape.vectors}) * LANES;"


def _finish(shape: Shape) -> list[str]:
    """Return the epilogue and the stores."""
    lines = []
    for r in range(shape.rows):
        for v in range(shape.vectors):
            inputs = [f"a{r}_{v}"]
            for i, per_row in enumerate(shape.per_row):
                place = f"e{i} + e{i}_rows[{r}]"
                inputs.append(f"v_splat(*({place}))" if per_row else f"v_load({place} + {v} * LANES)")
            value = c_expression(shape.epilogue, inputs)
            if shape.single:
                lines.append(f"  y[rows[{r}]] = ({value})[0];")
            else:
                lines.append(f"  v_store(y + rows[{r}] + {v} * LANES, {value});")
    return [*lines, "}"]


def _shared(name: str, shape: Shape) -> str:
    """All rows of the block have the same columns."""
    rows, vectors = shape.rows, shape.vectors
    parts = max(1, -(-IN_FLIGHT // (rows * vectors)))
    lines = [_signature(name, shape), *_sums(rows, vectors), "  int k = counts[0];"]
    if shape.prefetch:
        lines.append(_ahead(shape))
    for part in range(1, parts):
        zeros = ", ".join(f"a{r}_{v}_{part} = v_splat(0.0f)" for r in range(rows) for v in range(vectors))
        lines.append(f"  vf {zeros};")
    if parts > 1:
        lines.append(f"  for (; k >= {parts}; k -= {parts}) {{")
        for part in range(parts):
            column = _column(range(rows), vectors, shape.prefetch, f"_{part}" if part else "")
            lines += ["    {", *(f"      {line}" for line in column), "    }"]
        lines.append("  }")
    lines += [
        "  UNROLLED",
        "  for (; k > 0; --k) {",
        *(f"    {line}" for line in _column(range(rows), vectors, shape.prefetch)),
        "  }",
    ]
    for part in range(1, parts):
        lines += [f"  a{r}_{v} += a{r}_{v}_{part};" for r in range(rows) for v in range(vectors)]
    return "\n".join([*lines, *_finish(shape), ""])


def _masked(name: str, shape: Shape) -> str:
    """Columns come by the set of rows that need them, so that any mask does only its own products."""
    lines = [_signature(name, shape), *_sums(shape.rows, shape.vectors)]
    if shape.prefetch:
        lines.append(_ahead(shape))
    for n in range(1, SETS + 1):
        rows = [r for r in range(shape.rows) if n >> r & 1]
        column = _column(rows, shape.vectors, shape.prefetch)
        lines += [f"  for (int k = counts[{n - 1}]; k > 0; --k) {{", *(f"    {line}" for line in column), "  }"]
    return "\n".join([*lines, *_finish(shape), ""])


def _vector(name: str, shape: Shape) -> str:
    """For one pixel, rows fill a vector, or parts of it that have columns of their own; several columns at a time keep
    the units busy."""
    parts, rows = shape.vectors, shape.rows
    at_once = 4 if parts == 1 else 8
    sums = [f"a{i}" for i in range(at_once)]
    kind = "vf" if parts == 1 else f"vf{rows}"
    products = " ".join(
        f"{a} += *(const {kind}_anywhere *)(w + {i * rows}) * x[columns[{i}]];" for i, a in enumerate(sums)
    )
    loop = [
        f"  {kind} {', '.join(f'{a} = {{0}}' for a in sums)};",
        f"  for (; k >= {at_once}; k -= {at_once}, columns += {at_once}, w += {at_once * rows}) {{",
        f"    __builtin_prefetch(w + {AHEAD});\n    {products}\n  }}",
        f"  for (; k > 0; --k, w += {rows}) a0 += *(const {kind}_anywhere *)w * x[*columns++];",
    ]
    while len(sums) > 1:
        sums = [f"({a} + {b})" for a, b in zip(sums[::2], sums[1::2], strict=True)]
    lines = [_signature(name, shape)]
    if parts == 1:
        lines += ["  int k = counts[0];", *loop, f"  vf sum = v_load(bias) + {sums[0]};"]
    else:
        lines += [
            f"  typedef float {kind} __attribute__((vector_size({4 * rows})));",
            f"  typedef float {kind}_anywhere __attribute__((vector_size({4 * rows}), aligned(4), may_alias));",
            "  vf sum = v_load(bias);",
            f"  for (int part = 0; part < {parts}; ++part) {{",
            "  int k = counts[part];",
            *loop,
            f"  const {kind} total = {sums[0]};",
            f"  for (int i = 0; i < {rows}; ++i) sum[part * {rows} + i] += total[i];",
            "  }",
        ]
    inputs = ["sum", *(f"v_load(e{i})" for i in range(len(shape.per_row)))]
    lines += [f"  v_store(y, {c_expression(shape.epilogue, inputs)});", "}"]
    return "\n".join([*lines, ""])


def _matmul(name: str, rows: int, vectors: int) -> str:
    """The weights are numbers with steps of their own, from row to row and from column to column."""
    lines = [
        f"static NOINLINE void {name}(const float *s, int row, int step, const float *x, int next, int count,",
        "    float *y, int out) {",
        *_sums(rows, vectors, "v_splat(0.0f)"),
        "  for (int k = 0; k < count; ++k, s += step, x += next) {",
        "    vf " + ", ".join(f"x{v} = v_load(x + {v} * LANES)" for v in range(vectors)) + ";",
    ]
    for r in range(rows):
        products = " ".join(f"a{r}_{v} += w{r} * x{v};" for v in range(vectors))
        lines.append(f"    {{ vf w{r} = v_splat(s[{r} * row]); {products} }}")
    lines.append("  }")
    lines += [f"  v_store(y + {r} * out + {v} * LANES, a{r}_{v});" for r in range(rows) for v in range(vectors)]
    return "\n".join([*lines, "}", ""])


def _transposition(lanes: int) -> str:
    """Squares of as many vectors as a vector has elements are transposed in registers, halves of ever more elements
    changing places; those at the ends overlap the ones before, so that nothing is read or written beyond the matrix."""
    lines = ["INLINE void transpose_square(float *y, int apart, const float *x, int beside) {"]
    lines += [f"  vf r{i} = v_load(x + {i} * beside);" for i in range(lanes)]
    for half in (1 << n for n in range(lanes.bit_length() - 1)):
        kept = ", ".join(str(lane if not lane & half else lanes + lane - half) for lane in range(lanes))
        moved = ", ".join(str(lane + half if not lane & half else lanes + lane) for lane in range(lanes))
        for i in (i for i in range(lanes) if not i & half):
            a, b = f"r{i}", f"r{i | half}"
            lines.append(f"  {{ vf a = {a}, b = {b}; {a} = v_shuffle(a, b, {kept}); {b} = v_shuffle(a, b, {moved}); }}")
    lines += [f"  v_store(y + {i} * apart, r{i});" for i in range(lanes)]
    lines += [
        "}",
        "/* y[i * apart + j] = x[i + j * beside] for i < rows, j < columns, both at least LANES. */",
        "static NOINLINE void transpose(float *y, int apart, const float *x, int beside, int rows, int columns) {",
        "  for (int i = 0; i < rows; i += LANES) {",
        "    const int a = i < rows - LANES ? i : rows - LANES;",
        "    for (int j = 0; j < columns; j += LANES) {",
        "      const int b = j < columns - LANES ? j : columns - LANES;",
        "      transpose_square(y + a * apart + b, apart, x + a + b * beside, beside);",
        "    }",
        "  }",
        "}",
        "",
    ]
    return "\n".join(lines)
