"""What a figure was made with: the commit and the machine."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# Results are written by the very run that they describe, so they do not make its tree dirty.
WRITTEN_BY_RUNS = (":(top,exclude)*RESULTS.md", ":(top,exclude)*/pictures/*")


def git_version(folder: Path) -> str:
    """Return the short hash of the checkout that holds `folder`, `+dirty` after it where files differ from it."""
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown (no git checkout)"
    changes = _git(folder, "status", "--porcelain", "--", ":(top)", *WRITTEN_BY_RUNS)
    return f"{commit}+dirty" if changes else commit


def machine() -> str:
    """Return the processor, its cores that this process may use, and the versions of Python and torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{_processor()}, {cores} core{'s' * (cores != 1)}, Python {python}, torch {version('torch')}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
