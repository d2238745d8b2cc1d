"""A network in files for an engine, and the engine ready to run it: for exports, and for how fast engines are.

A function of ENGINES writes the files of a network for inputs of certain shapes into a folder, and loads them.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from asrkit.compress.codegen import compile_network, load_network
from asrkit.compress.codegen.runtime import QUANTILE
from asrkit.compress.shrink import shrink
from asrkit.export.executorch import load_method, to_program
from asrkit.export.onnx import to_onnx
from asrkit.optional import needed

TURN = 0.005  # seconds of processor time that a turn of a contestant takes at least
TURNS = 40
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Ready:
    """A network that an engine has loaded."""

    call: Callable[..., list[Tensor]]
    """Maps inputs to outputs."""
    bound: Callable[[], Any]
    """Computes the outputs of the example inputs, on one thread, without what an engine adds in Python."""


def in_c(network: nn.Module, inputs: tuple[Tensor, ...], folder: Path, states: Sequence[tuple[int, int]] = ()) -> Ready:
    """C that is made for the network and the zeros in its weights."""
    compile_network(network, inputs, folder, states=states)
    return load_c(folder, inputs)


def load_c(folder: Path, inputs: tuple[Tensor, ...]) -> Ready:
    """Load what `compile_network` wrote."""
    loaded = load_network(folder)
    return Ready(lambda *x: list(map(torch.from_numpy, loaded(*x))), loaded.bound(inputs))


def in_onnxruntime(network: nn.Module, inputs: tuple[Tensor, ...], folder: Path, states: Any = ()) -> Ready:
    """model.onnx, whose batch may have any size; here it is 1."""
    ort = needed("onnxruntime", "export")
    two = {f"x{i}": torch.cat([x, x]) for i, x in enumerate(inputs)}  # a size of 1 would become a constant
    names = [f"y{i}" for i in range(len(_in_eager(network, *inputs)))]
    (folder / "model.onnx").write_bytes(to_onnx(network, two, names, {}))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_free_dimension_override_by_name("N", len(inputs[0]))
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def call(*x: Tensor) -> list[Tensor]:
        return list(map(torch.from_numpy, session.run(None, dict(zip(two, (part.numpy() for part in x), strict=True)))))

    binding = session.io_binding()
    for name, x in zip(two, inputs, strict=True):
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x.numpy()))
    for name in names:
        binding.bind_output(name)
    return Ready(call, partial(session.run_with_iobinding, binding))


def in_executorch(network: nn.Module, inputs: tuple[Tensor, ...], folder: Path, states: Any = ()) -> Ready:
    """model.pte; what XNNPACK cannot compute, the portable kernels of ExecuTorch do."""
    (folder / "model.pte").write_bytes(to_program(network, *inputs))
    needed("executorch.extension.pybindings.portable_lib", "executorch")._unsafe_reset_threadpool(1)
    method = load_method((folder / "model.pte").read_bytes())
    return Ready(lambda *x: method.execute(x), partial(method.execute, inputs))


def in_torch(network: nn.Module, inputs: tuple[Tensor, ...], folder: Path, states: Any = ()) -> Ready:
    """torch itself, without files."""
    return Ready(partial(_in_eager, network), partial(_in_eager, network, *inputs))


ENGINES = {"c": in_c, "onnxruntime": in_onnxruntime, "torch": in_torch, "executorch": in_executorch}


@torch.inference_mode()
def _in_eager(network: nn.Module, *inputs: Tensor) -> list[Tensor]:
    found = network(*inputs)
    return [found] if isinstance(found, Tensor) else list(found)


def difference(network: nn.Module, inputs: tuple[Tensor, ...], ready: Ready) -> float:
    """Return the largest difference of the outputs from torch's, relative to the largest element if that is above 1."""
    pairs = zip(ready.call(*inputs), _in_eager(network, *inputs), strict=True)
    return max(float((found - x).abs().max() / x.abs().max().clamp(min=1)) for found, x in pairs)


def smallest(network: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return the network without filters of zeros, or as it is if there are none.

    Raises:
        InputError: as `asrkit.compress.shrink.shrink`.
    """
    smaller = shrink(network, inputs)
    return smaller if count_weights(smaller) < count_weights(network) else network


def count_weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def seconds_by_turns(runs: Mapping[Key, Callable[[], Any]]) -> dict[Key, float]:
    """Return the processor time of a run of each: they take TURNS turns, and a sixth of these stay below it.

    So what disturbs the machine disturbs all, and what it adds does not count.
    """
    repeats = {key: max(1, round(TURN / min(_seconds(run, 1) for _ in range(3)))) for key, run in runs.items()}
    times = [[_seconds(run, repeats[key]) for key, run in runs.items()] for _ in range(TURNS)]
    return dict(zip(runs, np.quantile(times, QUANTILE, axis=0).tolist(), strict=True))


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats
