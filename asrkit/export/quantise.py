"""8-bit ONNX files: a third of the size, and faster on processors with 8-bit products.

The products with the weights of linear layers become products of 8-bit integers: weights with a scale for each output,
activations with one scale for all. That scale comes from the data themselves while it runs (dynamic), or from speech
heard before (static), and then is the same whatever else is in the batch.
"""

import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asrkit.data.features import SILENCE
from asrkit.errors import InputError
from asrkit.export.onnx import Chunk, StreamingEncoder, label_contexts, session
from asrkit.models.transducer import Transducer
from asrkit.optional import needed

QUANTISED = ("encoder.onnx", "joiner.onnx")  # the decoder is an embedding and little else
# The noise of this one goes into the logits undiminished: a third of that of the whole encoder, for a hundredth of it.
ALWAYS_FLOAT = ("joiner.project_encoder",)
OPERATORS = ["MatMul", "Gemm"]  # the convolutions are small, and no faster in 8 bits
PERCENTILE = 99.99  # of the activations: on the dev sets of egs/mini and egs/fsdd it changes fewer words than extremes
PIECE = 200  # feature frames that an encoder of whole utterances hears at once
MOST_FRAMES = 12000  # feature frames, two minutes: all activations of them are held in memory
JOINED = 256  # encoder frames by which the joiner is calibrated

Feed = dict[str, np.ndarray]  # the inputs of one call of a file


def quantise_files(
    model: Transducer, files: Mapping[str, bytes], keep_float: Collection[str], calibration: Sequence[Tensor] | None
) -> dict[str, bytes]:
    """Return ONNX files of a model with 8-bit products, and the others as they are.

    Args:
        model: the model that they were made from.
        files: by name, as `asrkit.export.onnx.convert` makes them.
        keep_float: layers to leave as they are, by their names in the model: whole ones, or of what holds them.
        calibration: features (T, F) that fix the scales of the activations; without them they stay dynamic.

    Raises:
        InputError: `keep_float` names nothing that would be quantised.
    """
    layers = {name: linear_layers(model, files[name]) for name in QUANTISED}
    for kept in keep_float:
        if not any(_within(layer, [kept]) for nodes in layers.values() for layer in nodes):
            raise InputError(
                f"--keep-float {kept}: no such layer; those of the encoder are {', '.join(layers['encoder.onnx'])}"
            )
    feeds = None if calibration is None else recorded_feeds(model, files, calibration)
    kept = [*ALWAYS_FLOAT, *keep_float]
    quantised = {
        name: quantise(
            files[name],
            [node for layer, node in nodes.items() if not _within(layer, kept)],
            None if feeds is None else feeds[name],
        )
        for name, nodes in layers.items()
    }
    return {**files, **quantised}


def quantise(contents: bytes, nodes: Sequence[str], calibration: Sequence[Feed] | None = None) -> bytes:
    """Return an ONNX file in which some nodes, by name, are products of 8 bits; static with `calibration`."""
    if not nodes:
        return contents
    quantization = needed("onnxruntime.quantization", "export")
    options: dict[str, Any] = {
        "op_types_to_quantize": OPERATORS,
        "per_channel": True,
        "nodes_to_quantize": [*nodes, *(f"{node}_MatMul" for node in nodes)],  # what a Gemm is called once taken apart
    }
    with tempfile.TemporaryDirectory() as folder, _quiet():  # the library knows files only
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(contents)
        if calibration is None:
            quantization.quantize_dynamic(source, target, **options)
        else:

            class Reader(quantization.CalibrationDataReader):
                feeds = iter(calibration)

                def get_next(self) -> Feed | None:
                    return next(self.feeds, None)

            extra = {
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": OPERATORS,  # to round results as well would gain nothing
                "CalibPercentile": PERCENTILE,
                "CalibTensorRangeSymmetric": False,
            }
            method = quantization.CalibrationMethod.Percentile
            quantization.quantize_static(
                source, target, Reader(), **options, calibrate_method=method, extra_options=extra
            )
        return target.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the library prints, and its advice to optimise the graph first, which renames the nodes."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def linear_layers(model: Transducer, contents: bytes) -> dict[str, str]:
    """Return layer -> node of an ONNX file for the linear layers of a model, which are known by their weights."""
    onnx = needed("onnx", "export")
    graph = onnx.load_from_string(contents).graph
    names = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach().numpy()
            names[weight.tobytes()] = names[weight.T.tobytes()] = name
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}
    products = [(node.name, weights.get(node.input[1])) for node in graph.node if node.op_type in OPERATORS]
    return {names[weight]: node for node, weight in products if weight in names}


