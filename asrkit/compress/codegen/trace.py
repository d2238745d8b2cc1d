"""From a torch network to a `Graph`: torch.export gives its operators, what depends on no input is computed here."""

import inspect
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from asrkit.compress.codegen.graph import Expression, Graph, Op, constant, substituted
from asrkit.compress.codegen.operators import OPERATORS, SAME
from asrkit.errors import InputError


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    """Return the operations of `model` in evaluation mode on inputs of these shapes, each with a batch of 1.

    Raises:
        InputError: the network does what the compiler cannot; names the layer and the operator.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own ways
            program = torch.export.export(model.eval(), inputs).run_decompositions({})
    except Exception as error:  # torch.export fails in many ways, with long explanations
        reason = str(error).strip().split("\n")[0]
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InputError(f"the network cannot be traced with inputs of shape {shapes}: {reason}") from error
    return Tracer(program).graph


class Tracer:
    """Goes through an exported program, and keeps the value of each of its nodes: an operation, or what is known."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        stored = {**program.state_dict, **program.constants}
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names |= signature.inputs_to_lifted_tensor_constants
        self.graph = Graph([], [], [])
        self.values: dict[fx.Node, Any] = {}
        self.truths: set[Op] = set()
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                self.values[node] = stored[names[node.name]].detach()
            elif node.op == "placeholder":
                self.values[node] = self.add("input", [], node.meta["val"].shape, f"input {len(self.graph.inputs)}")
                self.graph.inputs.append(self.values[node])
            elif node.op == "output":
                self.graph.outputs = [self.tensor(self.values[value], "output") for value in node.args[0]]
            elif node.users:  # what has none are assertions
                self.values[node] = self._call(node)
            if isinstance(self.values.get(node), Op) and node.meta["val"].dtype == torch.bool:
                self.truths.add(self.values[node])

    def add(self, kind: str, inputs: list[Op], shape: Sequence[int], path: str, **attrs: Any) -> Op:
        """Add an operation to the graph."""
        if 0 in shape:
            raise InputError(f"{path}: a tensor of shape {tuple(shape)}, without elements, is unknown to the compiler")
        self.graph.ops.append(Op(kind, inputs, tuple(int(n) for n in shape), path, attrs))
        return self.graph.ops[-1]

    def tensor(self, value: Op | Tensor | float, path: str) -> Op:
        """Return a value as an operation; what is known becomes a constant."""
        if not isinstance(value, Op):
            value = constant(torch.as_tensor(value).detach().float().numpy(), path)
            self.graph.ops.append(value)
        return value

    def map(self, expression: Expression, values: Sequence[Any], shape: Sequence[int], path: str) -> Op:
        """Add an expression of operations, known tensors and numbers."""
        inputs: list[Op] = []
        parts: list[Expression] = []
        for value in values:
            if isinstance(value, Tensor) and value.numel() == 1:
                value = float(value)
            if isinstance(value, (Op, Tensor)):
                parts.append(("x", len(inputs)))
                inputs.append(self.tensor(value, path))
            else:
                parts.append(float(value))
        return self.add("map", inputs, shape, path, expression=substituted(expression, parts))

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if not _depends_on_input((args, kwargs)):
            return node.target(*args, **kwargs)
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
        path, shape = _path(node), getattr(node.meta.get("val"), "shape", ())
        if name in SAME:
            _keeps_value(node, path)
            return args[0]
        if name not in OPERATORS:
            raise InputError(f"{path}: operator '{name}' is unknown to the compiler")
        handler = OPERATORS[name]
        asked = {"name": name} if "name" in inspect.signature(handler).parameters else {}
        try:
            return handler(self, path, shape, **_named(node.target, args, kwargs), **asked)
        except InputError:
            raise
        except Exception as error:  # arguments that no handler thought of
            raise InputError(f"{path}: operator '{name}' with these arguments is unknown to the compiler") from error


def _keeps_value(node: fx.Node, path: str) -> None:
    was, is_now = (x.meta["val"].dtype for x in (node.args[0], node))
    if was.is_floating_point and not is_now.is_floating_point:
        raise InputError(f"{path}: conversion to whole numbers is unknown to the compiler")


def _depends_on_input(values: Any) -> bool:
    if isinstance(values, Op):
        return True
    if isinstance(values, dict):
        values = values.values()
    return isinstance(values, (list, tuple, type({}.values()))) and any(map(_depends_on_input, values))


def _path(node: fx.Node) -> str:
    """Return the path of the innermost module that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return (paths[-1] if paths else "") or "network"


def _named(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of an operator by name, defaults included; `input` is called x, `self` too."""
    values = {}
    for i, argument in enumerate(target._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
        values["x" if argument.name in ("self", "input") else argument.name] = value
    return values
