"""What `asrkit export` does with an image classifier: a file, or C, and the proof that it sees what the model sees."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit.cli.main import command_line
from asrkit.cli.subject import Subject
from asrkit.compress.codegen import Target, compile_network, runs_here
from asrkit.compress.codegen.runtime import LIBRARY, WEIGHTS
from asrkit.compress.engines import (
    Ready,
    count_weights,
    difference,
    in_executorch,
    in_onnxruntime,
    in_torch,
    load_c,
    seconds_by_turns,
)
from asrkit.compress.vision.images import ImageLoader, read_images
from asrkit.errors import InputError
from asrkit.export.check import MODEL
from asrkit.files import atomic_write, written_folder
from asrkit.progress import progress
from asrkit.scoring.provenance import machine

FILES = {"c": (WEIGHTS, LIBRARY), "onnx": ("model.onnx",), "executorch": ("model.pte",)}
TOLERANCE = 1e-3  # largest accepted difference from the model, relative to the largest output if that is above 1
MOST_MOVED = 0.1  # points of accuracy by which a blessed export may differ from its model, up or down


def export_classifier(
    subject: Subject, out: Path, format: str, target: Target, images_dir: Path | None, force: bool
) -> None:
    """Write a classifier in a format, without filters of zeros, and export.json.

    Raises:
        InputError: the images are not there; the classifier cannot be exported, or classifies otherwise.
    """
    images = subject.config.images
    data = ImageLoader(read_images(images, "test", images_dir), images)
    network = subject.smallest
    weights = {"of the model": count_weights(subject.network), "exported": count_weights(network)}
    report: dict[str, Any] = {"command": command_line(), "machine": machine(), "format": format, "blessed": False}
    with written_folder(out) as folder:
        ready = _write(network, subject.inputs, folder, format, target)
        sizes = {name: (folder / name).stat().st_size for name in FILES[format] if (folder / name).exists()}
        report |= {"target": target.name, "weights": weights, "bytes": sizes}
        problem = f"nothing here runs what is made for {target.name}"
        if ready:
            report["differences"] = {"random": difference(network, subject.inputs, ready)}
            if not report["differences"]["random"] <= TOLERANCE:
                raise InputError(f"{out}: differs from the model by {report['differences']['random']:.2g}: not written")
            torch.set_num_threads(1)
            eager = in_torch(subject.network, subject.inputs, folder)
            report["seconds"] = seconds_by_turns({MODEL: eager.bound, format: ready.bound})
            report["check"] = check = _classify({MODEL: eager.call, format: ready.call}, data)
            print(f"{check['images']} test images: {check['same']} are classified the same")
            for name, seconds in report["seconds"].items():
                print(f"  {name:<11} accuracy {100 * check[name]:.2f}%, {1e3 * seconds:.3f} ms an image")
            problem = _problem(check["moved"])
            report["blessed"] = problem is None
            if problem and not force:
                raise InputError(f"{out}: not written: {problem}; accept it with --force")
        verdict = write_report(report, problem, folder)
    print(f"{out}: {verdict}")


def write_report(report: dict[str, Any], problem: str | None, folder: Path) -> str:
    """Write export.json, and return its essence in words; `problem` is why an export is not blessed."""
    with atomic_write(folder / "export.json") as file:
        json.dump(report, file, indent=2)
        file.write("\n")
    verdict = "blessed" if report["blessed"] else f"not blessed: {problem}"
    return f"{sum(report['bytes'].values()) / 1e6:.1f} MB, {verdict}"


def _write(
    network: torch.nn.Module, inputs: tuple[Tensor, ...], folder: Path, format: str, target: Target
) -> Ready | None:
    """Write the files of a format, and load them if they run here."""
    if format == "c":
        compile_network(network, inputs, folder, target)
        return load_c(folder, inputs) if runs_here(target) else None
    return {"onnx": in_onnxruntime, "executorch": in_executorch}[format](network, inputs, folder)


def _problem(moved: float) -> str | None:
    """Return what is wrong with an export whose accuracy moves by so many points, or None."""
    if abs(round(moved, 2)) <= MOST_MOVED:
        return None
    return f"its accuracy moves by {moved:+.2f} points, more than {MOST_MOVED}"


def _classify(contestants: dict[str, Callable[..., list[Tensor]]], data: ImageLoader) -> dict[str, Any]:
    """Return the accuracy of the model and of its export, image by image, and how many images they agree on."""
    found: dict[str, list[int]] = {name: [] for name in contestants}
    labels: list[int] = []
    for batch in progress(data.epoch(0), "test images", unit="batch"):
        labels += batch.labels.tolist()
        for name, call in contestants.items():
            found[name] += [int(call(image)[0].argmax()) for image in batch.images.split(1)]
    right = {name: sum(map(int.__eq__, classes, labels)) / len(labels) for name, classes in found.items()}
    (model, export), (before, after) = found.values(), right.values()
    same = sum(map(int.__eq__, model, export))
    return {"images": len(labels), "same": same, "moved": 100 * (after - before), **right}
