"""`asrkit export`: make a trained model into files that run elsewhere.

Usage:
    asrkit export --model exp/asr --format onnx --out exp/asr/onnx
    asrkit export --model exp/asr --format onnx --out exp/asr/onnx --check data/mini/test_seen.jsonl.gz
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from asrkit.cli.main import command_line, run
from asrkit.cli.score import read_references
from asrkit.data.audio import read_cut
from asrkit.data.manifests import load_cuts
from asrkit.export.onnx import FILES, differences, export_onnx, needed
from asrkit.export.sherpa import Utterance, compare
from asrkit.files import atomic_write
from asrkit.progress import progress
from asrkit.scoring.provenance import machine
from asrkit.search.recogniser import Recogniser, load

PACKAGES = ("torch", "onnx", "onnxruntime")
BATCH = 16  # utterances that are decoded together
BEAMS = (1, 4)


def export(*, model: Path, out: Path, format: Literal["onnx"] = "onnx", check: Path | None = None) -> None:
    """Write encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt, README.md and export.json for sherpa-onnx.

    Each ONNX file is compared with the model, on random features, before it is written.

    Args:
        model: experiment directory; its predictor must be stateless.
        out: the directory to write.
        format: kind of files.
        check: manifest with transcripts, which asrkit and sherpa-onnx decode on one thread each, greedily and with a
            beam of 4; error rates and real-time factors go into export.json.
    """
    recogniser = load(model)
    refs = read_references(check, [])[0] if check else {}  # what is wrong with it should show before the long work
    if check:
        needed("sherpa_onnx")
    report: dict[str, Any] = {"command": command_line(), "machine": machine()}
    report["differences"] = {"random": export_onnx(recogniser, out)}
    report["versions"] = {name: version(name) for name in PACKAGES}
    report["bytes"] = {name: (out / name).stat().st_size for name in FILES}
    if recogniser.model.config.topology == "regular":
        print("warning: topology 'regular': sherpa-onnx emits at most one label a frame", file=sys.stderr)
    if check:
        torch.set_num_threads(1)
        report["versions"]["sherpa-onnx"] = version("sherpa-onnx")
        report["differences"]["speech"] = _speech_differences(recogniser, out, check)
        report["check"] = [_compare(recogniser, out, check, refs, beam) for beam in BEAMS]
    with atomic_write(out / "export.json") as file:
        json.dump(report, file, indent=2)
        file.write("\n")
    print(f"{out}: {sum(report['bytes'].values()) / 1e6:.1f} MB")


def _speech_differences(recogniser: Recogniser, folder: Path, manifest: Path) -> dict[str, float]:
    """Compare the files with the model on the first utterances of a manifest."""
    batch = next(_batches(manifest, recogniser.features.sampling_rate))
    files = {name: (folder / name).read_bytes() for name in FILES}
    return differences(recogniser.model, files, [recogniser.fbank(samples) for _, samples in batch])


def _compare(recogniser: Recogniser, folder: Path, manifest: Path, refs: dict[str, str], beam: int) -> dict[str, Any]:
    """Decode a manifest with asrkit and sherpa-onnx, and print how they compare."""
    batches = progress(
        _batches(manifest, recogniser.features.sampling_rate), f"beam {beam}", -(-len(refs) // BATCH), "batch"
    )
    figures = compare(recogniser, folder, batches, refs, beam)
    print(f"beam {beam}: {figures['same']} of {figures['utterances']} hypotheses are the same")
    for name in ("asrkit", "sherpa_onnx"):
        print(f"  {name:<11} %WER {figures[name]['wer']:.2f}, RTF {figures[name]['real_time_factor']:.4f}")
    return {"manifest": str(manifest), **figures}


def _batches(manifest: Path, rate: int) -> Iterator[list[Utterance]]:
    cuts = iter(load_cuts(manifest, lazy=True))
    while batch := [(cut.id, read_cut(cut, rate)) for cut in islice(cuts, BATCH)]:
        yield batch


def main(argv: list[str]) -> None:
    run(export, argv)
