"""A streaming transducer as three ExecuTorch programs, for phones and boards that run PyTorch's own small runtime."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.export import programs as common
from asrkit.export.onnx import Chunk
from asrkit.models.transducer import Transducer
from asrkit.optional import needed
from asrkit.search.recogniser import Recogniser

PROGRAMS = ("encoder.pte", "decoder.pte", "joiner.pte")

README = (
    """\
# A streaming transducer for ExecuTorch

| program | inputs | outputs |
|---|---|---|
| encoder.pte | features (1, {chunk}, {bins}), frames (1,) how many of them there are, state | \
encoder_out (1, {frames}, {joint}), state |
| decoder.pte | last label (1, 1), state | decoder_out (1, {joint}), state |
| joiner.pte | encoder_out (1, {joint}), decoder_out (1, {joint}) | logits (1, {vocab}) |

All are float32, but labels and counts, which are int64. `model.json` has the shapes of the states, which are zeros at
the start, and how features are computed. `tokens.txt` has lines `symbol id`; 0 is the blank, which decoder.pte also
takes for the start of a sentence.

"""
    + common.CHUNKS
    + """
The same runs in Kotlin, Swift and C++; in Python, with `pip install executorch kaldi-native-fbank soundfile`:

```python
{usage}
```
"""
)
USAGE = (
    """\
import json
import sys

import kaldi_native_fbank
import soundfile
import torch
from executorch.runtime import Runtime

model = json.load(open("model.json"))
symbols = [line.split(" ")[0] for line in open("tokens.txt", encoding="utf-8")]
programs = [Runtime.get().load_program(name + ".pte") for name in ("encoder", "decoder", "joiner")]
encoder, decoder, joiner = (program.load_method("forward") for program in programs)  # these need the programs

"""
    + common.FEATURES
    + """
features = torch.stack([torch.tensor(fbank.get_frame(i)) for i in range(fbank.num_frames_ready)])

label, labels = 0, []
encoder_state, decoder_state = (
    [torch.zeros(state["shape"], dtype=getattr(torch, state["dtype"])) for state in model[part + "_state"]]
    for part in ("encoder", "decoder")
)
decoder_out, *decoder_state = decoder.execute([torch.tensor([[label]]), *decoder_state])
for start in range(0, len(features), model["shift"]):
    chunk = features[start : start + model["chunk"]]
    last = start + model["chunk"] >= len(features)
    padded = torch.nn.functional.pad(chunk, (0, 0, 0, model["chunk"] - len(chunk)))[None]
    encoder_out, *encoder_state = encoder.execute([padded, torch.tensor([len(chunk)]), *encoder_state])
    for frame in encoder_out[0, : -(-len(chunk) // model["subsampling"]) if last else model["final"]]:
        (logits,) = joiner.execute([frame[None], decoder_out])
        label = int(logits.argmax())
        if label != 0:
            labels.append(label)
            decoder_out, *decoder_state = decoder.execute([torch.tensor([[label]]), *decoder_state])
    if last:
        break
print("".join(symbols[label] for label in labels).replace("\\u2581", " ").strip())"""
)


def export_executorch(recogniser: Recogniser, folder: Path, chunk: Chunk) -> dict[str, float]:
    """Write encoder.pte, decoder.pte, joiner.pte, model.json, tokens.txt and README.md.

    What the programs compute is compared with the model before they are written.

    Returns:
        `differences` on random features.

    Raises:
        InputError: executorch is not installed; a program does not compute what the model does, or cannot be written.
    """
    programs = convert(recogniser.model, chunk)
    found = differences(recogniser.model, programs, chunk)
    common.save_programs(recogniser, chunk, folder, programs, found, README, usage=USAGE)
    return found


def convert(model: Transducer, chunk: Chunk) -> dict[str, bytes]:
    """Return the contents of each of PROGRAMS.

    Raises:
        InputError: executorch is not installed.
    """
    parts = zip(PROGRAMS, common.programs(model, chunk), strict=True)
    return {file: to_program(part.module, *part.inputs) for file, part in parts}


def stand_in(model: Transducer, programs: Mapping[str, bytes]) -> Transducer:
    """Return a model whose streams run on programs: a `Recogniser` of it is one of the programs."""
    methods = [load_method(programs[name]) for name in PROGRAMS]
    frames = methods[0].metadata.input_tensor_meta(0).sizes()[1]
    return common.stand_in(model, frames, *map(_run, methods))


def differences(
    model: Transducer, programs: Mapping[str, bytes], chunk: Chunk, features: Sequence[Tensor] | None = None
) -> dict[str, float]:
    """Return `asrkit.export.programs.differences` for each of PROGRAMS."""
    found = common.differences(model, stand_in(model, programs), chunk, features)
    return dict(zip(PROGRAMS, found, strict=True))


def to_program(module: nn.Module, *inputs: Tensor) -> bytes:
    """Return the program of a module for inputs of these shapes; what XNNPACK cannot compute, portable kernels do.

    Raises:
        InputError: executorch is not installed.
    """
    exir = needed("executorch.exir", "executorch")
    xnnpack = needed("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of its own use of torch
        exported = torch.export.export(module.eval(), inputs)
        lowered = exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)


def load_method(contents: bytes) -> Any:
    """Return what runs a program by `execute(inputs)`.

    Raises:
        InputError: executorch is not installed.
    """
    program = needed("executorch.runtime", "executorch").Runtime.get().load_program(contents)
    method = program.load_method("forward")
    method.program = program  # it uses its memory, but would not keep it
    return method


def _run(method: Any) -> common.Run:
    return lambda *inputs: method.execute(inputs)
