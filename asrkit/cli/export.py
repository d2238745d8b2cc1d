"""`asrkit export`: make a trained model into files that run elsewhere, and see that they say what it says.

Usage:
    asrkit export --model exp/asr --out exp/asr/onnx --check data/mini/dev.jsonl.gz
    asrkit export --model exp/asr --out exp/asr/onnx-streaming --streaming
    asrkit export --model exp/asr --format onnx-int8 --out exp/asr/int8 --check data/mini/dev.jsonl.gz
    asrkit export --model exp/asr --format onnx-int8 --calibrate data/mini/train.jsonl.gz --out exp/asr/static
    asrkit export --model exp/asr --format executorch --out exp/asr/executorch --check data/mini/dev.jsonl.gz
    asrkit export --model exp/asr --format c --target neon --out exp/asr/neon
    asrkit export --model exp/digits --format c --out exp/digits/c
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from asrkit.cli.export_images import export_classifier, write_report
from asrkit.cli.main import command_line, run
from asrkit.cli.score import read_references
from asrkit.cli.subject import load_subject
from asrkit.cli.vision import VisionExperiment
from asrkit.compress.codegen import TARGETS, Target, native_target, runs_here
from asrkit.compress.codegen.runtime import LIBRARY, WEIGHTS
from asrkit.compress.export import NETWORKS, export_c, network_seconds
from asrkit.compress.export import differences as c_differences
from asrkit.compress.export import stand_in as c_stand_in
from asrkit.data.audio import read_cut
from asrkit.data.features import FRAME_SHIFT
from asrkit.data.manifests import load_cuts
from asrkit.errors import InputError
from asrkit.export.check import MODEL, MOST_MOVED, Transcribe, Utterance, compare, transcriber
from asrkit.export.executorch import PROGRAMS, export_executorch, stand_in
from asrkit.export.executorch import differences as executorch_differences
from asrkit.export.onnx import FILES, Chunk, export_onnx
from asrkit.export.onnx import differences as onnx_differences
from asrkit.export.quantise import layer_losses, quantise_files
from asrkit.export.sherpa import sherpa
from asrkit.files import written_folder
from asrkit.models.transducer import Transducer
from asrkit.optional import needed
from asrkit.progress import progress
from asrkit.scoring.provenance import machine
from asrkit.search.recogniser import Recogniser
from asrkit.text.tokenizer import load_tokenizer

BATCH = 16  # utterances that are decoded together
BEAMS = (1, 4)
CALIBRATION = 64  # utterances that fix static scales, or show what layers lose
WORST = 5  # layers that are named


def export(
    *,
    model: Path,
    out: Path,
    format: Literal["onnx", "onnx-int8", "executorch", "c"] = "onnx",
    target: Literal["avx512", "avx2", "neon", "portable"] | None = None,
    streaming: bool = False,
    chunk_size: int | None = None,
    lookahead: int | None = None,
    calibrate: Path | None = None,
    keep_float: list[str] | None = None,
    check: list[Path] = (),  # type: ignore[assignment]
    images_dir: Path | None = None,
    force: bool = False,
) -> None:
    """Write the encoder, decoder and joiner of a recogniser, tokens.txt, README.md and export.json.

    Each float file is compared with the model, on random features, before it is written. With --check real speech is
    transcribed by both, and an export whose WER is not that of the model, greedily on each manifest, is not written.
    An image classifier is one file, or one folder with C; its test images are classified by both, and an export whose
    accuracy is not that of the model is not written.

    Args:
        model: experiment directory; its predictor must be stateless, but for ExecuTorch.
        out: the directory to write.
        format: ONNX files for sherpa-onnx, the same with 8-bit products, or streaming programs for ExecuTorch or in C.
        target: processor that C is for; this machine's by default.
        streaming: ONNX files for streams; by default they are for whole utterances.
        chunk_size: encoder frames (40 ms) in a chunk when streaming; the model's own by default.
        lookahead: encoder frames at the end of a chunk that the next one may revise; as `asrkit decode` by default.
        calibrate: manifest with speech that fixes the scales of 8-bit activations, which otherwise follow the data.
        keep_float: layers to leave as they are in an 8-bit export, by their names in the model.
        check: manifests with transcripts, which the model and its export decode on one thread each, greedily and with
            a beam of 4, searched by the rules of what runs the export; error rates and real-time factors go into
            export.json.
        images_dir: folder of the images of a classifier; else $ASRKIT_IMAGES.
        force: write the export whatever the check says.
    """
    if format != "onnx-int8" and (calibrate or keep_float):
        raise InputError(f"--{'calibrate' if calibrate else 'keep-float'}: --format {format} has no 8-bit products")
    if target and format != "c":
        raise InputError(f"--target: --format {format} is for every processor")
    processor = TARGETS[target] if target and target != native_target().name else native_target()
    subject = load_subject(model)
    if isinstance(subject.config, VisionExperiment):
        if streaming or chunk_size or lookahead or check or format == "onnx-int8":
            raise InputError(f"{model}: an image classifier: it takes --format onnx, executorch or c, and no speech")
        return export_classifier(subject, out, format, processor, images_dir, force)
    recogniser = Recogniser(subject.model, subject.config.features, load_tokenizer(model / "lang"))
    chunk = None
    if streaming or format in ("executorch", "c"):
        stream = recogniser.stream(chunk_size=chunk_size, lookahead=lookahead)
        chunk = Chunk(stream.chunk_size, stream.lookahead)
    elif chunk_size or lookahead:
        raise InputError(f"--{'chunk-size' if chunk_size else 'lookahead'}: needs --streaming")
    if recogniser.model.config.topology == "regular" and format.startswith("onnx"):
        print("warning: topology 'regular': sherpa-onnx emits at most one label a frame", file=sys.stderr)
    refs = {manifest: read_references(manifest, [])[0] for manifest in check}  # their faults show before the long work
    if check and format.startswith("onnx"):
        needed("sherpa_onnx", "export")
    if check and not runs_here(processor):
        raise InputError(f"--check: this machine runs nothing that is made for {processor.name}; leave it out")
    exporter = {"executorch": _Executorch, "c": _C}.get(format, _Onnx)(recogniser, chunk, processor)
    report: dict[str, Any] = {"command": command_line(), "machine": machine(), "format": format, "blessed": False}
    with written_folder(out) as folder:
        report["differences"] = {"random": exporter.write(folder)}
        if format == "onnx-int8":
            speech = None if calibrate is None else _features(recogniser, calibrate, CALIBRATION)
            exporter.quantise(folder, keep_float or [], speech)
        report["versions"] = {name: version(name) for name in exporter.packages}
        report["bytes"] = {name: (folder / name).stat().st_size for name in exporter.files if (folder / name).exists()}
        if format == "c":
            report |= {"target": processor.name, "seconds": _alone(folder, chunk) if runs_here(processor) else {}}
        problem = "see --check" if runs_here(processor) else f"nothing here runs what is made for {processor.name}"
        if check:
            torch.set_num_threads(1)
            speech = _features(recogniser, check[0], BATCH)
            problem = _check(exporter, folder, refs, speech, report)
            if problem and format == "onnx-int8":
                report["layers"] = _worst_layers(exporter, keep_float or [], speech, calibrate is not None)
            if problem and not force:
                remedy = "leave layers out with --keep-float, or " if format == "onnx-int8" else ""
                raise InputError(f"{out}: not written: {problem}; {remedy}accept it with --force")
        verdict = write_report(report, problem, folder)
    print(f"{out}: {verdict}")


@dataclass
class _Onnx:
    """Files for sherpa-onnx."""

    recogniser: Recogniser
    chunk: Chunk | None
    target: Target
    name = "sherpa_onnx"
    files = FILES
    packages = ("torch", "onnx", "onnxruntime")
    merge_late = True  # as sherpa-onnx searches

    def write(self, folder: Path) -> dict[str, float]:
        return export_onnx(self.recogniser, folder, self.chunk)

    def quantise(self, folder: Path, keep_float: list[str], speech: list[Tensor] | None) -> None:
        """Put 8-bit files in the place of float ones, which are kept for `layer_losses`."""
        self.float_files = self._read(folder)
        for name, contents in quantise_files(self.recogniser.model, self.float_files, keep_float, speech).items():
            (folder / name).write_bytes(contents)

    def differences(self, folder: Path, speech: list[Tensor]) -> dict[str, float]:
        return onnx_differences(self.recogniser.model, self._read(folder), speech)

    def transcriber(self, folder: Path, beam: int) -> Transcribe:
        return sherpa(folder, self.recogniser.features, self.recogniser.tokenizer, beam).transcribe

    def _read(self, folder: Path) -> dict[str, bytes]:
        return {name: (folder / name).read_bytes() for name in self.files}


class _Executorch(_Onnx):
    """Programs for ExecuTorch, which asrkit searches with itself."""

    name = "executorch"
    files = PROGRAMS
    packages = ("torch", "executorch")
    merge_late = False

    def write(self, folder: Path) -> dict[str, float]:
        return export_executorch(self.recogniser, folder, self.chunk)

    def differences(self, folder: Path, speech: list[Tensor]) -> dict[str, float]:
        return executorch_differences(self.recogniser.model, self._read(folder), self.chunk, speech)

    def transcriber(self, folder: Path, beam: int) -> Transcribe:
        recogniser = Recogniser(self.stand_in(folder), self.recogniser.features, self.recogniser.tokenizer, beam)
        return transcriber(recogniser, self.chunk)

    def stand_in(self, folder: Path) -> Transducer:
        return stand_in(self.recogniser.model, self._read(folder))


class _C(_Executorch):
    """Networks in C, which asrkit searches with itself."""

    name = "c"
    files = tuple(f"{network}/{file}" for network in NETWORKS for file in (WEIGHTS, LIBRARY))
    packages = ("torch",)

    def write(self, folder: Path) -> dict[str, float]:
        return export_c(self.recogniser, folder, self.chunk, self.target)

    def differences(self, folder: Path, speech: list[Tensor]) -> dict[str, float]:
        return c_differences(self.recogniser.model, folder, self.chunk, speech)

    def stand_in(self, folder: Path) -> Transducer:
        return c_stand_in(self.recogniser.model, folder)


def _alone(folder: Path, chunk: Chunk) -> dict[str, float]:
    """Print and return how long networks in C take, without the features and the search."""
    seconds = network_seconds(folder)
    print(f"the encoder alone: {1e3 * seconds['encoder']:.3f} ms for {FRAME_SHIFT * chunk.shift:.2f} s of audio")
    return seconds


def _check(
    exporter: _Onnx, folder: Path, refs: dict[Path, dict[str, str]], speech: list[Tensor], report: dict[str, Any]
) -> str | None:
    """Add to the report how a model and its export transcribe manifests; return what is wrong with the export."""
    report["differences"]["speech"] = exporter.differences(folder, speech)
    checks = [_compare(exporter, folder, manifest, refs[manifest], beam) for manifest, beam in product(refs, BEAMS)]
    problem = _problem(checks)
    report |= {"check": checks, "blessed": problem is None}
    report["moved"] = {beam: _worst(checks, beam)["moved"] for beam in BEAMS}
    report["changed"] = {beam: sum(_changed(c) for c in checks if c["beam"] == beam) for beam in BEAMS}
    return problem


def _compare(exporter: _Onnx, folder: Path, manifest: Path, refs: dict[str, str], beam: int) -> dict[str, Any]:
    """Decode a manifest with the model and its export, and print how they compare."""
    ours = exporter.recogniser
    rate = ours.features.sampling_rate
    model = Recogniser(ours.model, ours.features, ours.tokenizer, beam)
    if beam > 1:
        model.search.merge_late = exporter.merge_late
    contestants = {
        MODEL: transcriber(model, exporter.chunk),
        exporter.name: exporter.transcriber(folder, beam),
    }
    batches = progress(_batches(manifest, rate), f"beam {beam}", -(-len(refs) // BATCH), "batch")
    figures = compare(contestants, batches, refs, rate)
    print(f"{manifest}, beam {beam}: {figures['same']} of {figures['utterances']} hypotheses are the same")
    for name in contestants:
        print(f"  {name:<11} %WER {figures[name]['wer']:.2f}, RTF {figures[name]['real_time_factor']:.4f}")
    return {"manifest": str(manifest), "beam": beam, **figures}


def _changed(check: dict[str, Any]) -> int:
    """Return how many utterances a model and its export transcribe differently."""
    return check["utterances"] - check["same"]


def _worst(checks: list[dict[str, Any]], beam: int) -> dict[str, Any]:
    """Return the check of the manifest on which the WER moves most."""
    return max((check for check in checks if check["beam"] == beam), key=lambda check: abs(check["moved"]))


def _problem(checks: list[dict[str, Any]]) -> str | None:
    """Return what is wrong with an export, or None.

    The greedy search decides, which all do alike: the files are judged by it, not the beam search of who runs them.
    """
    worst = _worst(checks, beam=1)
    if abs(round(worst["moved"], 2)) <= MOST_MOVED:
        return None
    return f"on {worst['manifest']} its WER moves by {worst['moved']:+.2f} points, more than {MOST_MOVED}"


def _worst_layers(exporter: _Onnx, keep_float: list[str], speech: list[Tensor], static: bool) -> dict[str, float]:
    """Print and return the layers that lose most, and the ratio of signal to error that each would leave alone (dB)."""
    losses = layer_losses(exporter.recogniser.model, exporter.float_files, keep_float, speech, static)
    worst = dict(islice(losses.items(), WORST))
    print("layers that lose most, with the ratio of signal to error that each alone leaves:")
    for layer, ratio in worst.items():
        print(f"  {layer:<40} {ratio:5.1f} dB")
    return worst


def _features(recogniser: Recogniser, manifest: Path, most: int) -> list[Tensor]:
    """Return the features of the first utterances of a manifest."""
    cuts = islice(load_cuts(manifest, lazy=True), most)
    return [recogniser.fbank(read_cut(cut, recogniser.features.sampling_rate)) for cut in cuts]


def _batches(manifest: Path, rate: int) -> Iterator[list[Utterance]]:
    cuts = iter(load_cuts(manifest, lazy=True))
    while batch := [(cut.id, read_cut(cut, rate)) for cut in islice(cuts, BATCH)]:
        yield batch


def main(argv: list[str]) -> None:
    run(export, argv)
