"""What the benchmarks share: fair timing, peak memory, comparison of results, one table and one record.

A benchmark does a work by several contestants from the same inputs, ours first, one peer after another:

    work = "sum of squares, N=1000"
    contestants = {"asrkit": lambda: [ours(x)], "peer": lambda: [theirs(x)]}
    rows = duel(work, contestants, tolerance=1e-5, seconds=2.0)
    report("sums.py", rows, options)
"""

import argparse
import ctypes
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from asrkit.files import atomic_write
from asrkit.scoring.provenance import git_version, machine

DIFFERS = "DIFFERS by"
MIB = 2**20
MOST_ROUNDS = 20
RESET_PEAK = Path("/proc/self/clear_refs")  # Linux; proc(5)

Contestants = dict[str, Callable[[], Sequence[Tensor]]]


@dataclass(frozen=True)
class Row:
    """One work, done by us and by a peer."""

    work: str
    peer: str
    ours: float
    theirs: float
    unit: str
    result: str
    """How theirs compares with ours."""
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """Above 1: ours is better."""
        better, worse = (self.ours, self.theirs) if self.more_is_better else (self.theirs, self.ours)
        return better / worse if worse else float("inf")

    def record(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["more_is_better"]
        return {**fields, "ratio": self.ratio}


# Peers that were asked for: versions of those that import, and why the others do not.
present: dict[str, str] = {}
absent: dict[str, str] = {}


def load_peers(*names: str) -> dict[str, ModuleType]:
    """Return the modules that import; the others are reported as absent."""
    modules = {}
    for name in names:
        try:
            modules[name] = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # some look for libraries, or for their torch, at import
            absent[name] = str(error).strip().splitlines()[0]
        else:
            present[name] = getattr(modules[name], "__version__", None) or _installed(name)
    return modules


def options(description: str) -> argparse.ArgumentParser:
    """Return the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs and agrees")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, commit and rows")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table with machine and commit")
    return parser


def duel(
    work: str,
    contestants: Contestants,
    tolerance: float,
    seconds: float,
    device: str = "cpu",
    comparable: Contestants | None = None,
) -> list[Row]:
    """Compare results, then time, then memory of the first contestant with each of the others.

    Args:
        contestants: name -> function that returns tensors, the same ones of all.
        tolerance: largest difference of a tensor, relative to its largest element, that still counts as equal.
        seconds: computing time for each contestant.
        comparable: peer -> what to compare its results with, if ours may rightly choose otherwise than it does.
    """
    print(work, "...", file=sys.stderr, flush=True)
    (us, ours), *others = contestants.items()
    results = {}
    for name, function in others:
        expected = (comparable or {}).get(name, ours)()
        results[name] = comparison(expected, function(), tolerance)
        del expected
    times = interleaved(contestants, seconds, device)
    memory = {name: peak_memory(function, device) for name, function in contestants.items()}
    units = {"ms" if device == "cuda" else "CPU ms": times, "MiB over the inputs": memory}
    return [
        Row(work, name, values[us], values[name], unit, result)
        for name, result in results.items()
        for unit, values in units.items()
        if values[name] is not None
    ]


def interleaved(functions: dict[str, Callable[[], Any]], seconds: float, device: str = "cpu") -> dict[str, float]:
    """Return the least time of each function in milliseconds.

    The functions take turns, so that a slow moment of the machine strikes all of them; each has at least two turns and
    no more than `seconds` or MOST_ROUNDS of them.
    """
    best = dict.fromkeys(functions, float("inf"))
    spent = dict.fromkeys(functions, 0.0)
    for turn in range(MOST_ROUNDS):
        for name, function in functions.items():
            if turn < 2 or spent[name] < 1000 * seconds:
                elapsed = milliseconds(function, device)
                best[name] = min(best[name], elapsed)
                spent[name] += elapsed
    return best


def milliseconds(function: Callable[[], Any], device: str = "cpu") -> float:
    """Return the time of one call: of the process's threads on a CPU, between events on a GPU."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)


def peak_memory(function: Callable[[], Any], device: str = "cpu") -> float | None:
    """Return by how many MiB the memory rises at most during a call, results included; None where it cannot be read.

    On a CPU this is the peak of the resident set of a process forked for the purpose, in its second call. So it counts
    whatever allocates, torch or not; the inputs and the code are there before.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    if not RESET_PEAK.exists():
        return None
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(function, send))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        return None  # its traceback has been shown
    finally:
        process.join()


def _send_peak(function: Callable[[], Any], send: Any) -> None:
    # Free memory that malloc keeps would hide what the function asks for, so: return it now and whenever it is freed.
    libc = ctypes.CDLL(None)
    glibc = hasattr(libc, "malloc_trim")
    if glibc:
        libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD
    function()
    gc.collect()
    if glibc:
        libc.malloc_trim(0)
    before = _resident("VmRSS")
    RESET_PEAK.write_text("5", encoding="ascii")
    function()
    send.send((_resident("VmHWM") - before) / MIB)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def comparison(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> str:
    """Return "equal to" or "DIFFERS by" the largest difference."""
    difference = max(relative_difference(x, y) for x, y in zip(expected, found, strict=True))
    return f"{'equal to' if difference <= tolerance else DIFFERS} {difference:.0e}"


def relative_difference(x: Tensor, y: Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest element of the first."""
    return float((x - y).abs().max() / x.abs().max().clamp(min=1e-30))


def report(name: str, rows: Sequence[Row], arguments: argparse.Namespace, notes: Sequence[str] = ()) -> None:
    """Print the table and the lines of `notes`, and write the files that the options ask for.

    Raises:
        SystemExit: results differ.
    """
    provenance = {"machine": machine(), "git": git_version(Path(__file__).parent), "peers": present, "absent": absent}
    lines = [f"{name} at {provenance['git']} on {provenance['machine']}", ""]
    if present:
        lines += ["Peers: " + ", ".join(f"{peer} {number}" for peer, number in present.items()), ""]
    if absent:
        reasons = ", ".join(f"{peer} ({why})" for peer, why in absent.items())
        lines += [f"Absent; tools/bench/README.md tells what brings them: {reasons}", ""]
    lines += table(rows)
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    publish(lines, {**provenance, "rows": [row.record() for row in rows], "notes": list(notes)}, arguments)
    if any(row.result.startswith(DIFFERS) for row in rows):
        raise SystemExit(f"{name}: results differ")


def publish(lines: Sequence[str], record: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print lines, and write them and a record to the files that the options ask for."""
    print(*lines, sep="\n")
    if arguments.markdown:
        with atomic_write(arguments.markdown) as file:
            print(*lines, sep="\n", file=file)
    if arguments.json:
        with atomic_write(arguments.json) as file:
            json.dump(record, file, indent=1)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [["work", "peer", "ours", "theirs", "unit", "ratio", "results"]]
    for row in rows:
        figures = [f"{row.ours:.4g}", f"{row.theirs:.4g}", row.unit, f"{row.ratio:.2f}"]
        lines.append([row.work, row.peer, *figures, row.result])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for above, line in reversed(list(itertools.pairwise(lines))):
        if line[0] == above[0]:
            line[0] = ""
    return ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown version"


def one_thread() -> None:
    """Compute on one thread from here on: process time is then what a core needs, and a forked process can go on.

    Floats too small for their full precision become zero. Gradients of improbable nodes are full of them, and a
    processor is so slow with them that a peer's matrix products took up to four times as long.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    os.environ["NUMBA_NUM_THREADS"] = "1"  # read by its first import
