"""Inference engines that pruned networks are measured against, all behind one function.

`prepare(module, *inputs)` gives an engine a module and its inputs and returns a `Prepared`: `run()` computes, and
leaves the results where the engine puts them; `outputs()` returns the results. So a timed run holds no copy that only a
comparison needs. Everything is float32 on one thread.
"""

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DIFFERS, Row, absent, load_peers, relative_difference
from torch import Tensor, nn

from asrkit.compress.engines import Ready, in_c, in_executorch, in_onnxruntime, in_torch, seconds_by_turns
from asrkit.export.onnx import to_onnx

TOLERANCES = {"MNN": 5e-3}  # of the largest output; its Winograd is that coarse on large images
TOLERANCE = 1e-4
OURS, REFERENCE, BEST = "asrkit", "onnxruntime", "best dense engine"


@dataclass(frozen=True)
class Prepared:
    """A computation that an engine is ready for."""

    run: Callable[[], Any]
    outputs: Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Entry:
    """A contestant and the module that says what is right."""

    ready: Prepared
    module: nn.Module
    tolerance: float = TOLERANCE


Prepare = Callable[..., Prepared]  # of a module and its inputs
Key = tuple[str, str]  # a work and who does it


def contest(
    name: str,
    modules: dict[str, nn.Module],
    inputs: Sequence[Tensor],
    others: dict[Key, Entry] | None = None,
    layers: int = 1,
) -> list[Row]:
    """Compare ours with dense engines and `others`: the results with torch's, then the time of one run.

    Args:
        name: of what is computed.
        modules: sparsity -> module. The dense engines compute the first one, each of them. Ours computes all, and is
            measured on the others against onnxruntime and the best of the dense engines.
        inputs: of the modules.
        others: (sparsity, name) -> contestant on that module only.
        layers: equal ones in a module, of which times are for one.
    """
    print(name, "...", file=sys.stderr, flush=True)
    modules = {work: module.eval() for work, module in modules.items()}
    first, module = next(iter(modules.items()))
    dense = {
        (first, engine): Entry(ready, module, TOLERANCES.get(engine, TOLERANCE))
        for engine, ready in prepare_all(name, module, *inputs).items()
    }
    ours = {(work, OURS): Entry(through(in_c, module, *inputs), module) for work, module in modules.items()}
    entries = {**ours, **dense, **(others or {})}
    errors = {key: difference(entry.ready, in_eager(entry.module, *inputs)) for key, entry in entries.items()}
    seconds = seconds_by_turns({key: entry.ready.run for key, entry in entries.items()})
    times = {key: 1000 * time / layers for key, time in seconds.items()}
    best = min(dense, key=times.__getitem__)
    rows = []
    for work in modules:
        peers = {engine: (first, engine) for _, engine in dense}
        if work != first:
            peers = {engine: key for engine, key in peers.items() if engine == REFERENCE}
            peers |= {f"{BEST}, {best[1]}": best, **{peer: (of, peer) for of, peer in others or () if of == work}}
        mine = work, OURS
        for peer, theirs in peers.items():
            equal = all(errors[key] <= entries[key].tolerance for key in (mine, theirs))
            result = f"{'equal to' if equal else DIFFERS} {max(errors[mine], errors[theirs]):.0e}"
            rows.append(Row(f"{name}, {work}", peer, times[mine], times[theirs], "CPU ms", result))
    return rows


def keep_stdout() -> None:
    """Leave standard output to Python from here on: what engines print from C++ goes to standard error."""
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def dense_engines(images: bool) -> dict[str, Prepare]:
    """Return the engines that import here, by name; the others are reported as absent."""
    found = load_peers("onnxruntime", "onnx", "executorch", "openvino", "MNN", "ncnn", "pnnx")
    engines: dict[str, tuple[Prepare, Sequence[str]]] = {
        "onnxruntime": (partial(through, in_onnxruntime), ("onnxruntime", "onnx")),
        "torch": (partial(through, in_torch), ()),
        "XNNPACK in ExecuTorch": (partial(through, in_executorch), ("executorch",)),
        "OpenVINO": (openvino, ("openvino", "onnx")),
        "MNN": (mnn, ("MNN", "onnx")),
        "ncnn": (ncnn, ("ncnn", "pnnx")),
    }
    if images:
        engines["torch, channels last"] = (channels_last, ())
    return {name: prepare for name, (prepare, needs) in engines.items() if all(need in found for need in needs)}


def prepare_all(work: str, module: nn.Module, *inputs: Tensor) -> dict[str, Prepared]:
    """Return the work ready in each of the engines; those that cannot do it are reported as absent from it."""
    ready = {}
    for name, prepare in dense_engines(images=inputs[0].ndim == 4).items():
        try:
            ready[name] = prepare(module, *inputs)
            ready[name].run()
        except Exception as error:  # each engine has its own
            absent[f"{name} from {work}"] = (str(error) or repr(error)).strip().splitlines()[0]
    return ready


