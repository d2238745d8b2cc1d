"""An exported transducer in sherpa-onnx, beside the recogniser that it was exported from."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from asrkit.data.features import FeatureConfig
from asrkit.export.onnx import FILES, needed
from asrkit.scoring.wer import align_all, sum_errors
from asrkit.search.recogniser import Recogniser
from asrkit.text.tokenizer import WORD_START, Tokenizer

Utterance = tuple[str, Tensor]  # name, samples (S,)


class SherpaRecogniser:
    """sherpa-onnx on an exported directory, on one thread.

    Args:
        folder: what `asrkit.export.onnx.export_onnx` wrote.
        features: those of the model; sherpa-onnx computes the same.
        tokenizer: that of the model, to read the tokens of the result.
        beam: hypotheses kept by the beam search ("modified_beam_search"); 1 is the greedy search.

    Raises:
        InputError: sherpa-onnx is not installed.
    """

    def __init__(self, folder: Path, features: FeatureConfig, tokenizer: Tokenizer, beam: int = 4) -> None:
        self.recognizer = needed("sherpa_onnx").OfflineRecognizer.from_transducer(
            *(str(folder / name) for name in (*FILES, "tokens.txt")),
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
        return [self.tokenizer.decode([self.ids[token] for token in stream.result.tokens]) for stream in streams]


@dataclass
class _Timed:
    """A recogniser with all its results and what they cost."""

    transcribe: Callable[[list[Tensor]], list[str]]
    texts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # processor time

    def run(self, batch: list[Utterance]) -> None:
        names, samples = zip(*batch, strict=True)
        start = time.process_time()
        texts = self.transcribe(list(samples))
        self.seconds += time.process_time() - start
        self.texts.update(zip(names, texts, strict=True))

    def figures(self, refs: dict[str, str], audio_seconds: float) -> dict[str, Any]:
        errors = sum_errors(align_all(refs, self.texts))
        return {
            "wer": errors.rate,
            "errors": errors.total,
            "words": errors.words,
            "real_time_factor": self.seconds / audio_seconds,
        }


def compare(
    recogniser: Recogniser, folder: Path, batches: Iterable[list[Utterance]], refs: dict[str, str], beam: int
) -> dict[str, Any]:
    """Return the JSON-ready error rate and speed of a recogniser and of its export in sherpa-onnx, on the same batches.

    The real-time factor is processor time over audio time, features and search included.

    sherpa-onnx chooses among the hypotheses of its beam by the score a token, asrkit by the score, so a few utterances
    may differ; those of the greedy search do not.
    """
    ours = Recogniser(recogniser.model, recogniser.features, recogniser.tokenizer, beam)
    theirs = SherpaRecogniser(folder, recogniser.features, recogniser.tokenizer, beam)
    contestants = {
        "asrkit": _Timed(lambda samples: [r.hyps[0].text for r in ours.recognise(samples, [""] * len(samples))]),
        "sherpa_onnx": _Timed(theirs.transcribe),
    }
    audio_seconds = 0.0
    for batch in batches:
        audio_seconds += sum(len(samples) for _, samples in batch) / recogniser.features.sampling_rate
        for contestant in contestants.values():
            contestant.run(batch)
    texts = [contestant.texts for contestant in contestants.values()]
    same = sum(texts[0][name] == texts[1][name] for name in texts[0])
    figures = {name: contestant.figures(refs, audio_seconds) for name, contestant in contestants.items()}
    return {"beam": beam, "utterances": len(texts[0]), "same": same, "seconds_audio": audio_seconds, **figures}
