"""A transducer as three ONNX files and `tokens.txt`, which sherpa-onnx loads unchanged.

sherpa-onnx passes inputs and outputs by position: the encoder maps features to what the joiner takes, the decoder (our
predictor) maps the last labels to what the joiner takes, and the joiner makes logits of both. The two projections of
`asrkit.nn.decoders.Joiner` are therefore part of encoder and decoder: a frame is projected once, not once for each
hypothesis, and the joiner is left with a tanh and a matrix product.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.data.features import FRAME_SHIFT, SUBSAMPLING, heard, pad_features
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.models.transducer import BLANK, Transducer
from asrkit.optional import needed
from asrkit.search.recogniser import Recogniser

FILES = ("encoder.onnx", "decoder.onnx", "joiner.onnx")
OPSET = 17  # the first with layer normalisation
NEVER = 100.0  # taken from the logits of labels that must not come
TOLERANCE = 1e-3  # largest accepted difference from the model, whose outputs are of the size of 1


README = """\
# A transducer for sherpa-onnx

| file | maps |
|---|---|
| encoder.onnx | {encoder} |
| decoder.onnx | y (N, {context}) last labels to decoder_out (N, {joint}) |
| joiner.onnx | encoder_out (N, {frame}), decoder_out (N, {joint}) to logits (N, {vocab}) |
| tokens.txt | `symbol id` lines; the blank is 0 |

Any audio rate will do; features are those of {rate} Hz, which sherpa-onnx computes itself:

