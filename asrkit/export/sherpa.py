"""An exported transducer in sherpa-onnx."""

from pathlib import Path

import torch
from torch import Tensor

from asrkit.data.features import FRAME_SHIFT, FeatureConfig
from asrkit.export.onnx import FILES, Chunk
from asrkit.optional import needed
from asrkit.text.tokenizer import WORD_START, Tokenizer


class SherpaRecogniser:
    """sherpa-onnx on an exported directory, on one thread.

    Args:
        folder: what `asrkit.export.onnx.export_onnx` wrote, for whole utterances.
        features: those of the model; sherpa-onnx computes the same.
        tokenizer: that of the model, to read the tokens of the result.
        beam: hypotheses kept by the beam search ("modified_beam_search"); 1 is the greedy search.

    Raises:
        InputError: sherpa-onnx is not installed.
    """

    kind = "OfflineRecognizer"

    def __init__(self, folder: Path, features: FeatureConfig, tokenizer: Tokenizer, beam: int = 4) -> None:
        self.recognizer = getattr(needed("sherpa_onnx", "export"), self.kind).from_transducer(
            **{name.removesuffix(".onnx"): str(folder / name) for name in FILES},
            tokens=str(folder / "tokens.txt"),
            num_threads=1,
            sample_rate=features.sampling_rate,
            feature_dim=features.num_mel_bins,
            decoding_method="modified_beam_search" if beam > 1 else "greedy_search",
            max_active_paths=beam,
        )
        self.sampling_rate, self.tokenizer = features.sampling_rate, tokenizer
        # sherpa-onnx shows the mark of a word's start as a space.
        self.ids = {symbol.replace(WORD_START, " "): index for index, symbol in enumerate(tokenizer.symbols)}

    def transcribe(self, utterances: list[Tensor]) -> list[str]:
        """Return the text of each utterance (S,), decoded as one batch."""
        streams = [self.recognizer.create_stream() for _ in utterances]
        for stream, samples in zip(streams, utterances, strict=True):
            stream.accept_waveform(self.sampling_rate, samples.numpy())
        self.recognizer.decode_streams(streams)
        return [self.text(stream.result.tokens) for stream in streams]

    def text(self, tokens: list[str]) -> str:
        """Return the text of tokens as sherpa-onnx shows them."""
        return self.tokenizer.decode([self.ids[token] for token in tokens])


class SherpaStreamer(SherpaRecogniser):
    """sherpa-onnx on a directory that was exported with a chunk size: the same for streams."""

    kind = "OnlineRecognizer"

    def __init__(self, folder: Path, features: FeatureConfig, tokenizer: Tokenizer, beam: int = 4) -> None:
        super().__init__(folder, features, tokenizer, beam)
        self.chunk = _chunk(folder)

    def transcribe(self, utterances: list[Tensor]) -> list[str]:
        """Return the text of each utterance (S,), streamed side by side."""
        streams = [self.recognizer.create_stream() for _ in utterances]
        for stream, samples in zip(streams, utterances, strict=True):
            stream.accept_waveform(self.sampling_rate, self.padded(samples).numpy())
            stream.input_finished()
        while ready := [stream for stream in streams if self.recognizer.is_ready(stream)]:
            self.recognizer.decode_streams(ready)
        return [self.text(self.recognizer.tokens(stream)) for stream in streams]

    def padded(self, samples: Tensor) -> Tensor:
        """Return samples (S,) with as much digital silence behind them as makes all their frames final.

        sherpa-onnx decodes whole chunks only, and each only when there is a frame more. Samples of less than half a
        frame at the end, of which our features make none, are cut off.
        """
        shift = int(self.sampling_rate * FRAME_SHIFT + 1e-6)  # samples from frame to frame, rounded down as Kaldi does
        frames = (len(samples) + shift // 2) // shift
        chunks = max(1, -(-frames // self.chunk.shift))
        needed = (chunks - 1) * self.chunk.shift + self.chunk.frames + 1
        samples = samples[: frames * shift]
        return torch.nn.functional.pad(samples, (0, needed * shift - len(samples)))


def _chunk(folder: Path) -> Chunk | None:
    return Chunk.of((folder / FILES[0]).read_bytes())


def sherpa(folder: Path, features: FeatureConfig, tokenizer: Tokenizer, beam: int = 4) -> SherpaRecogniser:
    """Return what runs an exported directory: a `SherpaStreamer` if it was exported with a chunk size."""
    return (SherpaStreamer if _chunk(folder) else SherpaRecogniser)(folder, features, tokenizer, beam)
