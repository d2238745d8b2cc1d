"""Views reach the elements that numpy's reach, and loops over views visit all of them; the graph and the workspace."""

import itertools
import random
from math import prod

import numpy as np
import pytest

from asrkit.compress.codegen import views
from asrkit.compress.codegen.graph import SCALE_AND_SHIFT, Graph, Op, constant, fuse
from asrkit.compress.codegen.memory import allocate
from asrkit.compress.codegen.steps import Elementwise
from asrkit.compress.codegen.views import Buffer, View


def whole(shape):
    return View(Buffer("workspace", prod(shape)), 0, views.contiguous(shape))


def elements(view):
    """Return which floats of its buffer a view reaches, in its shape."""
    found = np.array(view.offset)
    for dim in range(len(view.dims)):
        found = found[..., None] + view.offsets(dim)
    return found


def factored(size, draw):
    """Return a shape of that many elements."""
    shape = []
    while size > 1:
        shape.append(draw.choice([n for n in range(1, size + 1) if size % n == 0]))
        size //= shape[-1]
    return tuple(shape)


def changed(view, array, draw):
    """Return a view and an array changed in the same way; None instead of a view that would take a copy."""
    rank, kind = len(view.shape), draw.choice(["permute", "slice", "reshape", "expand"])
    if kind == "permute":
        order = draw.sample(range(rank), rank)
        return views.permuted(view, order), array.transpose(order)
    if kind == "slice" and rank:
        dim = draw.randrange(rank)
        start = draw.randrange(view.shape[dim])
        stop, step = draw.randint(start + 1, view.shape[dim]), draw.choice([1, 1, 2, 3])
        return views.sliced(view, dim, start, stop, step), array[(slice(None),) * dim + (slice(start, stop, step),)]
    if kind == "expand" and prod(view.shape) < 500:
        shape = (2, *(3 if n == 1 else n for n in view.shape))
        return views.expanded(view, shape), np.broadcast_to(array, shape)
    shape = factored(prod(view.shape), draw)
    return views.reshaped(view, shape), array.reshape(shape)


@pytest.mark.parametrize("seed", range(80))
def test_changes_of_views_are_those_of_arrays(seed):
    draw = random.Random(seed)
    shape = tuple(draw.choice([1, 2, 3, 4, 6]) for _ in range(draw.randint(1, 4)))
    view, array = whole(shape), np.arange(prod(shape)).reshape(shape)
    for _ in range(6):
        new_view, new_array = changed(view, array, draw)
        if new_view:
            view, array = new_view, new_array
        assert view.shape == array.shape
        np.testing.assert_array_equal(elements(view), array)


def test_a_tensor_without_gaps_takes_any_shape():
    view = whole((20, 6))
    for shape in ((8, 15), (120,), (2, 3, 4, 5), (1, 15, 1, 8)):
        np.testing.assert_array_equal(elements(views.reshaped(view, shape)), np.arange(120).reshape(shape))
    assert views.reshaped(views.permuted(view, (1, 0)), (8, 15)) is None


@pytest.mark.parametrize("seed", range(30))
def test_loops_visit_each_element_of_all_views_once(seed):
    draw = random.Random(seed)
    shape = tuple(draw.choice([1, 2, 3, 4]) for _ in range(3))
    order = draw.sample(range(3), 3)
    turned = views.permuted(whole(tuple(shape[i] for i in order)), [order.index(i) for i in range(3)])
    repeated = views.expanded(whole((shape[0], 1, shape[2])), shape)
    given = [whole(shape), turned, repeated]
    loops = list(views.loops(given))
    visited = [
        tuple(sum(i * strides[n] for i, (_, strides) in zip(index, loops, strict=True)) for n in range(3))
        for index in itertools.product(*(range(size) for size, _ in loops))
    ]
    assert sorted(visited) == sorted(zip(*(elements(view).ravel() for view in given), strict=True))
    assert [size for size, _ in views.loops([whole(shape), whole(shape)])] == [prod(shape)] * (prod(shape) > 1)


def test_loops_refuse_factors_that_do_not_fit():
    one, other = (View(Buffer("workspace", 99), 0, (dim,)) for dim in (((2, 50), (6, 1)), ((3, 30), (4, 1))))
    with pytest.raises(ValueError, match="do not divide"):
        list(views.loops([one, other]))


# --- the graph


def conv(x):
    attrs = {"weight": np.ones((2, 3, 1, 1), np.float32), "bias": np.ones(2, np.float32)}
    return Op("conv", [x], (1, 2, 4, 4), "conv", attrs)


def scaled(x):
    scale, shift = (constant(np.full((2, 1, 1), value), "norm") for value in (2.0, 3.0))
    return [scale, shift, Op("map", [x, scale, shift], x.shape, "norm", {"expression": SCALE_AND_SHIFT})]


def plus(x, y):
    return Op("map", [x, y], x.shape, "sum", {"expression": ("add", ("x", 0), ("x", 1))})


def test_a_scale_and_a_sum_disappear_in_a_convolution():
    x = Op("input", [], (1, 3, 4, 4), "input 0")
    other = Op("input", [], (1, 2, 4, 4), "input 1")
    first = conv(x)
    norm = scaled(first)
    out = plus(other, norm[-1])
    graph = Graph([x, other, first, *norm, out], [x, other], [out])
    fuse(graph)
    assert [op.kind for op in graph.ops] == ["input", "input", "conv"]
    assert (out.inputs, out.path) == ([x, other], "conv")
    assert np.all(out.attrs["weight"] == 2) and np.all(out.attrs["bias"] == 5)
    assert out.attrs["epilogue"] == ("add", ("x", 1), ("x", 0))


def test_a_scale_of_what_others_read_too_leaves_the_weights_alone():
    x = Op("input", [], (1, 3, 4, 4), "input 0")
    first = conv(x)
    norm = scaled(first)
    again = scaled(norm[-1])
    out = plus(norm[-1], again[-1])
    graph = Graph([x, first, *norm, *again, out], [x], [norm[-1], out])
    fuse(graph)
    assert norm[-1].kind == "conv" and np.all(norm[-1].attrs["weight"] == 2)
    assert out.kind == "map" and out.inputs[0] is norm[-1]


# --- the workspace


def test_buffers_that_live_together_do_not_overlap():
    draw = random.Random(0)
    buffers = [Buffer("workspace", draw.randint(1, 100)) for _ in range(40)]
    steps = []
    for i, buffer in enumerate(buffers):
        read = [View(other, 0, ()) for other in draw.sample(buffers[max(0, i - 6) : i], min(i, 3))]
        steps.append(Elementwise(path="", out=View(buffer, 0, ()), expression=0.0, inputs=read))
    size = allocate(steps)
    lives = {buffer: [i for i, s in enumerate(steps) if buffer in (s.out.buffer, *s.read)] for buffer in buffers}
    for one, other in itertools.combinations(buffers, 2):
        together = lives[one][0] <= lives[other][-1] and lives[other][0] <= lives[one][-1]
        apart = one.start + one.size <= other.start or other.start + other.size <= one.start
        assert apart or not together
    assert size == max(buffer.start + buffer.size for buffer in buffers) < sum(buffer.size for buffer in buffers)
    assert all(buffer.start % 16 == 0 for buffer in buffers)
