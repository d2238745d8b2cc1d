"""A transducer as three ONNX files and `tokens.txt`, which sherpa-onnx loads unchanged.

sherpa-onnx passes inputs and outputs by position: the encoder maps features to what the joiner takes, the decoder (our
predictor) maps the last labels to what the joiner takes, and the joiner makes logits of both. The two projections of
`asrkit.nn.decoders.Joiner` are therefore part of encoder and decoder: a frame is projected once, not once for each
hypothesis, and the joiner is left with a tanh and a matrix product.
"""

import importlib
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.data.features import pad_features
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.models.transducer import BLANK, Transducer
from asrkit.search.recogniser import Recogniser

FILES = ("encoder.onnx", "decoder.onnx", "joiner.onnx")
OPSET = 17  # the first with layer normalisation
TOLERANCE = 1e-3  # largest accepted difference from the model, whose outputs are of the size of 1


README = """\
# A transducer for sherpa-onnx

| file | maps |
|---|---|
| encoder.onnx | x (N, T, {bins}) features, x_lens (N,) to encoder_out (N, T / 4, {joint}), encoder_out_lens (N,) |
| decoder.onnx | y (N, {context}) last labels to decoder_out (N, {joint}) |
| joiner.onnx | encoder_out (N, {joint}), decoder_out (N, {joint}) to logits (N, {vocab}) |
| tokens.txt | `symbol id` lines; the blank is 0 |

Any audio rate will do; features are those of {rate} Hz, which sherpa-onnx computes itself:

```python
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
    encoder="encoder.onnx", decoder="decoder.onnx", joiner="joiner.onnx", tokens="tokens.txt",
    sample_rate={rate}, feature_dim={bins}, decoding_method="modified_beam_search",
)
samples, rate = soundfile.read("a.wav", dtype="float32")
stream = recognizer.create_stream()
stream.accept_waveform(rate, samples)
recognizer.decode_stream(stream)
print(stream.result.text)
```
"""


class Encoder(nn.Module):
    """The encoder on whole utterances, and the joiner's projection of it."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.encoder, self.project = model.encoder, model.joiner.project_encoder

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Map features x (N, T, F), x_lens (N,) to encoder_out (N, T', J) and its lengths (N,)."""
        encoder_out, lens = self.encoder(x, x_lens, chunk_size=0)
        return self.project(encoder_out), lens


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
        """Map encoder_out (N, J) and decoder_out (N, J) to logits (N, V)."""
        return self.joiner.combine(encoder_out, decoder_out)


def export_onnx(recogniser: Recogniser, folder: Path) -> dict[str, float]:
    """Write encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt and README.md.

    What the files compute is compared with the model before they are written.

    Returns:
        `differences` on random features.

    Raises:
        InputError: as `convert`; a file does not compute what the model does, or cannot be written.
    """
    model = recogniser.model
    files = convert(model)
    generator = torch.Generator().manual_seed(0)
    features = [4 * torch.randn(t, model.config.num_mel_bins, generator=generator) - 8 for t in (1, 4, 57, 400)]
    found = differences(model, files, features)
    for name, difference in found.items():
        if not difference <= TOLERANCE:
            raise InputError(f"{name}: differs from the model by {difference:.2g}; it is not written")
    for name, contents in files.items():
        with atomic_write(folder / name, "wb") as file:
            file.write(contents)
    with atomic_write(folder / "tokens.txt") as file:
        file.writelines(f"{symbol} {index}\n" for index, symbol in enumerate(recogniser.tokenizer.symbols))
    with atomic_write(folder / "README.md") as file:
        file.write(_readme(recogniser))
    return found


