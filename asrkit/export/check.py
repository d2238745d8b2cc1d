"""The proof that an export says what its model says: error rates, hypotheses and speed, side by side on real speech."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from asrkit.export.onnx import Chunk
from asrkit.scoring.wer import align_all, sum_errors
from asrkit.search.recogniser import Recogniser
from asrkit.search.streaming import decode_streams

MOST_MOVED = 0.1  # points of WER by which a blessed export may differ from its model, up or down
MODEL = "asrkit"  # what the model itself is called among the contestants

Utterance = tuple[str, Tensor]  # name, samples (S,)
Transcribe = Callable[[list[Tensor]], list[str]]  # samples (S,) of some utterances to their texts


def transcriber(recogniser: Recogniser, chunk: Chunk | None) -> Transcribe:
    """Return what transcribes utterances as whole ones or, with a chunk, streams them side by side."""

    def whole(utterances: list[Tensor]) -> list[str]:
        return [result.hyps[0].text for result in recogniser.recognise(utterances, [""] * len(utterances))]

    def streamed(utterances: list[Tensor]) -> list[str]:
        streams = [recogniser.stream("", chunk.size, chunk.lookahead) for _ in utterances]
        for stream, samples in zip(streams, utterances, strict=True):
            stream.accept(samples)
            stream.close()
        while decode_streams(streams):
            pass
        return [stream.segments[0].hyps[0].text for stream in streams]

    return streamed if chunk else whole


@dataclass
class _Timed:
    """A contestant with all its results and what they cost."""

    transcribe: Transcribe
    texts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # processor time

    def run(self, batch: list[Utterance]) -> None:
        names, samples = zip(*batch, strict=True)
        start = time.process_time()
        texts = self.transcribe(list(samples))
        self.seconds += time.process_time() - start
        self.texts.update(zip(names, texts, strict=True))

    def figures(self, refs: Mapping[str, str], audio_seconds: float) -> dict[str, Any]:
        errors = sum_errors(align_all(refs, self.texts))
        return {
            "wer": errors.rate,
            "errors": errors.total,
            "words": errors.words,
            "real_time_factor": self.seconds / audio_seconds,
        }


def compare(
    contestants: Mapping[str, Transcribe], batches: Iterable[list[Utterance]], refs: Mapping[str, str], rate: int
) -> dict[str, Any]:
    """Return the JSON-ready error rates and speeds of a model and of its export on the same batches.

    Args:
        contestants: MODEL and one other, by name.
        batches: utterances at the sampling rate `rate` (Hz).
        refs: their references.

    Returns:
        Figures of each contestant by its name; "moved", the difference of their WER in points; "same", how many
        hypotheses are equal. The real-time factor is processor time over audio time, features and search included.
    """
    timed = {name: _Timed(transcribe) for name, transcribe in contestants.items()}
    audio_seconds = 0.0
    for batch in batches:
        audio_seconds += sum(len(samples) for _, samples in batch) / rate
        for contestant in timed.values():
            contestant.run(batch)
    model, export = timed[MODEL].texts, next(timed[name].texts for name in timed if name != MODEL)
    figures = {name: contestant.figures(refs, audio_seconds) for name, contestant in timed.items()}
    wer = figures.pop(MODEL)
    return {
        "utterances": len(model),
        "same": sum(model[name] == export[name] for name in model),
        "seconds_audio": audio_seconds,
        "moved": next(iter(figures.values()))["wer"] - wer["wer"],
        MODEL: wer,
        **figures,
    }
