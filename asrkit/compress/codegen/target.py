"""What the generated C is made for: vectors, registers, and the compiler that makes a library of it."""

import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asrkit.errors import InputError


@dataclass(frozen=True)
class Target:
    """A kind of processor."""

    name: str
    vector_bytes: int
    tiles: Mapping[int, int]
    """Filters that share their inputs -> most vectors of pixels of each that fit into the registers."""
    flags: tuple[str, ...]
    compilers: tuple[str, ...]
    """The first one found is taken."""

    @property
    def lanes(self) -> int:
        """Floats in a vector."""
        return self.vector_bytes // 4


X86_COMPILERS = ("cc", "gcc", "clang")
TARGETS = {
    target.name: target
    for target in (
        Target("avx512", 64, {16: 1, 12: 2, 8: 3, 4: 6, 3: 8, 2: 8, 1: 12}, ("-march=x86-64-v4",), X86_COMPILERS),
        Target("avx2", 32, {8: 1, 4: 3, 3: 3, 2: 5, 1: 8}, ("-march=x86-64-v3",), X86_COMPILERS),
        Target("neon", 16, {8: 2, 4: 5, 3: 6, 2: 8, 1: 12}, ("-march=armv8-a",), ("aarch64-linux-gnu-gcc",)),
        Target("portable", 16, {4: 2, 3: 2, 2: 4, 1: 6}, (), ("cc", "gcc", "clang")),
    )
}
RUN_ON = {"avx512": ("avx512", "avx2", "portable"), "avx2": ("avx2", "portable"), "neon": ("neon", "portable")}
# No library: not for square roots either.
FREESTANDING = ("-ffreestanding", "-fno-math-errno", "-ffp-contract=fast")
BASE_FLAGS = ("-std=c11", "-O3", *FREESTANDING)


def native_target() -> Target:
    """Return the best target for this machine."""
    if platform.machine() in ("aarch64", "arm64"):
        neon = TARGETS["neon"]
        return Target(neon.name, neon.vector_bytes, neon.tiles, neon.flags, X86_COMPILERS)
    flags = _processor_flags()
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        return TARGETS["avx512"]
    return TARGETS["avx2" if {"avx2", "fma"} <= flags else "portable"]


def runs_here(target: Target) -> bool:
    """Return whether this machine runs what is made for a target."""
    native = native_target().name
    return target.name in RUN_ON.get(native, (native,))


def _processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())


def find_compiler(target: Target) -> str:
    """Return the path of the C compiler for a target.

    Raises:
        InputError: there is none.
    """
    for name in target.compilers:
        if path := shutil.which(name):
            return path
    names = " or ".join(target.compilers)
    raise InputError(f"no C compiler for target '{target.name}': install {names} (tools/install_aarch64.sh for neon)")


def compile_library(source: Path, library: Path, target: Target, more: tuple[str, ...] = ()) -> None:
    """Make a shared library of one C file, which needs nothing else.

    Raises:
        InputError: there is no compiler, or it fails.
    """
    command = [find_compiler(target), *BASE_FLAGS, *target.flags, *more, "-shared", "-fPIC", "-nostdlib"]
    run_compiler([*command, "-o", str(library), str(source)])


def run_compiler(command: list[str]) -> None:
    """Run a compiler. Raises InputError with its first complaint if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise InputError(f"{command[0]} failed: {lines[0] if lines else 'status ' + str(result.returncode)}")
