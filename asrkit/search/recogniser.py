"""The recogniser: a trained experiment directory made into something that transcribes.

An experiment directory is self-contained: `config.yaml` describes features and model, `lang/` holds the tokenizer and
`model.pt` the weights. Nothing else is read, so it can be moved or copied as it is.
"""

import copy
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from asrkit.config import read_section
from asrkit.data.audio import stream_audio
from asrkit.data.features import FRAME_SHIFT, SUBSAMPLING, Fbank, FbankStream, FeatureConfig, pad_features
from asrkit.errors import InputError
from asrkit.models import MODELS
from asrkit.models.checkpoint import load_weights
from asrkit.models.transducer import Transducer
from asrkit.search.beam import BeamSearch
from asrkit.search.greedy import GreedySearch
from asrkit.search.history import Path as TokenPath
from asrkit.text.tokenizer import Tokenizer, load_tokenizer
from asrkit.types import Hypothesis, NBest, Word

FRAME_SECONDS = FRAME_SHIFT * SUBSAMPLING
READ_SECONDS = 1.0  # audio read at a time from a file or a pipe
LONG_SECONDS = 60.0  # longer recordings are streamed


class Recogniser:
    """A model with its features, tokenizer and search.

    Args:
        model: trained model, put into evaluation mode here.
        features: how its features are computed.
        tokenizer: its labels.
        beam: hypotheses that the beam search keeps; 1 is the greedy search.
    """

    def __init__(self, model: Transducer, features: FeatureConfig, tokenizer: Tokenizer, beam: int = 4) -> None:
        self.model, self.features, self.tokenizer = model.eval(), features, tokenizer
        self.search = BeamSearch(model, beam, length_norm=True) if beam > 1 else GreedySearch(model)
        self.fbank = Fbank(features)

    @property
    def streaming_chunk(self) -> int:
        """Encoder frames of a chunk when streaming, unless told otherwise; a model never trained for it takes 1 s."""
        return self.model.config.encoder.chunk_sizes[-1] or round(1 / FRAME_SECONDS)

    def transcribe(self, source: Path | str) -> NBest:
        """Transcribe one audio file of any format, rate and length, or raw 16-bit PCM on standard input for "-".

        The encoder sees the whole of it, unless it is longer than LONG_SECONDS: then it is streamed, in memory that
        does not grow with its length.

        Raises:
            InputError: the audio is missing, truncated, empty or not audio; names the file.
        """
        blocks = stream_audio(source, self.features.sampling_rate, READ_SECONDS)
        start = list(islice(blocks, round(LONG_SECONDS / READ_SECONDS)))
        following = next(blocks, None)
        if following is None:
            return self.recognise([torch.cat(start)], [str(source)])[0]
        stream = self.stream(str(source))
        for block in chain(start, [following], blocks):
            stream.accept(block)
        return stream.finish()

    @torch.inference_mode()
    def recognise(self, utterances: list[Tensor], names: list[str], chunk_size: int = 0) -> list[NBest]:
        """Transcribe N utterances (S,) at the model's sampling rate in one batch.

        `chunk_size` limits attention as streaming with chunks of so many encoder frames would; 0 does not limit it.
        """
        features, feature_lens = pad_features([self.fbank(samples) for samples in utterances])
        device = self.model.device
        encoder_out, lens = self.model.encoder(features.to(device), feature_lens.to(device), chunk_size)
        state = self.search.start(len(utterances))
        self.search.advance(state, encoder_out, lens)
        rate = self.features.sampling_rate
        paths = self.search.hypotheses(state)
        return [
            self.nbest(name, len(samples) / rate, hyps)
            for name, samples, hyps in zip(names, utterances, paths, strict=True)
        ]

    def stream(self, name: str = "", chunk_size: int | None = None, lookahead: int | None = None) -> "Stream":
        """Return a new stream with chunks of `chunk_size` encoder frames of 40 ms.

        The last `lookahead` frames of a chunk, an eighth of it by default, are heard again at the start of the next
        one, and only then is what was said in them final. With 0, a word that a chunk cuts in two is decided by its
        first part; the encoder output then is that of the whole utterance under the mask of such chunks. More than
        an eighth lost words to double emission on the validation data of egs/mini/asr.
        """
        chunk_size = chunk_size or self.streaming_chunk
        return Stream(self, name, chunk_size, chunk_size // 8 if lookahead is None else lookahead)

    def nbest(self, name: str, duration: float, paths: Iterable[TokenPath]) -> NBest:
        """Turn token paths into a record with words and times (seconds)."""
        return NBest(name, duration, tuple(self._hypothesis(path) for path in paths))

    def _hypothesis(self, path: TokenPath) -> Hypothesis:
        times = [frame * FRAME_SECONDS for frame in path.frames]
        words = tuple(
            Word(text, times[span[0]], times[span[-1]] + FRAME_SECONDS)
            for text, span in self.tokenizer.words(path.tokens)
        )
        symbols = tuple(self.tokenizer.symbols[token] for token in path.tokens)
        return Hypothesis(symbols, tuple(times), words, path.score, path.scores)


class Stream:
    """One utterance that arrives bit by bit; results after each chunk, in memory that holds one chunk of audio."""

    def __init__(self, recogniser: Recogniser, name: str, chunk_size: int, lookahead: int) -> None:
        if not 0 <= lookahead < chunk_size:
            raise InputError(f"lookahead {lookahead}: must be from 0 to {chunk_size - 1}, below the chunk size")
        self._recogniser, self._name = recogniser, name
        self._chunk_frames, self._step_frames = chunk_size * SUBSAMPLING, (chunk_size - lookahead) * SUBSAMPLING
        self._fbank = FbankStream(recogniser.features)
        self._features = torch.zeros(0, recogniser.features.num_mel_bins)  # not final yet
        self._encoder_state = recogniser.model.encoder.start(1)
        self._search_state = recogniser.search.start(1)
        self._lookahead_out: Tensor | None = None  # encoder output of the frames that are not final yet
        self._samples = 0

    def accept(self, samples: Tensor) -> None:
        """Take the next samples (S,), float in [-1, 1] at the model's sampling rate."""
        self._samples += len(samples)
        self._take(self._fbank.accept(samples))
        while len(self._features) >= self._chunk_frames:
            self._decode(self._step_frames)

    def finish(self) -> NBest:
        """End the utterance and return its final result."""
        self._take(self._fbank.flush())
        while len(self._features) > self._chunk_frames:
            self._decode(self._step_frames)
        if len(self._features):
            self._decode(len(self._features))
        return self.result(final=True)

    @torch.inference_mode()
    def result(self, final: bool = False) -> NBest:
        """Return the hypotheses so far, those of the lookahead included; `final` is for `finish`."""
        recogniser, state = self._recogniser, self._search_state
        if self._lookahead_out is not None:
            state = copy.deepcopy(state)
            recogniser.search.advance(state, self._lookahead_out, torch.tensor([self._lookahead_out.shape[1]]))
        duration = self._samples / recogniser.features.sampling_rate
        return recogniser.nbest(self._name, duration, recogniser.search.hypotheses(state, final)[0])

    def _take(self, features: Tensor) -> None:
        self._features = torch.cat([self._features, features])

    @torch.inference_mode()
    def _decode(self, frames: int) -> None:
        """Make the next `frames` feature frames final, with those that follow in their chunk as lookahead."""
        chunk = self._features[: self._chunk_frames]
        out, state = self._encode(chunk)
        if len(chunk) > frames:  # the next chunk goes on from the end of the final frames
            _, state = self._encode(chunk[:frames])
        final = -(-frames // SUBSAMPLING)
        self._recogniser.search.advance(self._search_state, out[:, :final], torch.tensor([final]))
        self._encoder_state, self._features = state, self._features[frames:]
        self._lookahead_out = out[:, final:] if len(chunk) > frames else None

    def _encode(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode features (T, D) from the state on: output (1, ceil(T / 4), D) and the state after them."""
        device = self._recogniser.model.device
        missing = -len(features) % SUBSAMPLING  # only at the end of the utterance
        inside = torch.arange(len(features) + missing, device=device)[None] < len(features)
        chunk = torch.nn.functional.pad(features[None].to(device), (0, 0, 0, missing))
        return self._recogniser.model.encoder.step(chunk, self._encoder_state, inside)


def load(folder: Path | str, beam: int = 4, checkpoint: str = "model.pt") -> Recogniser:
    """Load the recogniser of an experiment directory.

    Raises:
        InputError: a file is missing, damaged or does not belong to this model; names it.
    """
    folder = Path(folder)
    features = read_section(folder / "config.yaml", "features", FeatureConfig)
    config_class, model_class = MODELS["transducer"]
    model = model_class(read_section(folder / "config.yaml", "model", config_class))
    load_weights(model, folder / checkpoint)
    tokenizer = load_tokenizer(folder / "lang")
    if tokenizer.vocab_size != (expected := model.config.vocab_size):
        raise InputError(f"{folder / 'lang'}: {tokenizer.vocab_size} tokens, but the model has {expected}")
    return Recogniser(model, features, tokenizer, beam)