def convert(model: Transducer) -> dict[str, bytes]:
    """Return the contents of each of FILES.

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
    x, x_lens = torch.zeros(2, 8, config.num_mel_bins), torch.tensor([8, 5])
    y = torch.zeros(2, config.predictor.context, dtype=torch.int64)
    frame, label = torch.zeros(2, config.joiner_dim), torch.zeros(2, config.joiner_dim)
    # sherpa-onnx knows encoders by names of other toolkits; all those of whole utterances are called alike.
    encoder_metadata = {"model_type": "conformer"}
    decoder_metadata = {"vocab_size": config.vocab_size, "context_size": config.predictor.context}
    contents = (
        _onnx(Encoder(model), {"x": x, "x_lens": x_lens}, ["encoder_out", "encoder_out_lens"], encoder_metadata),
        _onnx(Decoder(model), {"y": y}, ["decoder_out"], decoder_metadata),
        _onnx(Joiner(model), {"encoder_out": frame, "decoder_out": label}, ["logits"], {}),
    )
    return dict(zip(FILES, contents, strict=True))


@torch.inference_mode()
def differences(model: Transducer, files: Mapping[str, bytes], features: list[Tensor]) -> dict[str, float]:
    """Return the largest absolute difference of what each file computes in onnxruntime from what the model does.

    The files get the utterances, features (T, F), as one padded batch, the model one by one.
    """
    encode, decode, join = (_session(files[name]) for name in FILES)
    encoder = Encoder(model)
    x, x_lens = pad_features(features)
    encoder_out, lens = encode(x, x_lens)
    alone = [encoder(utterance[None], torch.tensor([len(utterance)])) for utterance in features]
    if lens.tolist() != [len(out[0]) for out, _ in alone]:
        raise InputError(f"{FILES[0]}: lengths differ from the model's; it is not written")
    frames = torch.cat([out[0] for out, _ in alone])  # (M, J)

    labels = _label_contexts(model.config.vocab_size, model.config.predictor.context)
    predicted = Decoder(model)(labels)  # (V + 1, J)
    paired = predicted[torch.arange(len(frames)) % len(predicted)]  # (M, J)
    pairs = (
        (torch.cat([out[:t] for out, t in zip(encoder_out, lens, strict=True)]), frames),
        (decode(labels)[0], predicted),
        (join(frames, paired)[0], Joiner(model)(frames, paired)),
    )
    return {name: float((found - expected).abs().max()) for name, (found, expected) in zip(FILES, pairs, strict=True)}


def _label_contexts(vocab: int, context: int) -> Tensor:
    """Return (V + 1, context): the start of a sentence as sherpa-onnx writes it, and every label at every place."""
    start = torch.tensor([[-1] * (context - 1) + [BLANK]])
    return torch.cat([start, torch.stack([torch.arange(vocab).roll(k) for k in range(context)], dim=1)])


def needed(module: str) -> ModuleType:
    """Import a module of the extra "export".

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is not installed: pip install 'asrkit[export]'") from error


def _readme(recogniser: Recogniser) -> str:
    config = recogniser.model.config
    return README.format(
        bins=config.num_mel_bins,
        joint=config.joiner_dim,
        context=config.predictor.context,
        vocab=config.vocab_size,
        rate=recogniser.features.sampling_rate,
    )


def _onnx(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], metadata: dict[str, Any]) -> bytes:
    """Return the ONNX file of a module; N, and T of an input "x", are free.

    By the older of torch's exporters, which traces: it takes a twentieth of the time, and knows the LSTM. Whatever a
    trace has taken for a constant shows in `differences`.
    """
    onnx = needed("onnx")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of this exporter's age, and of constants
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            buffer,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: {0: "N"} for name in (*inputs, *outputs)} | {"x": {0: "N", 1: "T"}},
            opset_version=OPSET,
            dynamo=False,
        )
    proto = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(proto, {name: str(value) for name, value in metadata.items()})
    return proto.SerializeToString()


def _session(contents: bytes) -> Callable[..., list[Tensor]]:
    """Return a function of tensors that runs an ONNX file on one thread."""
    ort = needed("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(*inputs: Tensor) -> list[Tensor]:
        arrays = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return [torch.from_numpy(array) for array in arrays]

    return call
