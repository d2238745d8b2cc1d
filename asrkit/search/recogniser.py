"""The recogniser: a trained experiment directory made into something that transcribes.

An experiment directory is self-contained: `config.yaml` describes features and model, `lang/` holds the tokenizer and
`model.pt` the weights. Nothing else is read, so it can be moved or copied as it is.
"""

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from asrkit.config import read_section
from asrkit.data.audio import stream_audio
from asrkit.data.features import Fbank, FeatureConfig, pad_features
from asrkit.errors import InputError
from asrkit.models import MODELS
from asrkit.models.checkpoint import load_weights
from asrkit.models.transducer import Transducer
from asrkit.search.beam import BeamSearch
from asrkit.search.confidence import word_confidence, word_posteriors
from asrkit.search.greedy import GreedySearch
from asrkit.search.history import Path as TokenPath
from asrkit.search.streaming import FRAME_SECONDS, Endpoint, Stream, decode_streams
from asrkit.text.tokenizer import Tokenizer, load_tokenizer
from asrkit.types import Hypothesis, NBest, Word

READ_SECONDS = 1.0  # audio read at a time from a file or a pipe
LOOKAHEAD_SECONDS = 0.32  # about a word
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
        self.only_chunk: tuple[int, int] | None = None  # size and lookahead, where the encoder takes no other

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
        stream = self.stream(str(source), endpoint=Endpoint())
        for block in chain(start, [following], blocks):
            stream.accept(block)
            while stream.ready:
                decode_streams([stream])
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

    def stream(
        self,
        name: str = "",
        chunk_size: int | None = None,
        lookahead: int | None = None,
        endpoint: Endpoint | None = None,
    ) -> Stream:
        """Return a new stream with chunks of `chunk_size` encoder frames of 40 ms.

        The last `lookahead` frames of a chunk, by default a quarter of it or, where that is less, 0.32 s but half at
        most (chosen on the validation data of egs/mini/streaming), are heard again at the start of the next one, and
        only then is what was said in them final. With 0, a word that a chunk cuts in two is decided by its first part;
        the encoder output then is that of the whole utterance under the mask of such chunks. Without an `endpoint`, all
        is one segment.

        Raises:
            InputError: the lookahead is not below the chunk size, or the encoder was made for another chunk.
        """
        size, ahead = self.only_chunk or (self.streaming_chunk, None)
        chunk_size = chunk_size or size
        if lookahead is None:
            rule = max(chunk_size // 4, min(chunk_size // 2, round(LOOKAHEAD_SECONDS / FRAME_SECONDS)))
            lookahead = rule if ahead is None else ahead
        if self.only_chunk not in (None, (chunk_size, lookahead)):
            raise InputError(
                f"chunk size {chunk_size}, lookahead {lookahead}: this encoder was compiled for {size} and {ahead}"
            )
        return Stream(self, name, chunk_size, lookahead, endpoint)

    def nbest(self, name: str, duration: float, paths: Sequence[TokenPath], most: int | None = None) -> NBest:
        """Turn the token paths of an utterance, or the `most` best, into a record with words, times and confidences."""
        spoken = [self.tokenizer.words(path.tokens) for path in paths]
        texts = [[text for text, _ in words] for words in spoken]
        posteriors = word_posteriors(texts, [path.score for path in paths], len(paths) if most is None else most)
        return NBest(name, duration, tuple(map(self._hypothesis, paths, spoken, posteriors)))

    def _hypothesis(self, path: TokenPath, spoken: list[tuple[str, range]], posteriors: list[float]) -> Hypothesis:
        times = [frame * FRAME_SECONDS for frame in path.frames]
        words = []
        for (text, span), posterior in zip(spoken, posteriors, strict=True):
            confidence = word_confidence(path.confidences[span.start : span.stop], posterior)
            words.append(Word(text, times[span[0]], times[span[-1]] + FRAME_SECONDS, confidence))
        symbols = tuple(self.tokenizer.symbols[token] for token in path.tokens)
        return Hypothesis(symbols, tuple(times), tuple(words), path.score, path.scores)


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
