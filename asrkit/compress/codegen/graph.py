"""A network as a list of operations on tensors whose first dimension, the batch, is 1.

| kind | inputs | attributes |
|---|---|---|
| input, constant | | index; array |
| conv | x (1, I, H, W), more of the epilogue | weight (O, I / groups, kh, kw), bias, epilogue, stride, padding, … |
| linear | x (…, I), more of the epilogue | weight (O, I), bias, epilogue |
| matmul | a (…, M, K), b (…, K, N) | |
| map | any that broadcast | expression |
| layer_norm | x (…, D), more of the epilogue | weight (D,), bias (D,), epsilon, epilogue |
| softmax | x | dim |
| reduce | x | dims, how (sum, mean, max) |
| pool | x (1, C, H, W) | how (mean, max), kernel, stride, padding, count_padding |
| lookup | numbers (…) of rows | weight (V, D) |
| concat | any | dim |
| view | x | how: a function of a View that gives a View, or None where data must move first |

An expression is ("x", i), input i; a number; or (name, expression, …) with a name of `expressions.FUNCTIONS`. In an
epilogue, input 0 is what the operation itself gives.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Expression = tuple | float
IDENTITY: Expression = ("x", 0)
SCALE_AND_SHIFT: Expression = ("add", ("mul", ("x", 0), ("x", 1)), ("x", 2))
WITH_EPILOGUE = ("conv", "linear", "layer_norm")


@dataclass(eq=False)
class Op:
    """An operation and the tensor that it gives; `path` is the module of the network that asks for it."""

    kind: str
    inputs: list["Op"]
    shape: tuple[int, ...]
    path: str
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """All operations in an order in which they can be computed, inputs and constants among them."""

    ops: list[Op]
    inputs: list[Op]
    outputs: list[Op]


def substituted(expression: Expression, inputs: Sequence[Expression]) -> Expression:
    """Return an expression with an expression in the place of each input."""
    if not isinstance(expression, tuple):
        return expression
    if expression[0] == "x":
        return inputs[expression[1]]
    return expression[0], *(substituted(part, inputs) for part in expression[1:])


def uses(graph: Graph) -> Counter[Op]:
    """Return how often each operation's tensor is read."""
    return Counter([op for user in graph.ops for op in user.inputs] + graph.outputs)


def fuse(graph: Graph) -> None:
    """Compute elementwise operations where their inputs are made, where these are used by nothing else.

    A chain of them becomes one expression; one of what a convolution, a linear layer or a layer norm gives becomes its
    epilogue, so its output never goes to memory in between. A batch norm of a convolution disappears in its weights.
    """
    count = uses(graph)
    for op in graph.ops:
        if op.kind == "map":
            _scale_weights(op, count)
    for op in graph.ops:
        if op.kind == "map":
            for i in reversed(range(len(op.inputs))):
                if op.inputs[i].kind == "map" and _alone(op.inputs[i], op, count):
                    _inline(op, i)
            _share_inputs(op, count)
    for op in graph.ops:
        if op.kind == "map":
            _become_epilogue(op, graph, count)
    _drop_unused(graph)


def _alone(inner: Op, outer: Op, count: Counter[Op]) -> bool:
    return count[inner] == 1 and inner.shape == outer.shape


def _scale_weights(op: Op, count: Counter[Op]) -> None:
    """Turn a map into the convolution that it reads, if it but scales and shifts its channels."""
    conv, *channels = op.inputs
    one_each = (op.shape[1:2] or (1,)) + (1,) * (len(op.shape) - 2)
    if conv.kind != "conv" or op.attrs["expression"] != SCALE_AND_SHIFT or not _alone(conv, op, count):
        return
    if any(x.kind != "constant" or x.shape != one_each for x in channels):
        return
    scale, shift = (x.attrs["array"].ravel() for x in channels)
    weight, bias = (np.asarray(conv.attrs[name]) for name in ("weight", "bias"))
    attrs = {**conv.attrs, "weight": weight * scale.reshape(-1, 1, 1, 1), "bias": bias * scale + shift}
    op.kind, op.inputs, op.attrs, op.path = conv.kind, conv.inputs, attrs, conv.path


def _inline(op: Op, i: int) -> None:
    """Put the expression of input i into that of `op`."""
    inner = op.inputs[i]
    shift = len(op.inputs)
    moved = substituted(inner.attrs["expression"], [("x", shift + n) for n in range(len(inner.inputs))])
    parts = [("x", n) for n in range(shift)]
    parts[i] = moved
    op.attrs["expression"] = substituted(op.attrs["expression"], parts)
    op.inputs += inner.inputs


def _share_inputs(op: Op, count: Counter[Op]) -> None:
    """Keep each input of a map that its expression reads, once."""
    used = sorted(_read(op.attrs["expression"]))
    kept = list(dict.fromkeys(op.inputs[i] for i in used))
    parts: list[Expression] = [("x", kept.index(x) if x in kept else -1) for x in op.inputs]
    op.attrs["expression"] = substituted(op.attrs["expression"], parts)
    count.subtract(op.inputs[i] for i in used)
    count.update(kept)
    op.inputs = kept


def _read(expression: Expression) -> set[int]:
    if not isinstance(expression, tuple):
        return set()
    if expression[0] == "x":
        return {expression[1]}
    return set().union(*(_read(part) for part in expression[1:]))


def _become_epilogue(op: Op, graph: Graph, count: Counter[Op]) -> None:
    """Turn a map into the operation that makes its last input of the same shape, with the expression as epilogue."""
    order = {other: n for n, other in enumerate(graph.ops)}
    fit = [x for x in op.inputs if x.kind in WITH_EPILOGUE and _alone(x, op, count)]
    if not fit or any(x.shape != op.shape and x.kind != "constant" for x in op.inputs):
        return
    main = max(fit, key=order.__getitem__)
    others = [x for x in op.inputs if x is not main]
    first = len(main.inputs)  # in the new expression, 0 is the result of the operation, 1 … its further inputs
    inner = main.attrs.get("epilogue", IDENTITY)
    parts = [inner if x is main else ("x", first + others.index(x)) for x in op.inputs]
    attrs = {**main.attrs, "epilogue": substituted(op.attrs["expression"], parts)}
    op.kind, op.inputs, op.attrs, op.path = main.kind, [*main.inputs, *others], attrs, main.path


def _drop_unused(graph: Graph) -> None:
    needed = set(graph.outputs) | set(graph.inputs)
    for op in reversed(graph.ops):
        if op in needed:
            needed.update(op.inputs)
    graph.ops = [op for op in graph.ops if op in needed]


def constant(array: np.ndarray, path: str) -> Op:
    array = np.ascontiguousarray(array, np.float32)
    return Op("constant", [], tuple(array.shape), path, {"array": array})