def through(engine: Callable[..., Ready], module: nn.Module, *inputs: Tensor) -> Prepared:
    """One of the engines that asrkit itself exports to."""
    with tempfile.TemporaryDirectory() as folder:
        ready = engine(module, inputs, Path(folder))
    return Prepared(ready.bound, lambda: ready.call(*inputs))


def channels_last(module: nn.Module, *inputs: Tensor) -> Prepared:
    """torch with the other layout of images."""
    module = copy.deepcopy(module).to(memory_format=torch.channels_last)
    return through(in_torch, module, *(x.to(memory_format=torch.channels_last) for x in inputs))


def openvino(module: nn.Module, *inputs: Tensor) -> Prepared:
    """OpenVINO; without the hint it would compute in bfloat16 where it can."""
    ov = import_module("openvino")
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = ov.Core()
    request = core.compile_model(core.read_model(onnx_of(module, *inputs)), "CPU", settings).create_infer_request()
    given = [ov.Tensor(x.numpy()) for x in inputs]
    for name, x in zip(names("x", inputs), given, strict=True):
        request.set_tensor(name, x)
    return Prepared(request.infer, lambda: [torch.tensor(y.data) for y in request.output_tensors])


def mnn(module: nn.Module, *inputs: Tensor) -> Prepared:
    """MNN, which computes most 3x3 convolutions by Winograd's method. It uses up its inputs: each run copies them."""
    engine = import_module("MNN")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "model.mnn")
        source.write_bytes(onnx_of(module, *inputs))
        # Not by MNN.tools.mnnconvert, which installs packages and calls a server when it is imported.
        convert = import_module("_tools").mnnconvert
        if not convert(["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "bench"]):
            raise RuntimeError("its converter fails")
        network = engine.Interpreter(str(target))
    session = network.createSession({"backend": "CPU", "numThread": 1, "precision": "high"})
    kind, layout = engine.Halide_Type_Float, engine.Tensor_DimensionType_Caffe
    given = [engine.Tensor(tuple(x.shape), kind, x.numpy(), layout) for x in inputs]
    slots = [network.getSessionInput(session, name) for name in names("x", inputs)]

    def run() -> None:
        for slot, x in zip(slots, given, strict=True):
            slot.copyFrom(x)
        network.runSession(session)

    def outputs() -> list[Tensor]:
        found = network.getSessionOutputAll(session)
        return [torch.tensor(found[name].getNumpyData()) for name in sorted(found)]

    return Prepared(run, outputs)


def ncnn(module: nn.Module, *inputs: Tensor) -> Prepared:
    """ncnn by way of pnnx; tensors lose their first dimension, the batch, if it has one."""
    engine = import_module("ncnn")
    network = engine.Net()
    network.opt.num_threads = 1
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, option, False)
    with tempfile.TemporaryDirectory() as folder:
        torch.jit.trace(module, inputs, check_trace=False).save(f"{folder}/model.pt")
        shapes = ",".join(str(list(x.shape)).replace(" ", "") + "f32" for x in inputs)
        command = [import_module("pnnx").EXEC_PATH, "model.pt", f"inputshape={shapes}", "fp16=0"]
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        if network.load_param(f"{folder}/model.ncnn.param") or network.load_model(f"{folder}/model.ncnn.bin"):
            raise RuntimeError("cannot load what pnnx makes of it")
    mats = [engine.Mat(x[0].numpy() if x.ndim > 2 else x.numpy()) for x in inputs]
    left: list[Any] = []

    def run() -> None:
        extractor = network.create_extractor()
        for name, mat in zip(network.input_names(), mats, strict=True):
            extractor.input(name, mat)
        left[:] = [extractor.extract(name)[1] for name in network.output_names()]

    return Prepared(run, lambda: [torch.from_numpy(np.array(mat)) for mat in left])


def onnx_of(module: nn.Module, *inputs: Tensor) -> bytes:
    """Return the ONNX file of a module for inputs of these shapes; names sort in their order."""
    x, y = names("x", inputs), names("y", in_eager(module, *inputs))
    return to_onnx(module, dict(zip(x, inputs, strict=True)), y, {}, free={name: {} for name in (*x, *y)})


def names(letter: str, tensors: Sequence[Tensor]) -> list[str]:
    """Return names that sort in the order of the tensors."""
    return [f"{letter}{index:03}" for index in range(len(tensors))]


@torch.inference_mode()
def in_eager(module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Return the outputs of a module."""
    found = module(*inputs)
    return [found] if isinstance(found, Tensor) else list(found)


def difference(ready: Prepared, expected: Sequence[Tensor]) -> float:
    """Return the largest difference of the outputs, relative to the largest element of the tensor."""
    ready.run()
    found = [y.reshape(x.shape) for x, y in zip(expected, ready.outputs(), strict=True)]
    return max(map(relative_difference, expected, found))
