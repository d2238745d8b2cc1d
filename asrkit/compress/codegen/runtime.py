"""Runs a compiled network from Python."""

import ctypes
import json
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from asrkit.errors import InputError

LIBRARY, WEIGHTS, METADATA = "model.so", "weights.bin", "model.json"
ALIGNMENT = 64
QUANTILE = 1 / 6  # of the times of the runs: what disturbs the machine only ever adds
WRONG = {1: "of the wrong size", 2: "not a file of weights", 3: "damaged"}
Array = np.ndarray | Tensor


class Network:
    """A compiled network: call it with as many arrays as it has inputs, of their shapes, from any thread."""

    def __init__(self, folder: Path, metadata: dict[str, Any], weights: np.ndarray, library: ctypes.CDLL) -> None:
        self.folder, self.layers = folder, metadata["layers"]
        self.inputs, self.outputs, self.steps = metadata["inputs"], metadata["outputs"], metadata["steps"]
        self.weights = weights
        self._run, self._run_step = (getattr(library, f"{metadata['name']}_{what}") for what in ("run", "run_step"))
        self._workspace = 4 * metadata["workspace"] + ALIGNMENT
        self._own = threading.local()

    @property
    def _work(self) -> np.ndarray:
        """The workspace of this thread."""
        if not hasattr(self._own, "work"):
            self._own.work = _aligned(self._workspace)
        return self._own.work

    def __call__(self, *inputs: Array) -> list[np.ndarray]:
        """Return the outputs, float32, of inputs of the shapes that the network was compiled with.

        A state may be handed back as it came: nothing is copied.

        Raises:
            InputError: the number or the shape of the inputs is wrong.
        """
        pointers, outputs, _alive = self._arguments(inputs)
        self._run(*pointers)
        return outputs

    def bound(self, inputs: Sequence[Array]) -> Callable[[], None]:
        """Return a function that computes the same inputs again and again, and does nothing else.

        It is for one thread at a time.
        """
        pointers, *alive = self._arguments(inputs)

        def run() -> None:
            self._run(*pointers)

        run.alive = alive, self._work  # the pointers point into them
        return run

    def seconds(self, repeats: int = 50) -> float:
        """Return the processor time of a run on zeros: of `repeats` runs, the time that a sixth stay below."""
        run = self.bound([np.zeros(x["shape"], np.float32) for x in self.inputs])
        times = []
        run()
        for _ in range(repeats):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return float(np.quantile(times, QUANTILE))

    def profile(self, repeats: int = 20) -> dict[str, float]:
        """Return the seconds of each layer, by its path."""
        pointers, *_alive = self._arguments([np.zeros(x["shape"], np.float32) for x in self.inputs])
        found: dict[str, float] = defaultdict(float)
        times = np.zeros((repeats, len(self.steps)))
        for row in times:
            for i in range(len(self.steps)):
                start = time.perf_counter()
                self._run_step(i, *pointers)
                row[i] = time.perf_counter() - start
        for step, seconds in zip(self.steps, np.quantile(times, QUANTILE, axis=0), strict=True):
            found[step["path"]] += float(seconds)
        return dict(found)

    def _arguments(self, inputs: Any) -> tuple[list[Any], list[np.ndarray], list[np.ndarray]]:
        """Return the arguments of a call in C, the outputs that it will fill, and what has to live that long."""
        if len(inputs) != len(self.inputs):
            raise InputError(f"{self.folder}: {len(inputs)} inputs for a network of {len(self.inputs)}")
        given = []
        for i, (x, expected) in enumerate(zip(inputs, self.inputs, strict=True)):
            if tuple(x.shape) != tuple(expected["shape"]):
                shapes = f"{tuple(x.shape)}, not {tuple(expected['shape'])}"
                raise InputError(f"{self.folder}: input {i} is of shape {shapes}")
            given.append(np.ascontiguousarray(np.asarray(x, np.float32).transpose(expected["order"])))
        filled = [np.empty([x["shape"][d] for d in x["order"]], np.float32) for x in self.outputs]
        pointers = [(ctypes.c_void_p * len(arrays))(*(x.ctypes.data for x in arrays)) for arrays in (given, filled)]
        weights, work = (ctypes.c_void_p(x.ctypes.data) for x in (self.weights, self._work))
        outputs = [x.transpose(np.argsort(y["order"])) for x, y in zip(filled, self.outputs, strict=True)]
        return [weights, work, *pointers], outputs, given


def load_network(folder: Path | str) -> Network:
    """Load a folder that `compile_network` made on this machine. A library is a program: load only what you trust.

    Raises:
        InputError: a file is missing or damaged; names it.
    """
    folder = Path(folder)
    try:
        metadata = json.loads((folder / METADATA).read_text())
        contents = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{folder / METADATA}: damaged") from error
    library = _load_library(folder / LIBRARY)
    weights = _aligned(len(contents))
    weights[:] = np.frombuffer(contents, np.uint8)
    try:
        check = getattr(library, f"{metadata['name']}_check")
        wrong = check(ctypes.c_void_p(weights.ctypes.data), ctypes.c_ulonglong(len(contents)))
        network = Network(folder, metadata, weights, library)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{folder / METADATA}: damaged, or of another network than {LIBRARY}") from error
    if wrong:
        raise InputError(f"{folder / WEIGHTS}: {WRONG[wrong]}")
    return network


def _load_library(path: Path) -> ctypes.CDLL:
    """Load a copy, under a name of its own: of a name that was loaded before, the system would give the old library."""
    try:
        with tempfile.NamedTemporaryFile(suffix=".so") as copy:
            shutil.copyfile(path, copy.name)
            return ctypes.CDLL(copy.name)
    except OSError as error:
        raise InputError(f"{path}: no library for this machine: build it with cmake, or compile again") from error


def _aligned(size: int) -> np.ndarray:
    """Return zeros, bytes, that begin at a multiple of ALIGNMENT."""
    space = np.zeros(size + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    return space[start : start + size]
