"""A streaming transducer as three networks in C, which link into one program that needs no library."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from asrkit.compress.codegen import Network, Target, compile_network, load_network, native_target, runs_here
from asrkit.errors import InputError
from asrkit.export import programs as common
from asrkit.export.onnx import Chunk
from asrkit.files import atomic_write
from asrkit.models.transducer import Transducer
from asrkit.search.recogniser import Recogniser

NETWORKS = ("encoder", "decoder", "joiner")
TEMPLATES = Path(__file__).parent / "c"

README = (
    """\
# A streaming transducer in C

| network | inputs | outputs |
|---|---|---|
| encoder | features (1, {chunk}, {bins}), frames (1,) how many of them there are, state | \
encoder_out (1, {frames}, {joint}), state |
| decoder | last label (1, 1), state | decoder_out (1, {joint}), state |
| joiner | encoder_out (1, {joint}), decoder_out (1, {joint}) | logits (1, {vocab}) |

Each is a folder with C, weights and a README of its own, made for {target}; their functions have the names of the
folders, so that all go into one program. Everything is float32, labels and counts as well. The states are zeros at the
start, and what comes out goes into the next call. `tokens.txt` has lines `symbol id`; 0 is the blank, which the decoder
also takes for the start of a sentence. `model.json` says how features are computed.

"""
    + common.CHUNKS
    + """
`stream.c` is a program that does so, from features to text:

```sh
cmake -S . -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build
python features.py a.wav | build/stream .
```

with features by `pip install kaldi-native-fbank numpy soundfile`, whose first package is a library for C++ as well;
this is features.py:

```python
{usage}
```
"""
)
USAGE = f"""\
import json
import sys

import kaldi_native_fbank
import numpy
import soundfile

model = json.load(open("model.json"))
{common.FEATURES}
features = numpy.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
sys.stdout.buffer.write(features.tobytes())"""


def export_c(recogniser: Recogniser, folder: Path, chunk: Chunk, target: Target | None = None) -> dict[str, float]:
    """Write the folders encoder, decoder and joiner, stream.c, CMakeLists.txt, model.json, tokens.txt and README.md.

    What the networks compute is compared with the model before the rest is written, if the target runs here.

    Args:
        recogniser: what to write; its search does not matter.
        folder: where.
        chunk: that of the streams.
        target: this machine by default.

    Returns:
        `differences` on random features; empty if the target does not run here.

    Raises:
        InputError: the predictor is an LSTM; as `compile_network`.
    """
    model, target = recogniser.model, target or native_target()
    if (kind := model.config.predictor.kind) != "stateless":
        raise InputError(
            f"predictor.kind '{kind}': --format c has stateless predictors only; "
            "train with --model.predictor.kind stateless"
        )
    parts = common.programs(model, chunk)
    for part in parts:
        compile_network(part.module, part.inputs, folder / part.name, target, part.states, part.name)
    found = differences(model, folder, chunk) if runs_here(target) else {}
    common.save_programs(recogniser, chunk, folder, {}, found, README, target=target.name, usage=USAGE)
    encoder, decoder, _ = parts
    values = {
        "bins": model.config.num_mel_bins,
        "chunk": chunk.frames,
        "shift": chunk.shift,
        "final": chunk.size - chunk.lookahead,
        "frames": chunk.size,
        "subsampling": chunk.frames // chunk.size,
        "joint": model.config.joiner_dim,
        "vocab": model.config.vocab_size,
        "encoder_state": _sizes(encoder),
        "decoder_state": _sizes(decoder),
    }
    for template in TEMPLATES.iterdir():
        text = template.read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        with atomic_write(folder / template.name) as file:
            file.write(text)
    return found


def _sizes(part: common.Program) -> str:
    return ", ".join(str(part.inputs[i].numel()) for i, _ in part.states)


def stand_in(model: Transducer, folder: Path) -> Transducer:
    """Return a model whose streams run on networks in C: a `Recogniser` of it is one of the networks.

    Raises:
        InputError: the folder was not made for this machine, or is damaged.
    """
    networks = [load_network(folder / name) for name in NETWORKS]
    return common.stand_in(model, networks[0].inputs[0]["shape"][1], *map(_run, networks))


def use_encoder(recogniser: Recogniser, folder: Path) -> None:
    """Let the streams of a recogniser go through the encoder in C that `export_c` made of its model.

    From then on they have the chunk of the export, and nothing else than streams can be recognised. The encoder takes
    one stream after the other.

    Raises:
        InputError: the folder was not made of this model or not for this machine, or is damaged.
    """
    chunk, network = _chunk(folder / common.METADATA), load_network(folder / NETWORKS[0])
    model = common.with_encoder(recogniser.model, chunk.frames, _run(network))
    if not common.encoder_difference(recogniser.model, model, chunk) <= common.TOLERANCE:
        raise InputError(f"{folder}: was not made of this model; export it again")
    recogniser.model = recogniser.search.model = model
    recogniser.only_chunk = chunk.size, chunk.lookahead


def _chunk(file: Path) -> Chunk:
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        size = metadata["chunk"] // metadata["subsampling"]
        return Chunk(size, size - metadata["final"])
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged") from error


def _run(network: Network) -> common.Run:
    def run(*inputs: Tensor) -> list[Tensor]:
        out, *states = map(torch.from_numpy, network(*inputs))
        # The states come last, as they do in the inputs; whole numbers are floats in C.
        return [out, *(x.to(inputs[i - len(states)].dtype) for i, x in enumerate(states))]

    return run


def network_seconds(folder: Path) -> dict[str, float]:
    """Return the processor time of a run of each network: of a chunk, of a label, and of a frame with a label."""
    return {name: load_network(folder / name).seconds() for name in NETWORKS}


def differences(
    model: Transducer, folder: Path, chunk: Chunk, features: Sequence[Tensor] | None = None
) -> dict[str, float]:
    """Return `asrkit.export.programs.differences` for each of NETWORKS."""
    found = common.differences(model, stand_in(model, folder), chunk, features)
    return dict(zip(NETWORKS, found, strict=True))
