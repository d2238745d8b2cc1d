"""The folder that a compiled network is: C, weights, what they are, and a test of both."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asrkit.compress.codegen.emit import Emitter
from asrkit.compress.codegen.graph import fuse
from asrkit.compress.codegen.plan import Plan, plan
from asrkit.compress.codegen.runtime import LIBRARY, METADATA, WEIGHTS, load_network
from asrkit.compress.codegen.steps import Product, Winograd
from asrkit.compress.codegen.target import FREESTANDING, Target, compile_library, native_target, runs_here
from asrkit.compress.codegen.trace import trace
from asrkit.compress.codegen.views import View
from asrkit.errors import InputError
from asrkit.files import written_folder

TEMPLATES = Path(__file__).parent / "c"
RESERVED = {"all", "clean", "help", "install", "package", "test"}  # targets that cmake makes itself
TOLERANCE = 1e-4  # largest accepted difference from torch, relative to the largest output where this is above 1


def compile_network(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    folder: Path | str,
    target: Target | None = None,
    states: Sequence[tuple[int, int]] = (),
    name: str = "model",
) -> None:
    """Make C of a network, and a library of that unless it is for another machine; compare it with torch.

    Args:
        model: a network of which torch.export gives one graph.
        inputs: examples, whose shapes are fixed from now on; the first dimension is the batch, of 1.
        folder: what to write; nothing is there if anything fails.
        target: this machine by default.
        states: pairs (input, output) of tensors that the caller only hands on, from call to call.
        name: what the functions and files are called.

    Raises:
        InputError: the network has an operator that the compiler does not know (with the layer's path), there is no C
            compiler, the results differ from torch's by more than TOLERANCE, or the folder cannot be written.
    """
    folder, target = Path(folder), target or native_target()
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in RESERVED:
        raise InputError(f"'{name}' cannot be the name of functions in C")
    graph = trace(model, inputs)
    fuse(graph)
    planned = plan(graph, target, states)
    emitter = Emitter(planned, target)
    weights = emitter.weights.file()
    with torch.inference_mode():
        expected = model(*inputs)
    outputs = [x.float().numpy() for x in _tensors(expected)]
    values = _values(emitter, planned, target, name, len(weights))
    with written_folder(folder) as inside:
        for template, file in {"model.c": f"{name}.c", "model.h": f"{name}.h"}.items():
            (inside / file).write_text(_filled(template, values))
        for file in ("test.c", "CMakeLists.txt", "README.md"):
            (inside / file).write_text(_filled(file, values))
        (inside / WEIGHTS).write_bytes(weights)
        _write_test(inside / "test", planned, [x.float().numpy() for x in inputs], outputs)
        (inside / METADATA).write_text(json.dumps(_metadata(emitter, planned, target, name, states), indent=1))
        if runs_here(target):
            compile_library(inside / f"{name}.c", inside / LIBRARY, target)
            _compare(inside, inputs, outputs)


def _tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors in tuples, lists and dictionaries in the order in which torch.export gives them."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [x for part in (outputs.values() if isinstance(outputs, dict) else outputs) for x in _tensors(part)]


def _filled(template: str, values: dict[str, Any]) -> str:
    text = (TEMPLATES / template).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def _values(emitter: Emitter, planned: Plan, target: Target, name: str, size: int) -> dict[str, Any]:
    """Return what goes into the templates."""
    shapes = [
        f"/* {kind} {i}: {_shape(view)} */"
        for kind, found in (("input", planned.inputs), ("output", planned.outputs))
        for i, view in enumerate(found)
    ]
    tables = [
        f"| {kind} | shape |\n|---|---|\n" + "\n".join(f"| {i} | {_shape(view)} |" for i, view in enumerate(found))
        for kind, found in (("input", planned.inputs), ("output", planned.outputs))
    ]
    return {
        "prelude": (TEMPLATES / "prelude.h").read_text(),
        "kernels": "\n".join(emitter.kernels.texts),
        "steps": "\n".join(emitter.texts),
        "table": ", ".join(f"step_{i}" for i in range(len(planned.steps))),
        "run": ", ".join(emitter.run),
        "stages": len(emitter.run),
        "shapes": "\n".join(shapes),
        "tables": "\n\n".join(tables),
        "name": name,
        "guard": name.upper(),
        "target": target.name,
        "bytes": target.vector_bytes,
        "size": size,
        "count": len(planned.steps),
        "workspace": planned.workspace,
        "inputs": len(planned.inputs),
        "outputs": len(planned.outputs),
        "tolerance": TOLERANCE,
        "freestanding": " ".join(FREESTANDING),
        "flags": " ".join(target.flags),
    }


def _order(view: View) -> list[int]:
    """Return the dimensions of an input or output in the order in which they lie in memory."""
    return sorted(range(len(view.dims)), key=lambda i: -max((stride for _, stride in view.dims[i]), default=0))


def _shape(view: View) -> str:
    order = [i for i in _order(view) if view.dims[i]]
    plain = order == sorted(order)
    return f"{view.shape}" + ("" if plain else f", dimensions in memory in the order {_order(view)}")


def _metadata(emitter: Emitter, planned: Plan, target: Target, name: str, states: Sequence[tuple[int, int]]) -> dict:
    """Return what `load_network` needs, and what reports tell of each layer."""
    layers = [
        {
            "path": step.path,
            "shape": list(step.weight.shape),
            "pixels": step.pixels,
            "macs": step.macs,
            "weights": step.weight.size,
            "nonzero": int(np.count_nonzero(step.weight)),
            "stored": step.stored if isinstance(step, Winograd) else emitter.packed[i].stored,
            "kernel": (
                f"winograd {step.tiling.tile}"
                if isinstance(step, Winograd)
                else f"{emitter.packed[i].kernel} {emitter.packed[i].rows}"
            ),
        }
        for i, step in enumerate(planned.steps)
        if isinstance(step, (Product, Winograd))
    ]
    return {
        "name": name,
        "target": target.name,
        "workspace": planned.workspace,
        "inputs": [{"shape": view.shape, "order": _order(view)} for view in planned.inputs],
        "outputs": [{"shape": view.shape, "order": _order(view)} for view in planned.outputs],
        "states": [list(pair) for pair in states],
        "steps": [{"path": step.path, "kind": type(step).__name__.lower()} for step in planned.steps],
        "layers": layers,
    }


def _write_test(folder: Path, planned: Plan, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    folder.mkdir()
    for kind, arrays, found in (("input", inputs, planned.inputs), ("output", outputs, planned.outputs)):
        for i, (array, view) in enumerate(zip(arrays, found, strict=True)):
            np.ascontiguousarray(array.transpose(_order(view)), np.float32).tofile(folder / f"{kind}-{i}.bin")


def _compare(folder: Path, inputs: tuple[Tensor, ...], expected: list[np.ndarray]) -> None:
    found = load_network(folder)(*inputs)
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        difference = float(np.max(np.abs(ours - theirs), initial=0.0))
        if not difference <= TOLERANCE * max(1.0, float(np.max(np.abs(theirs), initial=0.0))):
            raise InputError(
                f"output {i} of the compiled network differs from torch's by {difference:.2g}: not written"
            )
