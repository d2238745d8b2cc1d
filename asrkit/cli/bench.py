"""`asrkit bench`: compare how fast engines run models here.

Usage:
    asrkit bench --model exp/dense exp/pruned --json exp/bench.json
    asrkit bench --model exp/asr --engines c onnxruntime
"""

import sys
import tempfile
from json import dump
from pathlib import Path
from typing import Any, Literal

import torch

from asrkit.cli.main import command_line, run
from asrkit.cli.subject import load_subject
from asrkit.compress.engines import ENGINES, Ready, difference, seconds_by_turns
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.progress import progress
from asrkit.scoring.provenance import git_version, machine

Contestant = tuple[Path, str]  # a model and an engine


def bench(
    *,
    model: list[Path],
    engines: list[Literal["c", "onnxruntime", "executorch", "torch"]] = tuple(ENGINES),  # type: ignore[assignment]
    json: Path | None = None,
) -> None:
    """Print how long an image, or a chunk of speech through the encoder, takes in each engine.

    "c" is what `asrkit export --format c` makes, which does nothing for weights that are zero; the others are dense.
    All compute the same in float32 on one thread, image classifiers without filters of zeros. They take turns; a time
    is processor time, of which a sixth of the turns stay below. Engines that are not installed are left out.

    Args:
        model: experiment directories of image classifiers or recognisers.
        engines: which ones.
        json: file for the figures.
    """
    torch.set_num_threads(1)
    subjects = {folder: load_subject(folder) for folder in model}
    ready: dict[Contestant, Ready] = {}
    errors: dict[Contestant, float] = {}
    with tempfile.TemporaryDirectory() as place:
        models = progress(subjects.items(), "making ready", len(subjects), "model")
        for number, (folder, subject) in enumerate(models):
            network = subject.smallest
            for engine in engines:
                files = Path(place, f"{engine}-{number}")
                files.mkdir()
                try:
                    found = ENGINES[engine](network, subject.inputs, files, subject.states)
                except InputError as error:
                    print(f"{folder}: not in {engine}: {error}", file=sys.stderr)
                    continue
                ready[folder, engine], errors[folder, engine] = found, difference(network, subject.inputs, found)
    if not ready:
        raise InputError("no engine runs any of the models")
    times = seconds_by_turns({contestant: found.bound for contestant, found in ready.items()})
    rows = [_row(*contestant, seconds, errors[contestant]) for contestant, seconds in times.items()]
    _print(rows)
    if json is not None:
        provenance = {"command": command_line(), "git": git_version(Path(__file__).parent), "machine": machine()}
        with atomic_write(json) as file:
            dump({**provenance, "rows": rows}, file, indent=1)
            file.write("\n")


def _row(folder: Path, engine: str, seconds: float, error: float) -> dict[str, Any]:
    return {"model": str(folder), "engine": engine, "milliseconds": 1e3 * seconds, "difference": error}


def _print(rows: list[dict[str, Any]]) -> None:
    """Print a line for each row, with its speed as a multiple of that of the first model's fastest dense engine."""
    first = [row for row in rows if row["model"] == rows[0]["model"]]
    base = min(row["milliseconds"] for row in [row for row in first if row["engine"] != "c"] or first)
    width = max(len(row["model"]) for row in rows)
    print(f"{'model':<{width}}  {'engine':<11}  {'ms':>9}  {'speed':>6}  difference from torch")
    for row in rows:
        figures = f"{row['milliseconds']:9.3f}  {base / row['milliseconds']:6.2f}  {row['difference']:.0e}"
        print(f"{row['model']:<{width}}  {row['engine']:<11}  {figures}")


def main(argv: list[str]) -> None:
    run(bench, argv)