```python
{usage}
```
"""
ENCODER = "x (N, T, {bins}) features, x_lens (N,) to encoder_out (N, T / 4, {frame}), encoder_out_lens (N,)"
LOAD = """\
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.{kind}.from_transducer(
    encoder="encoder.onnx", decoder="decoder.onnx", joiner="joiner.onnx", tokens="tokens.txt",
    sample_rate={rate}, feature_dim={bins}, decoding_method="modified_beam_search",
)
samples, rate = soundfile.read("a.wav", dtype="float32")
stream = recognizer.create_stream()
"""
USAGE = """\
stream.accept_waveform(rate, samples)
recognizer.decode_stream(stream)
print(stream.result.text)"""
STREAMING_ENCODER = (
    "x (N, {chunk}, {bins}) features of a chunk, a state to encoder_out (N, {final}, {frame}), the next state"
)
STREAMING_USAGE = """\
for start in range(0, len(samples), rate // 10):  # as they would come from a microphone
    stream.accept_waveform(rate, samples[start : start + rate // 10])
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
        print(recognizer.get_result(stream))
# Silence, at the end of the audio only, as long as a chunk: with less of it the last words would wait for their chunk.
stream.accept_waveform(rate, numpy.zeros(round({tail:.2f} * rate), dtype=numpy.float32))
stream.input_finished()
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
print(recognizer.get_result(stream))"""


@dataclass(frozen=True)
class Chunk:
    """What a streaming encoder takes at once, in encoder frames; the next chunk begins with the lookahead of this."""

    size: int
    lookahead: int

    @property
    def frames(self) -> int:
        """Feature frames of a chunk."""
        return SUBSAMPLING * self.size

    @property
    def shift(self) -> int:
        """Feature frames from one chunk to the next."""
        return SUBSAMPLING * (self.size - self.lookahead)

    @classmethod
    def of(cls, encoder: bytes) -> "Chunk | None":
        """Return the chunk of an ONNX file, or None if its encoder takes whole utterances."""
        proto = needed("onnx", "export").load_from_string(encoder)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        if "T" not in metadata:
            return None
        frames, shift = int(metadata["T"]), int(metadata["decode_chunk_len"])
        return cls(frames // SUBSAMPLING, (frames - shift) // SUBSAMPLING)


class Encoder(nn.Module):
    """The encoder on whole utterances, and the joiner's projection of it."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.encoder, self.project = model.encoder, model.joiner.project_encoder

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Map features x (N, T, F), x_lens (N,) to encoder_out (N, T', J) and its lengths (N,)."""
        encoder_out, lens = self.encoder(x, x_lens, chunk_size=0)
        return self.project(encoder_out), lens


class StreamingEncoder(nn.Module):
    """The encoder on one chunk after another, and the joiner's projection of the frames that are final.

    sherpa-onnx wants digital silence after the end of the audio, which fills its last chunk. A model may never have
    heard such a thing, and say anything to it, so it counts as no audio here: nothing attends to it, and a 1 after the
    projection of its frames tells the joiner that it is a blank.

    sherpa-onnx has places for the states of encoders it knows, and fills them with zeros at the start, which is where
    ours begin. Those of an LSTM are two vectors a stream and layer, which hold what they are given: here one layer's,
    the first of the encoder's own states and all the others in a row. The count of frames that sherpa-onnx keeps would
    not do: it starts anew at an endpoint, where the states are kept.
    """

    def __init__(self, model: Transducer, chunk: Chunk) -> None:
        super().__init__()
        self.encoder, self.project = model.encoder, model.joiner.project_encoder
        self.keep = chunk.size - chunk.lookahead
        self.shapes = [state.shape[1:] for state in model.encoder.start(1)]

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map features x (N, 4c, F), hidden (1, N, H) and cell (1, N, C) to encoder_out (N, c', J + 1), states."""
        first, *shapes = self.shapes
        others = hidden[0].split([shape.numel() for shape in shapes], dim=1)
        state = [part.reshape(-1, *shape) for part, shape in zip((cell[0], *others), (first, *shapes), strict=True)]
        encoder_out, state = self.step(x, state)
        return encoder_out, *self.pack(state)

    def step(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Map features x (N, 4c, F) and the encoder's state to encoder_out (N, c', J + 1) and the next state."""
        inside = heard(x)
        encoder_out, state = self.encoder.step(x, state, inside, self.keep)
        silent = ~inside[:, : SUBSAMPLING * self.keep : SUBSAMPLING, None]  # (N, c', 1)
        return torch.cat([self.project(encoder_out[:, : self.keep]), silent.float()], dim=2), state

    @staticmethod
    def pack(state: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return `hidden` and `cell` of the state of N streams."""
        cell, *others = (part.reshape(part.shape[0], -1).float() for part in state)
        return torch.cat(others, dim=1)[None], cell[None]


class Decoder(nn.Module):
    """The stateless predictor, and the joiner's projection of it."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.predictor, self.project = model.predictor, model.joiner.project_predictor

    def forward(self, y: Tensor) -> Tensor:
        """Map the last labels y (N, context) to (N, J)."""
        y = y.clamp(min=BLANK)  # sherpa-onnx starts a sentence with -1, …, -1, blank; our predictor with blanks
        out, _ = self.predictor(y[:, -1:], [y[:, :-1]])
        return self.project(out[:, 0])


class Joiner(nn.Module):
    """What is left of the joiner."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.joiner = model.joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Map encoder_out (N, J) and decoder_out (N, J) to logits (N, V).

        sherpa-onnx takes the softmax of them, which leaves the log-probabilities of a factored blank as they are.
        """
        return (self.joiner.log_probs if self.joiner.factored_blank else self.joiner.combine)(encoder_out, decoder_out)


class StreamingJoiner(Joiner):
    """A joiner that makes a blank of the frames which `StreamingEncoder` marks as silent."""

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Map encoder_out (N, J + 1) and decoder_out (N, J) to logits (N, V)."""
        logits = super().forward(encoder_out[:, :-1], decoder_out)
        labels = torch.arange(logits.shape[1]) != BLANK
        return logits - NEVER * labels * encoder_out[:, -1:]


def export_onnx(recogniser: Recogniser, folder: Path, chunk: Chunk | None = None) -> dict[str, float]:
    """Write encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt and README.md, for whole utterances or for streams.

    What the files compute is compared with the model before they are written.

    Args:
        recogniser: what to write; its search does not matter.
        folder: where.
        chunk: that of the streams; sherpa-onnx then says what `Recogniser.stream` with the same chunk does.

    Returns:
        `differences` on random features.

    Raises:
        InputError: as `convert`; a file does not compute what the model does, or cannot be written.
    """
    model = recogniser.model
    files = convert(model, chunk)
    generator = torch.Generator().manual_seed(0)
    features = [4 * torch.randn(t, model.config.num_mel_bins, generator=generator) - 8 for t in (1, 4, 57, 400)]
    found = differences(model, files, features)
    save(folder, files, found, TOLERANCE, recogniser.tokenizer.symbols, _readme(recogniser, chunk))
    return found


def save(
    folder: Path,
    files: Mapping[str, bytes],
    found: Mapping[str, float],
    tolerance: float,
    symbols: Sequence[str],
    readme: str,
) -> None:
    """Write files, tokens.txt and README.md, if the differences `found` of each file are within the `tolerance`.

    Raises:
        InputError: a file does not compute what the model does, or cannot be written.
    """
    for name, difference in found.items():
        if not difference <= tolerance:
            raise InputError(f"{name}: differs from the model by {difference:.2g}; it is not written")
    for name, contents in files.items():
        with atomic_write(folder / name, "wb") as file:
            file.write(contents)
    with atomic_write(folder / "tokens.txt") as file:
        file.writelines(f"{symbol} {index}\n" for index, symbol in enumerate(symbols))
    with atomic_write(folder / "README.md") as file:
        file.write(readme)


def convert(model: Transducer, chunk: Chunk | None = None) -> dict[str, bytes]:
    """Return the contents of each of FILES, with an encoder of chunks or else of whole utterances.

    Raises:
        InputError: the predictor has a state, for which sherpa-onnx has no place, or a package is missing.
    """
    config = model.config
    if config.predictor.kind != "stateless":
        raise InputError(
            f"predictor.kind '{config.predictor.kind}': sherpa-onnx runs stateless predictors only; "
            "train with --model.predictor.kind stateless"
        )
    # The sizes of the examples are free, but for 0 and 1, which the exporter would take for constants.
    y = torch.zeros(2, config.predictor.context, dtype=torch.int64)
    decoder_metadata = {"vocab_size": config.vocab_size, "context_size": config.predictor.context}
    encoder, joiner = _streaming(model, chunk) if chunk else _whole(model)
    contents = (encoder, to_onnx(Decoder(model), {"y": y}, ["decoder_out"], decoder_metadata), joiner)
    return dict(zip(FILES, contents, strict=True))


def _whole(model: Transducer) -> tuple[bytes, bytes]:
    """Return encoder and joiner for whole utterances."""
    inputs = {"x": torch.zeros(2, 8, model.config.num_mel_bins), "x_lens": torch.tensor([8, 5])}
    # sherpa-onnx knows encoders by names of other toolkits; all those of whole utterances are called alike.
    metadata = {"model_type": "conformer"}
    outputs = ["encoder_out", "encoder_out_lens"]
    frame = torch.zeros(2, model.config.joiner_dim)
    return (
        to_onnx(Encoder(model), inputs, outputs, metadata, {"x": {0: "N", 1: "T"}}),
        to_onnx(Joiner(model), {"encoder_out": frame, "decoder_out": frame}, ["logits"], {}),
    )


def _streaming(model: Transducer, chunk: Chunk) -> tuple[bytes, bytes]:
    """Return encoder and joiner for streams."""
    encoder = StreamingEncoder(model, chunk)
    hidden, cell = encoder.pack(model.encoder.start(2))
    inputs = {"x": torch.zeros(2, chunk.frames, model.config.num_mel_bins), "hidden": hidden, "cell": cell}
    metadata = {
        "model_type": "lstm",
        "T": chunk.frames,
        "decode_chunk_len": chunk.shift,
        "num_encoder_layers": 1,
        "d_model": hidden.shape[2],
        "rnn_hidden_size": cell.shape[2],
    }
    outputs = ["encoder_out", "new_hidden", "new_cell"]
    free = {name: {1: "N"} for name in ("hidden", "cell", "new_hidden", "new_cell")}
    frame, label = torch.zeros(2, model.config.joiner_dim + 1), torch.zeros(2, model.config.joiner_dim)
    return (
        to_onnx(encoder, inputs, outputs, metadata, free),
        to_onnx(StreamingJoiner(model), {"encoder_out": frame, "decoder_out": label}, ["logits"], {}),
    )


@torch.inference_mode()
def differences(model: Transducer, files: Mapping[str, bytes], features: list[Tensor]) -> dict[str, float]:
    """Return the largest absolute difference of what each file computes in onnxruntime from what the model does.

    The files get the utterances, features (T, F), as one padded batch, an encoder of streams chunk by chunk with its
    states fed back; the model gets them one by one.
    """
    encode, decode, join = (session(files[name]) for name in FILES)
    chunk = Chunk.of(files[FILES[0]])
    pairs = _chunks_encoded(model, encode, chunk, features) if chunk else _encoded(model, encode, features)
    frames_found, frames = (torch.cat(parts) for parts in zip(*pairs, strict=True))  # each (M, J)

    labels = label_contexts(model.config.vocab_size, model.config.predictor.context)
    predicted = Decoder(model)(labels)  # (V + 1, J)
    paired = predicted[torch.arange(len(frames)) % len(predicted)]  # (M, J)
    outputs = (
        (frames_found, frames),
        (decode(labels)[0], predicted),
        (join(frames, paired)[0], (StreamingJoiner if chunk else Joiner)(model)(frames, paired)),
    )
    return {name: float((found - expected).abs().max()) for name, (found, expected) in zip(FILES, outputs, strict=True)}


def _encoded(
    model: Transducer, encode: Callable[..., list[Tensor]], features: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the output (T', J) for each utterance of a file and of the model."""
    encoder = Encoder(model)
    encoder_out, lens = encode(*pad_features(features))
    for utterance, out, length in zip(features, encoder_out, lens, strict=True):
        alone, expected_length = encoder(utterance[None], torch.tensor([len(utterance)]))
        if length != expected_length:
            raise InputError(f"{FILES[0]}: lengths differ from the model's; it is not written")
        yield out[:length], alone[0]


def _chunks_encoded(
    model: Transducer, encode: Callable[..., list[Tensor]], chunk: Chunk, features: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the output (T', J) of each chunk of each utterance, padded to three or more, of a file and of the model."""
    encoder = StreamingEncoder(model, chunk)
    x, _ = pad_features([*features, torch.zeros(chunk.frames + 2 * chunk.shift, model.config.num_mel_bins)])
    states = encoder.pack(model.encoder.start(len(x)))
    own_states = [model.encoder.start(1) for _ in x]
    for first in range(0, x.shape[1] - chunk.frames + 1, chunk.shift):
        part = x[:, first : first + chunk.frames]
        encoder_out, *states = encode(part, *states)
        for n, out in enumerate(encoder_out):
            expected, own_states[n] = encoder.step(part[n : n + 1], own_states[n])
            yield out, expected[0]


def label_contexts(vocab: int, context: int) -> Tensor:
    """Return (V + 1, context): the start of a sentence as sherpa-onnx writes it, and every label at every place."""
    start = torch.tensor([[-1] * (context - 1) + [BLANK]])
    return torch.cat([start, torch.stack([torch.arange(vocab).roll(k) for k in range(context)], dim=1)])


def _readme(recogniser: Recogniser, chunk: Chunk | None) -> str:
    config = recogniser.model.config
    sizes = {
        "bins": config.num_mel_bins,
        "joint": config.joiner_dim,
        "frame": config.joiner_dim,
        "context": config.predictor.context,
        "vocab": config.vocab_size,
        "rate": recogniser.features.sampling_rate,
    }
    encoder, usage, kind = ENCODER, LOAD + USAGE, "OfflineRecognizer"
    if chunk:
        encoder, usage, kind = STREAMING_ENCODER, f"import numpy\n{LOAD}{STREAMING_USAGE}", "OnlineRecognizer"
        sizes |= {
            "frame": config.joiner_dim + 1,
            "chunk": chunk.frames,
            "final": chunk.size - chunk.lookahead,
            "tail": FRAME_SHIFT * (chunk.frames + 1),
        }
    return README.format(encoder=encoder.format(**sizes), usage=usage.format(kind=kind, **sizes), **sizes)


def to_onnx(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    metadata: dict[str, Any],
    free: dict[str, dict[int, str]] | None = None,
) -> bytes:
    """Return the ONNX file of a module; the sizes that are `free` have names, by default the first of each tensor.

    By the older of torch's exporters, which traces: it takes a twentieth of the time, and knows the LSTM. Whatever a
    trace has taken for a constant shows in `differences`.
    """
    onnx = needed("onnx", "export")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of this exporter's age, and of constants
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            buffer,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: {0: "N"} for name in (*inputs, *outputs)} | (free or {}),
            opset_version=OPSET,
            dynamo=False,
        )
    proto = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(proto, {name: str(value) for name, value in metadata.items()})
    return proto.SerializeToString()


def session(contents: bytes) -> Callable[..., list[Tensor]]:
    """Return a function of tensors that runs an ONNX file on one thread."""
    ort = needed("onnxruntime", "export")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(*inputs: Tensor) -> list[Tensor]:
        arrays = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return [torch.from_numpy(array) for array in arrays]

    return call
