"""A streaming transducer as three programs, whatever runs them: what is in each, and whether they say what it says.

A program has fixed shapes: one stream, one chunk of audio, one hypothesis. What it has to remember comes out of it and
goes into its next call, so the caller holds the state and may have as many streams as there is memory for.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.data.features import FRAME_LENGTH, FRAME_SHIFT, SUBSAMPLING
from asrkit.export.onnx import Chunk, Joiner, save
from asrkit.files import atomic_write
from asrkit.models.transducer import BLANK, Transducer
from asrkit.search.recogniser import Recogniser

METADATA = "model.json"
TOLERANCE = 1e-4  # largest accepted difference from the model, whose outputs are of the size of 1
# Parts of the README.md of programs: how they are called, and Python that computes their features.
CHUNKS = """\
A chunk has {chunk} frames of features, and the next one starts {shift} frames later. Of its output the first {final}
frames are final; those that follow come again, better, in the next chunk. The last chunk may have fewer frames: fill it
up with anything, say how many there are, and take all of its ceil(frames / {subsampling}) outputs.
"""
FEATURES = """\
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
fbank.input_finished()"""

Run = Callable[..., Sequence[Tensor]]  # a program: inputs, of which the first dimension is 1, to outputs


@dataclass(frozen=True)
class Program:
    """What is to become one of the programs."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    """Examples; their shapes are those of the program."""
    states: tuple[tuple[int, int], ...] = ()
    """Inputs, and the outputs that come back in their place."""


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


def programs(model: Transducer, chunk: Chunk) -> tuple[Program, Program, Program]:
    """Return encoder, decoder and joiner of a model, for chunks of one size."""
    features = random_features(model.config.num_mel_bins, (chunk.frames,))[0][None]
    joint = torch.randn(2, 1, model.config.joiner_dim, generator=torch.Generator().manual_seed(0))
    encoder_state, decoder_state = model.encoder.start(1), model.predictor.start(1)
    return (
        Program(
            "encoder",
            Encoder(model, chunk.size - chunk.lookahead).eval(),
            (features, torch.tensor([chunk.frames]), *encoder_state),
            tuple((2 + i, 1 + i) for i in range(len(encoder_state))),
        ),
        Program(
            "decoder",
            Decoder(model).eval(),
            (torch.tensor([[BLANK]]), *decoder_state),
            tuple((1 + i, 1 + i) for i in range(len(decoder_state))),
        ),
        Program("joiner", Joiner(model).eval(), tuple(joint)),
    )


def stand_in(model: Transducer, frames: int, encode: Run, decode: Run, join: Run) -> Transducer:
    """Return a model whose streams run on programs: a `Recogniser` of it is one of the programs.

    `frames` is how many feature frames the encoder takes.
    """
    other = with_encoder(model, frames, encode)
    other.predictor = _DecoderProgram(model.predictor, decode)
    other.joiner.project_predictor = nn.Identity()  # part of the programs
    other.joiner.factored_blank = False  # as well
    other.joiner.combine = lambda *inputs: _joined(join, *torch.broadcast_tensors(*inputs))
    return other


def with_encoder(model: Transducer, frames: int, encode: Run) -> Transducer:
    """Return a model whose streams go through an encoder program, of chunks of so many feature frames."""
    other = copy.deepcopy(model)
    other.encoder = _EncoderProgram(model.encoder, frames, encode)
    other.joiner.project_encoder = nn.Identity()  # part of the program
    return other


class _EncoderProgram(nn.Module):
    """The streams of an encoder; its output is in joint space already."""

    batched = False

    def __init__(self, encoder: nn.Module, frames: int, run: Run) -> None:
        super().__init__()
        self.start, self.frames, self.run = encoder.start, frames, run

    def step(
        self, features: Tensor, state: list[Tensor], inside: Tensor, keep: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Map features (N, 4c, F) to (N, c, J); the chunk has the program's size, or is the last one and shorter.

        `keep` is part of the program.
        """
        padded = nn.functional.pad(features, (0, 0, 0, self.frames - features.shape[1]))
        out, *state = _by_rows(self.run, padded, inside.sum(dim=1), *state)
        return out[:, : features.shape[1] // SUBSAMPLING], state


class _DecoderProgram(nn.Module):
    """A predictor, label by label; its output is in joint space already."""

    def __init__(self, predictor: nn.Module, run: Run) -> None:
        super().__init__()
        self.start, self.run = predictor.start, run

    def forward(self, tokens: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        out, *state = _by_rows(self.run, tokens, *state)
        return out[:, None], state


def _joined(run: Run, encoder: Tensor, predictor: Tensor) -> Tensor:
    """Map two (…, J) to logits (…, V)."""
    (logits,) = _by_rows(run, encoder.flatten(0, -2), predictor.flatten(0, -2))
    return logits.unflatten(0, encoder.shape[:-1])


def _by_rows(run: Run, *inputs: Tensor) -> list[Tensor]:
    """Run a program, which takes one row, on each row of its inputs."""
    if len(inputs[0]) == 1:  # a state goes back as it came, wherever its numbers lie
        return list(run(*inputs))
    rows = [run(*row) for row in zip(*(x.contiguous().split(1) for x in inputs), strict=True)]
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]


@torch.inference_mode()
def differences(
    model: Transducer, other: Transducer, chunk: Chunk, features: Sequence[Tensor] | None = None
) -> list[float]:
    """Return the largest absolute difference of what each program, of a `stand_in`, computes from what the model does.

    The encoder goes chunk by chunk through each utterance, features (T, F), by default noise of less than a chunk, of
    one and of more; the decoder goes from label to label. Both feed their own states back.
    """
    encoder_out, encoder_out_found = _encoded(model, other, chunk, features)
    labels, labels_found = [], []
    state = state_found = model.predictor.start(1)
    for label in torch.arange(model.config.vocab_size):
        out, state = model.predictor(label.view(1, 1), state)
        found, state_found = other.predictor(label.view(1, 1), state_found)
        labels.append(model.joiner.project_predictor(out[:, 0]))
        labels_found.append(found[:, 0])

    decoder_out = torch.cat(labels)
    paired = decoder_out[torch.arange(len(encoder_out)) % len(decoder_out)]
    pairs = (
        (encoder_out_found, encoder_out),
        (torch.cat(labels_found), decoder_out),
        (other.joiner.combine(encoder_out, paired), Joiner(model)(encoder_out, paired)),
    )
    return [float((found - out).abs().max()) for found, out in pairs]


@torch.inference_mode()
def encoder_difference(model: Transducer, other: Transducer, chunk: Chunk) -> float:
    """Return the first of the `differences` on random features; the rest of `other` need not be of programs."""
    out, found = _encoded(model, other, chunk, None)
    return float((found - out).abs().max())


def _encoded(
    model: Transducer, other: Transducer, chunk: Chunk, features: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return the encoder output (M, J) of a model and of another one with an encoder program."""
    if features is None:
        features = random_features(model.config.num_mel_bins, (1, 7, chunk.frames, 2 * chunk.frames + 5))
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
    return torch.cat(frames), torch.cat(frames_found)


def random_features(num_mel_bins: int, lengths: Sequence[int]) -> list[Tensor]:
    """Return noise of the size of features: utterances (T, F) of these lengths."""
    generator = torch.Generator().manual_seed(0)
    return [4 * torch.randn(t, num_mel_bins, generator=generator) - 8 for t in lengths]


def save_programs(
    recogniser: Recogniser,
    chunk: Chunk,
    folder: Path,
    contents: Mapping[str, bytes],
    found: Mapping[str, float],
    readme: str,
    **values: Any,
) -> None:
    """Write programs, if their differences `found` are small, model.json, tokens.txt, and README.md with all values.

    Raises:
        InputError: a program does not compute what the model does, or cannot be written.
    """
    config, metadata = recogniser.model.config, _metadata(recogniser, chunk)
    sizes = {"bins": config.num_mel_bins, "joint": config.joiner_dim, "vocab": config.vocab_size, "frames": chunk.size}
    readme = readme.format(**sizes, **metadata, **values)
    save(folder, contents, found, TOLERANCE, recogniser.tokenizer.symbols, readme)
    with atomic_write(folder / METADATA) as file:
        json.dump(metadata, file, indent=1)
        file.write("\n")


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
