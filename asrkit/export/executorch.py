"""A streaming transducer as three ExecuTorch programs, for phones and boards that run PyTorch's own small runtime.

A program has fixed shapes: one stream, one chunk of audio, one hypothesis. What it has to remember comes out of it and
goes into its next call, so the caller holds the state and may have as many streams as there is memory for.
"""

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.data.features import FRAME_LENGTH, FRAME_SHIFT, SUBSAMPLING
from asrkit.export.onnx import Chunk, Joiner, save
from asrkit.files import atomic_write
from asrkit.models.transducer import BLANK, Transducer
from asrkit.optional import needed
from asrkit.search.recogniser import Recogniser

PROGRAMS = ("encoder.pte", "decoder.pte", "joiner.pte")
METADATA = "model.json"
TOLERANCE = 1e-4  # largest accepted difference from the model, whose outputs are of the size of 1

README = """\
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

A chunk has {chunk} frames of features, and the next one starts {shift} frames later. Of its output the first {final}
frames are final; those that follow come again, better, in the next chunk. The last chunk may have fewer frames: fill it
up with anything, say how many there are, and take all of its ceil(frames / {subsampling}) outputs.

The same runs in Kotlin, Swift and C++; in Python, with `pip install executorch kaldi-native-fbank soundfile`:

```python
{usage}
```
"""
USAGE = """\
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

options = kaldi_native_fbank.FbankOptions()
options.frame_opts.samp_freq = model["sampling_rate"]
options.frame_opts.dither = 0
options.frame_opts.snip_edges = False
options.mel_opts.num_bins = model["num_mel_bins"]
options.mel_opts.high_freq = -400
fbank = kaldi_native_fbank.OnlineFbank(options)
samples, rate = soundfile.read(sys.argv[1], dtype="float32")
assert rate == model["sampling_rate"]
fbank.accept_waveform(rate, samples.tolist())
fbank.input_finished()
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


class Encoder(nn.Module):
    """One chunk of one stream through the encoder, and the joiner's projection of it."""

    def __init__(self, model: Transducer, keep: int) -> None:
        super().__init__()
        self.encoder, self.project_encoder, self.keep = model.encoder, model.joiner.project_encoder, keep

    def forward(self, features: Tensor, frames: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Map features (1, 4c, F), of which `frames` (1,) count, to (1, c, J) and the state after `keep` of the c."""
        inside = torch.arange(features.shape[1]) < frames[:, None]
        out, state = self.encoder.step(features, list(state), inside, self.keep)
        return self.project_encoder(out), *(part.contiguous() for part in state)


class Decoder(nn.Module):
    """One label through the predictor, and the joiner's projection of it."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.predictor, self.project_predictor = model.predictor, model.joiner.project_predictor

    def forward(self, label: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Map a label (1, 1) to (1, J) and the next state."""
        out, state = self.predictor(label, list(state))
        return self.project_predictor(out[:, 0]), *(part.contiguous() for part in state)


def export_executorch(recogniser: Recogniser, folder: Path, chunk: Chunk) -> dict[str, float]:
    """Write encoder.pte, decoder.pte, joiner.pte, model.json, tokens.txt and README.md.

    What the programs compute is compared with the model before they are written.

    Returns:
        `differences` on random features.

    Raises:
        InputError: executorch is not installed; a program does not compute what the model does, or cannot be written.
    """
    config = recogniser.model.config
    programs = convert(recogniser.model, chunk)
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 7, chunk.frames, 2 * chunk.frames + 5)
    features = [4 * torch.randn(t, config.num_mel_bins, generator=generator) - 8 for t in lengths]
    found = differences(recogniser.model, programs, features, chunk)
    metadata = _metadata(recogniser, chunk)
    sizes = {"bins": config.num_mel_bins, "joint": config.joiner_dim, "vocab": config.vocab_size, "frames": chunk.size}
    readme = README.format(usage=USAGE, **sizes, **metadata)
    save(folder, programs, found, TOLERANCE, recogniser.tokenizer.symbols, readme)
    with atomic_write(folder / METADATA) as file:
        json.dump(metadata, file, indent=1)
        file.write("\n")
    return found


def convert(model: Transducer, chunk: Chunk) -> dict[str, bytes]:
    """Return the contents of each of PROGRAMS.

    Raises:
        InputError: executorch is not installed.
    """
    features = torch.zeros(1, chunk.frames, model.config.num_mel_bins)
    frame, label = torch.zeros(1, model.config.joiner_dim), torch.zeros(1, model.config.joiner_dim)
    contents = (
        _program(Encoder(model, chunk.size - chunk.lookahead), features, torch.tensor([1]), *model.encoder.start(1)),
        _program(Decoder(model), torch.tensor([[BLANK]]), *model.predictor.start(1)),
        _program(Joiner(model), frame, label),
    )
    return dict(zip(PROGRAMS, contents, strict=True))


def stand_in(model: Transducer, programs: Mapping[str, bytes]) -> Transducer:
    """Return a model whose streams run on programs: a `Recogniser` of it is one of the programs."""
    encode, decode, join = (_method(programs[name]) for name in PROGRAMS)
    other = copy.deepcopy(model)
    other.encoder = _EncoderProgram(model.encoder, encode)
    other.predictor = _DecoderProgram(model.predictor, decode)
    other.joiner.project_encoder = other.joiner.project_predictor = nn.Identity()  # part of the programs
    other.joiner.factored_blank = False  # as well
    other.joiner.combine = lambda *inputs: _joined(join, *torch.broadcast_tensors(*inputs))
    return other


class _EncoderProgram(nn.Module):
    """The streams of an encoder; its output is in joint space already."""

    def __init__(self, encoder: nn.Module, method: Any) -> None:
        super().__init__()
        self.start, self.method = encoder.start, method
        self.frames = method.metadata.input_tensor_meta(0).sizes()[1]

    def step(
        self, features: Tensor, state: list[Tensor], inside: Tensor, keep: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Map features (N, 4c, F) to (N, c, J); the chunk has the program's size, or is the last one and shorter.

        `keep` is part of the program.
        """
        padded = nn.functional.pad(features, (0, 0, 0, self.frames - features.shape[1]))
        out, *state = _by_rows(self.method, padded, inside.sum(dim=1), *state)
        return out[:, : features.shape[1] // SUBSAMPLING], state


class _DecoderProgram(nn.Module):
    """A predictor, label by label; its output is in joint space already."""

    def __init__(self, predictor: nn.Module, method: Any) -> None:
        super().__init__()
        self.start, self.method = predictor.start, method

    def forward(self, tokens: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        out, *state = _by_rows(self.method, tokens, *state)
        return out[:, None], state


def _joined(method: Any, encoder: Tensor, predictor: Tensor) -> Tensor:
    """Map two (…, J) to logits (…, V)."""
    (logits,) = _by_rows(method, encoder.flatten(0, -2), predictor.flatten(0, -2))
    return logits.unflatten(0, encoder.shape[:-1])


def _by_rows(method: Any, *inputs: Tensor) -> list[Tensor]:
    """Run a program, which takes one row, on each row of its inputs."""
    rows = [method.execute(row) for row in zip(*(x.contiguous().split(1) for x in inputs), strict=True)]
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]


@torch.inference_mode()
def differences(
    model: Transducer, programs: Mapping[str, bytes], features: list[Tensor], chunk: Chunk
) -> dict[str, float]:
    """Return the largest absolute difference of what each program computes from what the model does.

    The encoder goes chunk by chunk through each utterance, features (T, F), the decoder from label to label, and both
    feed their own states back.
    """
    other = stand_in(model, programs)
    frames, frames_found = [], []
    for utterance in features:
        state = state_found = model.encoder.start(1)
        for start in range(0, len(utterance), chunk.shift):
            part = utterance[None, start : start + chunk.frames]
            missing = -part.shape[1] % SUBSAMPLING
            inside = torch.arange(part.shape[1] + missing)[None] < part.shape[1]
            part = nn.functional.pad(part, (0, 0, 0, missing))
            keep = min(chunk.shift, part.shape[1]) // SUBSAMPLING
            out, state = model.encoder.step(part, state, inside, keep)
            found, state_found = other.encoder.step(part, state_found, inside, keep)
            frames.append(model.joiner.project_encoder(out[0]))
            frames_found.append(found[0])

    labels, labels_found = [], []
    state = state_found = model.predictor.start(1)
    for label in torch.arange(model.config.vocab_size):
        out, state = model.predictor(label.view(1, 1), state)
        found, state_found = other.predictor(label.view(1, 1), state_found)
        labels.append(model.joiner.project_predictor(out[:, 0]))
        labels_found.append(found[:, 0])

    encoder_out, decoder_out = torch.cat(frames), torch.cat(labels)
    decoder_out = decoder_out[torch.arange(len(encoder_out)) % len(decoder_out)]
    pairs = (
        (torch.cat(frames_found), encoder_out),
        (torch.cat(labels_found), torch.cat(labels)),
        (other.joiner.combine(encoder_out, decoder_out), Joiner(model)(encoder_out, decoder_out)),
    )
    return {name: float((found - out).abs().max()) for name, (found, out) in zip(PROGRAMS, pairs, strict=True)}


def _metadata(recogniser: Recogniser, chunk: Chunk) -> dict[str, Any]:
    """Return what the user of the programs has to know."""
    model = recogniser.model
    return {
        "sampling_rate": recogniser.features.sampling_rate,
        "num_mel_bins": recogniser.features.num_mel_bins,
        "frame_length": FRAME_LENGTH,
        "frame_shift": FRAME_SHIFT,
        "subsampling": SUBSAMPLING,
        "chunk": chunk.frames,
        "shift": chunk.shift,
        "final": chunk.size - chunk.lookahead,
        "topology": model.config.topology,
        "encoder_state": [_tensor_like(part) for part in model.encoder.start(1)],
        "decoder_state": [_tensor_like(part) for part in model.predictor.start(1)],
    }


def _tensor_like(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _program(module: nn.Module, *inputs: Tensor) -> bytes:
    """Return the program of a module for inputs of these shapes; what XNNPACK cannot compute, portable kernels do."""
    exir = needed("executorch.exir", "executorch")
    xnnpack = needed("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of its own use of torch
        exported = torch.export.export(module.eval(), inputs)
        lowered = exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)


def _method(contents: bytes) -> Any:
    """Return what runs a program by `execute(inputs)`."""
    program = needed("executorch.runtime", "executorch").Runtime.get().load_program(contents)
    method = program.load_method("forward")
    method.program = program  # it uses its memory, but would not keep it
    return method