@torch.inference_mode()
def recorded_feeds(model: Transducer, files: Mapping[str, bytes], features: Sequence[Tensor]) -> dict[str, list[Feed]]:
    """Return what goes into each of QUANTISED while the files hear the first minutes of utterances, features (T, F).

    They are heard in one go, in pieces of one size: the library wants it so.
    """
    encode, decode = session(files["encoder.onnx"]), session(files["decoder.onnx"])
    chunk = Chunk.of(files["encoder.onnx"])
    size, shift = (chunk.frames, chunk.shift) if chunk else (PIECE, PIECE)
    states = StreamingEncoder(model, chunk).pack(model.encoder.start(1)) if chunk else []
    speech = torch.cat(list(features))[:MOST_FRAMES]
    speech = nn.functional.pad(speech, (0, 0, 0, max(0, size - len(speech))), value=SILENCE)
    calls, frames = [], []
    for start in range(0, len(speech) - size + 1, shift):
        piece = speech[None, start : start + size]
        calls.append((piece, *states) if chunk else (piece, torch.tensor([size])))
        out, *after = encode(*calls[-1])
        states = after if chunk else []
        frames.append(out[0])
    frames = torch.cat(frames)[:JOINED]  # (M, J)
    (labels,) = decode(label_contexts(model.config.vocab_size, model.config.predictor.context))  # (V + 1, J)
    pairs = [(frame[None], labels[i % len(labels)][None]) for i, frame in enumerate(frames)]
    return {name: _feeds(files[name], inputs) for name, inputs in zip(QUANTISED, (calls, pairs), strict=True)}


def layer_losses(
    model: Transducer,
    files: Mapping[str, bytes],
    keep_float: Collection[str],
    features: Sequence[Tensor],
    calibrated: bool,
) -> dict[str, float]:
    """Return how far each quantised layer alone moves what its file computes, worst first.

    That is the ratio of signal to error at the output in dB: with every other layer left as it is, hearing the
    utterances of `features` (T, F), by which static scales are fixed as well.
    """
    feeds = recorded_feeds(model, files, features)
    losses = {}
    for name in QUANTISED:
        expected = _outputs(files[name], feeds[name])
        for layer, node in linear_layers(model, files[name]).items():
            if not _within(layer, [*ALWAYS_FLOAT, *keep_float]):
                found = _outputs(quantise(files[name], [node], feeds[name] if calibrated else None), feeds[name])
                losses[layer] = float(10 * np.log10(np.var(expected) / np.mean((found - expected) ** 2)))
    return dict(sorted(losses.items(), key=lambda item: item[1]))


def _outputs(contents: bytes, feeds: Sequence[Feed]) -> np.ndarray:
    """Return all numbers of the first output of a file, for one feed after the other."""
    run = session(contents)
    return np.concatenate([run(*map(torch.from_numpy, feed.values()))[0].numpy().ravel() for feed in feeds])


def _feeds(contents: bytes, calls: Sequence[Sequence[Tensor]]) -> list[Feed]:
    names = [entry.name for entry in needed("onnx", "export").load_from_string(contents).graph.input]
    return [{name: x.numpy() for name, x in zip(names, call, strict=True)} for call in calls]


def _within(layer: str, names: Collection[str]) -> bool:
    """Whether a layer is one of those named, or part of one."""
    return any(f"{layer}.".startswith(f"{name}.") for name in names)
