"""From a `Graph` to steps: where each tensor lies in memory, and in which form each layer wants its input.

Tensors lie channel after channel, the pixels (or frames) of a channel side by side: these fill the vectors, whatever
the number of channels that pruning left. A picture that a convolution with padding reads has zeros around it, so a
kernel position is nothing but an offset, the same for all pixels.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from asrkit.compress.codegen import views
from asrkit.compress.codegen.chains import Chain, chain
from asrkit.compress.codegen.graph import IDENTITY, Graph, Op
from asrkit.compress.codegen.memory import allocate, rounded_up
from asrkit.compress.codegen.steps import (
    Clear,
    Elementwise,
    Gather,
    LayerNorm,
    Lookup,
    Matmul,
    Picture,
    Pool,
    Product,
    Reduce,
    Rows,
    Softmax,
    Step,
    Tiling,
    Winograd,
)
from asrkit.compress.codegen.target import Target
from asrkit.compress.codegen.views import Buffer, View
from asrkit.compress.codegen.winograd import best_tiling

PAGE = 1024  # floats; channels that lie a multiple of this apart would share their place in the first cache
WASTE = 0.7  # of the vectors, that kernel positions copied side by side have to save to be worth it


@dataclass
class Plan:
    """The steps of a network, where its inputs and outputs are, and how many floats of workspace it takes."""

    steps: list[Step]
    inputs: list[View]
    outputs: list[View]
    workspace: int
    chains: list[Chain]


def plan(graph: Graph, target: Target, states: Sequence[tuple[int, int]] = ()) -> Plan:
    """Return the steps of a graph.

    `states` are pairs (input, output): what comes out there goes in here in the next call, and lies as it comes out.
    """
    orders: dict[int, list[int]] = {}
    if states:
        first = Planner(graph, target, {})
        orders = {i: _order(first.final[o]) for i, o in states}
    planner = Planner(graph, target, orders, dict((o, i) for i, o in states))
    chains = chain(planner.steps, target)
    size = allocate(planner.steps, chains)
    return Plan(planner.steps, planner.inputs, planner.outputs, size, chains)


def _order(view: View) -> list[int]:
    """Return the dimensions of a view, those that lie farthest apart first."""
    return sorted(range(len(view.dims)), key=lambda i: -max((stride for _, stride in view.dims[i]), default=0))


def ordered(buffer: Buffer, shape: Sequence[int], order: Sequence[int]) -> View:
    """Return a view without gaps in which the dimensions lie in this order, the last one side by side."""
    dims = views.contiguous([shape[i] for i in order])
    return View(buffer, 0, tuple(dims[list(order).index(i)] for i in range(len(shape))))


class Planner:
    """Goes through a graph, and keeps the view of each of its tensors."""

    def __init__(
        self, graph: Graph, target: Target, orders: dict[int, list[int]], fed_back: dict[int, int] | None = None
    ):
        self.target, self.lanes = target, target.lanes
        self.steps: list[Step] = []
        self.views: dict[Op, View] = {}
        self.users: dict[Op, list[Op]] = defaultdict(list)
        for op in graph.ops:
            for x in op.inputs:
                self.users[x].append(op)
        self.margins = self._margins(graph)
        self.pictures: dict[Buffer, Picture] = {}
        self.cleared: set[Buffer] = set()
        self.inputs = []
        for i, op in enumerate(graph.inputs):
            buffer = Buffer("input", prod(op.shape), i)
            self.inputs.append(ordered(buffer, op.shape, orders.get(i, range(len(op.shape)))))
        for op in graph.ops:
            self.views[op] = (
                getattr(self, f"_{op.kind}")(op) if op.kind != "input" else self.inputs[graph.inputs.index(op)]
            )
        self.final = [self.views[op] for op in graph.outputs]
        self.outputs = []
        for i, op in enumerate(graph.outputs):
            order = orders[fed_back[i]] if fed_back and i in fed_back else range(len(op.shape))
            self.outputs.append(ordered(Buffer("output", prod(op.shape), i), op.shape, order))
            self._copy(self.views[op], self.outputs[-1], op.path)

    # --- memory

    def _margins(self, graph: Graph) -> dict[tuple[int, int], tuple[int, int]]:
        """Return the zeros that convolutions want around pictures of each size."""
        margins: dict[tuple[int, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for op in graph.ops:
            if op.kind == "conv" and _same(op):
                size = _size(op.shape)
                margins[size] = tuple(map(max, margins[size], op.attrs["padding"]))
        for height, width in list(margins):
            copied = -(-height * width // self.lanes)
            in_place = -(-_picture(height, width, margins[height, width], self.lanes).run // self.lanes)
            if copied < WASTE * in_place:
                margins[height, width] = (0, 0)  # kernel positions are copied side by side instead
        return margins

    def picture(self, height: int, width: int) -> Picture:
        return _picture(height, width, self.margins.get((height, width), (0, 0)), self.lanes)

    def new(self, size: int) -> Buffer:
        return Buffer("workspace", size + self.lanes)  # the last vector may reach beyond the last element

    def planes(self, channels: int, height: int, width: int) -> View:
        """Return a new tensor (channels, height, width) as convolutions want it."""
        picture = self.picture(height, width)
        buffer = self.new(channels * picture.plane)
        self.pictures[buffer] = picture
        return View(buffer, picture.base, (views.merged([(channels, picture.plane)]), *picture.factors))

    def like(self, view: View) -> View:
        """Return a new tensor of the shape of a view, in the same order in memory, with rows that begin vectors."""
        factors = sorted(
            ((stride, i, j) for i, dim in enumerate(view.dims) for j, (_, stride) in enumerate(dim)),
            key=lambda entry: (entry[0] == 0, -entry[0]),
        )
        if factors and factors[-1][0] == 0:  # repeated elements lie outermost
            zeros = [entry for entry in factors if entry[0] == 0]
            factors = zeros + [entry for entry in factors if entry[0]]
        strides: dict[tuple[int, int], int] = {}
        step = 1
        for n, (_, i, j) in enumerate(reversed(factors)):
            strides[i, j] = step
            step *= view.dims[i][j][0]
            if n == 0 and len(factors) > 1:
                step = rounded_up(step, self.lanes)
        dims = tuple(tuple((size, strides[i, j]) for j, (size, _) in enumerate(dim)) for i, dim in enumerate(view.dims))
        return View(self.new(step), 0, tuple(map(views.merged, dims)))

    def _copy(self, source: View, out: View, path: str, room: bool = True) -> View:
        self.steps.append(Elementwise(path=path, out=out, expression=IDENTITY, inputs=[source], room=room))
        return out

    def _rows_of(self, view: View, path: str) -> View:
        """Return x (…, K) as (K, P) with its P rows side by side in the workspace."""
        rows = views.merged(factor for dim in view.dims[:-1] for factor in dim)
        if view.buffer.kind == "workspace" and (not rows or (len(rows) == 1 and rows[0][1] == 1)):
            return View(view.buffer, view.offset, (view.dims[-1], rows))
        flat = View(view.buffer, view.offset, (view.dims[-1], tuple(f for dim in view.dims[:-1] for f in dim)))
        out = self.planes(flat.shape[0], 1, flat.shape[1])
        return self._copy(flat, View(out.buffer, out.offset, (out.dims[0], out.dims[2])), path)

    def _plain(self, view: View, path: str) -> View:
        """Return a view of which each dimension has one stride."""
        if all(len(dim) <= 1 for dim in view.dims):
            return view
        return self._copy(view, self.like(ordered(self.new(0), view.shape, range(len(view.dims)))), path)

    # --- operations

    def _constant(self, op: Op) -> View:
        array = op.attrs["array"]
        return ordered(Buffer("constant", array.size, array=array), op.shape, range(len(op.shape)))

    def _view(self, op: Op) -> View:
        source = self.views[op.inputs[0]]
        found = op.attrs["how"](source)
        if found is None:
            flat = ordered(self.new(prod(source.shape)), source.shape, range(len(source.shape)))
            found = op.attrs["how"](self._copy(source, flat, op.path))
        return found

    def _map(self, op: Op) -> View:
        inputs = [views.expanded(self.views[x], op.shape) for x in op.inputs]
        repeated = [i for i in range(len(op.shape)) if all(_same_everywhere(view.dims[i]) for view in inputs)]
        shape = tuple(1 if i in repeated else n for i, n in enumerate(op.shape))
        inputs = [_without(view, repeated) for view in inputs]
        out = self._out_of_map(op, shape, inputs)
        for i, view in enumerate(inputs):
            if view.buffer.kind == "constant":
                inputs[i] = view = _constant_like(out, view)
            try:
                list(views.loops([out, view]))
            except ValueError:
                inputs[i] = self._copy(view, ordered(self.new(prod(shape)), shape, range(len(shape))), op.path)
        self.steps.append(Elementwise(path=op.path, out=out, expression=op.attrs["expression"], inputs=inputs))
        return views.expanded(out, op.shape)

    def _out_of_map(self, op: Op, shape: Sequence[int], inputs: Sequence[View]) -> View:
        if len(shape) in (3, 4) and any(user.kind == "conv" for user in self.users[op]):
            return _with_batch(self.planes(shape[1], *_size(shape)), len(shape))
        full = [view for view in inputs if view.buffer.kind != "constant" and 0 not in (s for _, s in view.factors)]
        if not full:
            return self.like(ordered(self.new(0), shape, range(len(shape))))
        source = min(full, key=lambda view: view.buffer.kind != "workspace")
        picture = self.pictures.get(source.buffer)
        if picture and len(shape) == 4 and source.dims[2:] == picture.factors:
            return _with_batch(self.planes(shape[1], *_size(shape)), 4)
        return self.like(source)

    def _concat(self, op: Op) -> View:
        dim = op.attrs["dim"]
        parts = [self.views[x] for x in op.inputs]
        largest = max(parts, key=lambda view: (view.buffer.kind == "workspace", prod(view.shape)))
        order = _order(largest)
        if len(op.shape) == 4 and any(user.kind == "conv" for user in self.users[op]):
            out = _with_batch(self.planes(op.shape[1], *_size(op.shape)), 4)
        else:
            out = self.like(ordered(self.new(0), op.shape, order))
        start = 0
        for part in parts:
            end = start + part.shape[dim]
            place = views.sliced(out, dim, start, end)
            if place is None:
                raise AssertionError("a new tensor has one factor a dimension")
            self._copy(part, place, op.path, room=_order(out)[0] == dim)
            start = end
        return out

    def _pool(self, op: Op) -> View:
        out = self.planes(op.shape[1], *_size(op.shape))
        settings = {name: op.attrs[name] for name in ("how", "kernel", "stride", "padding", "count_padding")}
        x = self._plain(_channels(self.views[op.inputs[0]]), op.path)
        self.steps.append(Pool(path=op.path, out=out, x=x, **settings))
        return _with_batch(out, len(op.shape))

    def _reduce(self, op: Op) -> View:
        x = self.views[op.inputs[0]]
        dims = op.attrs["dims"]
        out = self.like(replace(x, dims=tuple(() if i in dims else dim for i, dim in enumerate(x.dims))))
        self.steps.append(Reduce(path=op.path, out=out, x=x, how=op.attrs["how"], dims=dims))
        return out

    def _softmax(self, op: Op) -> View:
        x = self._plain(self.views[op.inputs[0]], op.path)
        out = self.like(x)
        self.steps.append(Softmax(path=op.path, out=out, x=x, dim=op.attrs["dim"]))
        return out

    def _lookup(self, op: Op) -> View:
        x, table = self.views[op.inputs[0]], np.asarray(op.attrs["weight"], np.float32)
        x = self._rows_of(replace(x, dims=(*x.dims, ())), op.path)  # (1, P)
        planes = self.planes(table.shape[1], 1, x.shape[1])
        out = View(planes.buffer, planes.offset, (planes.dims[0], planes.dims[2]))
        self.steps.append(Lookup(path=op.path, out=out, x=replace(x, dims=x.dims[1:]), table=table))
        return _from_rows(out, op.shape)

    def _layer_norm(self, op: Op) -> View:
        x = self._plain(self._rows_of(self.views[op.inputs[0]], op.path), op.path)
        dim, rows = x.shape
        planes = self.planes(dim, 1, rows)
        out = View(planes.buffer, planes.offset, (planes.dims[0], planes.dims[2]))
        settings = {name: np.asarray(op.attrs[name]) for name in ("weight", "bias")}
        operands = [self._plain(self._operand_of_rows(other, op), op.path) for other in op.inputs[1:]]
        epilogue = op.attrs.get("epilogue", IDENTITY)
        self.steps.append(
            LayerNorm(
                path=op.path,
                out=out,
                x=x,
                epsilon=op.attrs["epsilon"],
                epilogue=epilogue,
                operands=operands,
                **settings,
            )
        )
        return _from_rows(out, op.shape)

    def _operand_of_rows(self, op: Op, user: Op) -> View:
        """Return a further input of an epilogue of (…, K) as (K, P); a constant may be the same for all pixels."""
        view = views.expanded(self.views[op], user.shape)
        rows = views.merged(factor for dim in view.dims[:-1] for factor in dim)
        if rows and all(stride == 0 for _, stride in rows):
            return View(view.buffer, view.offset, (view.dims[-1], rows))
        return self._rows_of(view, user.path)

    def _matmul(self, op: Op) -> View:
        plain = [self._plain(self.views[x], op.path) for x in op.inputs]
        a, b = (views.expanded(view, (*op.shape[:-2], *view.shape[-2:])) for view in plain)
        if _side_by_side(a, -2):
            scalars, pixels, turned = _turned(b), _turned(a), True
        elif _side_by_side(b, -1):
            scalars, pixels, turned = a, b, False
        else:
            rank = len(op.shape)
            a = self._copy(a, self.like(ordered(self.new(0), a.shape, [*range(rank - 2), rank - 1, rank - 2])), op.path)
            scalars, pixels, turned = _turned(b), _turned(a), True
        rows, width = scalars.shape[-2], pixels.shape[-1]
        whole = (*op.shape[:-2], rows, rounded_up(width, self.lanes))  # vectors reach beyond the end of rows
        out = views.sliced(ordered(self.new(prod(whole)), whole, range(len(whole))), len(whole) - 1, 0, width)
        self.steps.append(Matmul(path=op.path, out=out, scalars=scalars, pixels=pixels))
        return _turned(out) if turned else out

    def _linear(self, op: Op) -> View:
        weight, bias = (np.asarray(op.attrs[name]) for name in ("weight", "bias"))
        x = self._rows_of(self.views[op.inputs[0]], op.path)
        planes = self.planes(len(weight), 1, x.shape[1])
        operands = [self._rows(self._operand_of_rows(other, op), op.path) for other in op.inputs[1:]]
        self._product(op, x.buffer, x.offset, weight, x.offsets(0)[None], bias, planes, operands)
        return _from_rows(View(planes.buffer, planes.offset, (planes.dims[0], planes.dims[2])), op.shape)

    def _conv(self, op: Op) -> View:
        weight, bias = (np.asarray(op.attrs[name]) for name in ("weight", "bias"))
        x = _channels(self.views[op.inputs[0]])
        out = self.planes(op.shape[1], *_size(op.shape))
        if tiling := self._tiling(op):
            return self._winograd(op, x, out, tiling)
        if prod(_size(op.shape)) == 1:
            buffer, start, taps, offsets = self._single(op, x)
        elif self._in_place(op, x):
            buffer, start, taps, offsets = self._direct(op, x, out)
        elif self._in_place(op, copy := self.planes(*x.shape)):
            x = self._copy(x, copy, op.path)
            buffer, start, taps, offsets = self._direct(op, x, out)
        else:
            buffer, start, taps, offsets = self._gathered(op, x, out)
        inner, groups = weight.shape[1], op.attrs["groups"]
        channels = offsets[0].reshape(groups, inner)  # where each channel begins
        columns = (channels[:, :, None] + offsets[1]).reshape(groups, -1)
        weight = weight.reshape(*weight.shape[:2], -1)[:, :, taps].reshape(len(weight), -1)
        operands = [self._rows(self._operand_of_planes(other, op, out), op.path) for other in op.inputs[1:]]
        self._product(op, buffer, start, weight, columns, bias, out, operands)
        return _with_batch(out, len(op.shape))

    def _tiling(self, op: Op) -> Tiling | None:
        """Return how to compute a convolution by Winograd's algorithm, if it can and should be."""
        weight, settings = np.asarray(op.attrs["weight"]), ("padding", "dilation", "groups")
        fits = weight.shape[2:] == (3, 3) and [op.attrs[name] for name in settings] == [(1, 1), (1, 1), 1]
        if not fits or not _same(op):
            return None
        return best_tiling(weight, self.picture(*_size(op.shape)), self.target)

    def _winograd(self, op: Op, x: View, out: View, tiling: Tiling) -> View:
        if x.buffer.kind != "workspace" or len(x.dims[1]) > 1 or x.dims[2] not in ((), ((x.shape[2], 1),)):
            x = self._copy(x, self.planes(*x.shape), op.path)
        weight = np.asarray(op.attrs["weight"], np.float32)
        self.steps.append(
            Winograd(
                path=op.path,
                out=out,
                x=x,
                weight=weight.reshape(len(weight), -1),
                bias=np.asarray(op.attrs["bias"], np.float32),
                rows=out.offsets(0),
                picture=self.pictures[out.buffer],
                tiling=tiling,
                scratch=self.new(tiling.products * sum(map(tiling.apart, weight.shape[:2]))),
                macs=weight.size * prod(_size(op.shape)),
                epilogue=op.attrs.get("epilogue", IDENTITY),
                operands=[self._rows(self._operand_of_planes(other, op, out), op.path) for other in op.inputs[1:]],
            )
        )
        return _with_batch(out, len(op.shape))

    def _product(self, op: Op, x: Buffer, start: int, weight, columns, bias, out: View, operands: list[Rows]) -> None:
        picture = self.pictures[out.buffer]
        self.steps.append(
            Product(
                path=op.path,
                out=out,
                x=x,
                start=start,
                weight=np.ascontiguousarray(weight, np.float32),
                columns=columns,
                bias=np.asarray(bias, np.float32),
                rows=out.offsets(0),
                pixels=picture.run,
                macs=np.asarray(op.attrs["weight"]).size * picture.height * picture.width,
                epilogue=op.attrs.get("epilogue", IDENTITY),
                operands=operands,
            )
        )

    def _single(self, op: Op, x: View) -> tuple[Buffer, int, list[int], tuple[np.ndarray, np.ndarray]]:
        """Where a convolution with an output of one pixel finds its input; positions outside the picture go."""
        if op.attrs["groups"] > 1 and x.buffer.kind == "input":
            x = self._copy(x, self.planes(*x.shape), op.path)  # of which whole vectors can be read
        height, width = x.shape[1:]
        places = [(i, r, c) for i, (r, c) in enumerate(_taps(op)) if 0 <= r < height and 0 <= c < width]
        rows, columns = x.offsets(1), x.offsets(2)
        taps = np.array([rows[r] + columns[c] for _, r, c in places], np.int64)
        return x.buffer, x.offset, [i for i, _, _ in places], (x.offsets(0), taps)

    def _in_place(self, op: Op, x: View) -> bool:
        """Return whether each kernel position of a convolution is an offset into its input as it lies."""
        rows, columns = x.dims[1:]
        picture, mine = self.picture(*_size(op.shape)), self.pictures.get(x.buffer)
        if op.attrs["stride"] != (1, 1) or x.buffer.kind != "workspace":
            return False
        if (columns and columns != ((columns[0][0], 1),)) or (rows and rows != ((rows[0][0], picture.pitch),)):
            return False
        if op.attrs["padding"] == (0, 0):
            return not rows or op.attrs["weight"].shape[2:] == (1, 1)
        if mine is None or mine.factors != (rows, columns) or not _same(op):
            return False
        return all(have >= want for have, want in zip(mine.margins, op.attrs["padding"], strict=True))

    def _direct(self, op: Op, x: View, out: View) -> tuple[Buffer, int, list[int], tuple[np.ndarray, np.ndarray]]:
        if op.attrs["padding"] != (0, 0) and x.buffer not in self.cleared:
            self.cleared.add(x.buffer)
            picture = self.pictures[x.buffer]
            channels = (x.buffer.size - self.lanes) // picture.plane
            self.steps.append(Clear(path=op.path, out=View(x.buffer, 0, ()), picture=picture, channels=channels))
        pitch = self.pictures[out.buffer].pitch
        taps = np.array([row * pitch + column for row, column in _taps(op)])
        return x.buffer, x.offset, list(range(len(taps))), (x.offsets(0), taps)

    def _gathered(self, op: Op, x: View, out: View) -> tuple[Buffer, int, list[int], tuple[np.ndarray, np.ndarray]]:
        """Copy the input so that each kernel position is an offset into the copy.

        With stride s, a picture of every s-th pixel for each remainder of a position by s is enough, if there is space
        for what lies beyond the end of its rows; else each kernel position has a picture of its own.
        """
        x = self._plain(x, op.path)
        picture, (height, width) = self.pictures[out.buffer], _size(op.shape)
        places, stride = _taps(op), op.attrs["stride"]
        top, left = places[0]
        apart = [(row - top, column - left) for row, column in places]
        phases = list(dict.fromkeys((row % stride[0], column % stride[1]) for row, column in apart))
        tall, wide = (max(p[i] for p in apart) // stride[i] + (height, width)[i] for i in (0, 1))
        pitch = picture.pitch if height > 1 else wide
        if wide > pitch:
            firsts, tall, wide = places, height, width
            places = [(i, 0) for i in range(len(firsts))]
        else:
            firsts = [(top + row, left + column) for row, column in phases]
            places = [
                (
                    phases.index((row % stride[0], column % stride[1])),
                    row // stride[0] * pitch + column // stride[1],
                )
                for row, column in apart
            ]
        plane = rounded_up(tall * pitch, self.lanes)
        channels = x.shape[0]
        buffer = self.new(channels * len(firsts) * plane)
        dims = ((channels, len(firsts) * plane), (len(firsts), plane), (tall, pitch), (wide, 1))
        copies = View(buffer, 0, tuple(views.merged([dim]) for dim in dims))
        self.steps.append(Gather(path=op.path, out=copies, x=x, firsts=firsts, stride=stride, picture=(tall, wide)))
        taps = np.array([phase * plane + offset for phase, offset in places])
        return buffer, 0, list(range(len(taps))), (np.arange(channels) * len(firsts) * plane, taps)

    def _operand_of_planes(self, op: Op, user: Op, out: View) -> View:
        """Return a further input of an epilogue of (1, C, …) as (C, P); a constant may be the same for all pixels."""
        view = _channels(views.expanded(self.views[op], user.shape))
        inner = (*view.dims[1], *view.dims[2])
        if inner and all(stride == 0 for _, stride in inner):
            return View(view.buffer, view.offset, (view.dims[0], views.merged(inner)))
        if view.buffer.kind != "workspace" or view.dims[1:] != out.dims[1:]:
            view = self._copy(view, self.planes(*view.shape), user.path)
        return View(view.buffer, view.offset, (view.dims[0], views.merged([(self.pictures[out.buffer].run, 1)])))

    def _rows(self, view: View, path: str) -> Rows:
        """Return a view (O, P) as an operand of a product."""
        offsets, pixels = view.offsets(0), view.dims[1]
        if not pixels and not np.array_equal(offsets, np.arange(len(offsets))):
            view = self._copy(view, View(self.new(len(offsets)), 0, (views.merged([(len(offsets), 1)]), ())), path)
            offsets = view.offsets(0)
        return Rows(view.buffer, view.offset, offsets, per_row=bool(pixels) and pixels[0][1] == 0)


def _picture(height: int, width: int, margins: tuple[int, int], lanes: int) -> Picture:
    if height * width == 1:
        return Picture(1, 1, 1, 0, 1)
    above, beside = margins
    pitch = width + (beside if height > 1 or above else 0)  # kernels of one row need no zeros between rows
    base = rounded_up(above * pitch + beside, lanes)
    run = (height - 1) * pitch + width
    plane = rounded_up(base + rounded_up(run, lanes) + above * pitch + beside, lanes)
    if plane % PAGE == 0:
        plane += lanes
    return Picture(height, width, pitch, base, plane, margins)


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """Return height and width of (1, C, H, W) or (1, C, T)."""
    return (shape[2], shape[3]) if len(shape) == 4 else (1, shape[2])


def _same(op: Op) -> bool:
    """Return whether a convolution gives pictures of the size of its input with stride 1."""
    return op.attrs["stride"] == (1, 1) and _size(op.inputs[0].shape) == _size(op.shape) and prod(_size(op.shape)) > 1


def _taps(op: Op) -> list[tuple[int, int]]:
    """Return which pixel (row, column) each kernel position reads for output pixel (0, 0)."""
    (above, left), (down, right) = op.attrs["padding"], op.attrs["dilation"]
    height, width = op.attrs["weight"].shape[2:]
    return [(i * down - above, j * right - left) for i in range(height) for j in range(width)]


def _channels(view: View) -> View:
    """Return (1, C, H, W) or (1, C, T) as (C, H, W)."""
    dims = view.dims[1:] if len(view.dims) == 4 else (view.dims[1], (), view.dims[2])
    return View(view.buffer, view.offset, dims)


def _with_batch(view: View, rank: int) -> View:
    """Return (C, H, W) as (1, C, H, W) or (1, C, T)."""
    return View(view.buffer, view.offset, ((), *view.dims) if rank == 4 else ((), view.dims[0], view.dims[2]))


def _from_rows(view: View, shape: Sequence[int]) -> View:
    """Return (D, P) as (…, D)."""
    found = views.reshaped(views.permuted(view, (1, 0)), shape)
    if found is None:
        raise AssertionError("rows side by side can be divided at will")
    return found


def _side_by_side(view: View, dim: int) -> bool:
    """Return whether a dimension of a view fills vectors."""
    factors = view.dims[dim]
    return view.buffer.kind == "workspace" and (not factors or (len(factors) == 1 and factors[0][1] == 1))


def _same_everywhere(factors: views.Factors) -> bool:
    return all(stride == 0 for _, stride in factors)


def _without(view: View, dims: Sequence[int]) -> View:
    """Return the first elements of dimensions."""
    return View(view.buffer, view.offset, tuple(() if i in dims else dim for i, dim in enumerate(view.dims)))


def _constant_like(out: View, view: View) -> View:
    """Return a constant whose dimensions lie in the order of those of `out`."""
    order = _order(out)
    repeated = [i for i in order if _same_everywhere(view.dims[i])]
    kept = _without(view, repeated)
    positions = view.offset + views.positions(tuple(f for i in order for f in kept.dims[i]))
    array = view.buffer.array.ravel()[positions]
    moved = ordered(Buffer("constant", array.size, array=array), kept.shape, order)
    return views.expanded(moved, view.shape)


def _turned(view: View) -> View:
    return View(view.buffer, view.offset, (*view.dims[:-2], view.dims[-1], view.dims[-2]))
