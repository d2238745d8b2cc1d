"""What a compiled network does, step after step, each on views of memory."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from asrkit.compress.codegen import views
from asrkit.compress.codegen.graph import IDENTITY, Expression
from asrkit.compress.codegen.views import Buffer, Factors, View


@dataclass(kw_only=True)
class Step:
    """One function of the generated C."""

    path: str
    out: View

    @property
    def read(self) -> list[Buffer]:
        return []


@dataclass
class Rows:
    """One value for each row of a product and each pixel: where row r begins is `start + offsets[r]`."""

    buffer: Buffer
    start: int
    offsets: np.ndarray
    """(O,)"""
    per_row: bool = False
    """The same for all pixels of a row."""


@dataclass(kw_only=True)
class Product(Step):
    """out[o, p] = epilogue(bias[o] + sum over k of weight[o, k] x[columns[group of o, k] + p], more).

    Every convolution and linear layer is one: pixels p = 0 … pixels - 1 follow each other in memory.
    """

    x: Buffer
    start: int
    """Where pixel 0 of column offset 0 lies in x."""
    weight: np.ndarray
    """(O, K)"""
    columns: np.ndarray
    """(groups, K) offsets; of rows that follow each other each group has equally many."""
    bias: np.ndarray
    """(O,)"""
    rows: np.ndarray
    """Offset of each output row from that of `out` (O,)."""
    pixels: int
    macs: int
    """Multiplications and additions that the dense layer takes."""
    epilogue: Expression = IDENTITY
    operands: list[Rows] = field(default_factory=list)
    """Inputs 1, 2, … of the epilogue."""

    @property
    def read(self) -> list[Buffer]:
        return [self.x, *(operand.buffer for operand in self.operands)]


@dataclass(kw_only=True)
class Winograd(Step):
    """A convolution of 3x3 that gives a picture of the size of its input, by transforms of tiles of both."""

    x: View
    """(I, H, W), the pixels of a row side by side."""
    weight: np.ndarray
    """(O, I * 9)"""
    bias: np.ndarray
    """(O,)"""
    rows: np.ndarray
    """Offset of each output channel from `out` (O,)."""
    picture: "Picture"
    """Of the output."""
    tiling: "Tiling"
    scratch: Buffer
    macs: int
    """Multiplications and additions that the direct way takes."""
    epilogue: Expression = IDENTITY
    operands: list[Rows] = field(default_factory=list)
    """Inputs 1, 2, … of the epilogue."""

    @property
    def pixels(self) -> int:
        return self.picture.run

    @property
    def stored(self) -> int:
        """Weights that are kept in their place."""
        return self.tiling.products * self.weight.size // 9

    @property
    def read(self) -> list[Buffer]:
        return [self.x.buffer, self.scratch, *(operand.buffer for operand in self.operands)]


@dataclass(frozen=True)
class Tiling:
    """How Winograd's algorithm cuts a picture into tiles, and these into bands."""

    tile: int
    """Outputs of a tile: this many each way."""
    rows: int
    columns: int
    """Of tiles."""
    band: int
    """Rows of tiles computed at a time; the last band overlaps the one before if they do not fit."""
    lanes: int

    @property
    def bands(self) -> int:
        return -(-self.rows // self.band)

    @property
    def products(self) -> int:
        """Multiplications for a tile of each pair of channels."""
        return (self.tile + 2) ** 2

    @property
    def vectors(self) -> int:
        """Vectors of tiles in a band."""
        return -(-self.band * self.columns // self.lanes)

    @property
    def span(self) -> int:
        """Floats for one pixel of each tile of a band and of those above or below."""
        return -(-(self.band + 1) * self.columns // self.lanes) * self.lanes

    def apart(self, channels: int) -> int:
        """Floats from one product's matrix to the next one's: no power of two, whose places in a cache would be few."""
        return (channels * self.vectors + 1) * self.lanes


@dataclass(kw_only=True)
class Elementwise(Step):
    """out = expression of inputs, all of the same shape."""

    expression: Expression
    inputs: list[View]
    room: bool = True
    """Whether what follows a row of `out` in memory is written later, if at all."""
    along: int | None = None
    """In a chain, which dimension goes along the pixels; each is one loop then."""

    @property
    def nest(self) -> list[tuple[int, tuple[int, ...]]]:
        """Its loops, outermost first: length, and the step of `out` and of each input."""
        if self.along is None:
            return list(views.loops([self.out, *self.inputs]))
        dims = zip(*(view.dims for view in (self.out, *self.inputs)), strict=True)
        return [(factors[0][0][0], tuple(stride for ((_, stride),) in factors)) for factors in dims]

    @property
    def read(self) -> list[Buffer]:
        return [view.buffer for view in self.inputs]


@dataclass(kw_only=True)
class Gather(Step):
    """Pictures whose pixels are some of those of x, zeros where these would lie outside.

    Picture s of channel c has at (i, j) the pixel (first[s] + i * stride, …) of channel c of x (C, H, W).
    """

    x: View
    """(C, H, W)"""
    firsts: list[tuple[int, int]]
    stride: tuple[int, int]
    picture: tuple[int, int]
    """Height and width; `out` is (C, pictures, height, width)."""

    @property
    def read(self) -> list[Buffer]:
        return [self.x.buffer]


@dataclass(kw_only=True)
class Clear(Step):
    """Zeros around each of the pictures of a buffer."""

    picture: "Picture"
    channels: int


@dataclass(frozen=True)
class Picture:
    """How a channel lies in memory: rows of `pitch` floats, of which `width` count, from `base` on, in `plane` floats.

    What lies between the end of a row and the next one, pitch - width floats, is the margin of both.
    """

    height: int
    width: int
    pitch: int
    base: int
    plane: int
    margins: tuple[int, int] = (0, 0)

    @property
    def run(self) -> int:
        """Floats from the first pixel to the last."""
        return (self.height - 1) * self.pitch + self.width

    @property
    def factors(self) -> tuple[Factors, Factors]:
        """Height and width as dimensions of a view."""
        sizes = ((self.height, self.pitch), (self.width, 1))
        return tuple(((size, stride),) if size > 1 else () for size, stride in sizes)


@dataclass(kw_only=True)
class Pool(Step):
    """Mean or maximum over windows of x (C, H, W)."""

    x: View
    how: Literal["mean", "max"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    count_padding: bool

    @property
    def read(self) -> list[Buffer]:
        return [self.x.buffer]


@dataclass(kw_only=True)
class Reduce(Step):
    """Sum, mean or maximum of x over `dims`; `out` has a size of 1 there."""

    x: View
    how: Literal["sum", "mean", "max"]
    dims: tuple[int, ...]

    @property
    def read(self) -> list[Buffer]:
        return [self.x.buffer]


@dataclass(kw_only=True)
class Softmax(Step):
    """Softmax of x over a dimension."""

    x: View
    dim: int

    @property
    def read(self) -> list[Buffer]:
        return [self.x.buffer]


@dataclass(kw_only=True)
class LayerNorm(Step):
    """Layer norm of x (…, D) over its last dimension, and an epilogue."""

    x: View
    weight: np.ndarray
    bias: np.ndarray
    epsilon: float
    epilogue: Expression = IDENTITY
    operands: list[View] = field(default_factory=list)

    @property
    def read(self) -> list[Buffer]:
        return [self.x.buffer, *(view.buffer for view in self.operands)]


@dataclass(kw_only=True)
class Lookup(Step):
    """out[d, p] = table[x[p], d]; of numbers that are no rows of the table, the row next to them is taken."""

    x: View
    """(P,)"""
    table: np.ndarray
    """(V, D)"""

    @property
    def read(self) -> list[Buffer]:
        return [self.x.buffer]


@dataclass(kw_only=True)
class Matmul(Step):
    """out[b, r, p] = sum over k of scalars[b, r, k] pixels[b, k, p], with the pixels p side by side in memory."""

    scalars: View
    """(batch, R, K)"""
    pixels: View
    """(batch, K, P)"""

    @property
    def read(self) -> list[Buffer]:
        return [self.scalars.buffer, self.pixels.buffer]
