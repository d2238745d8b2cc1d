"""A model and its export side by side."""

import pytest
import torch

from asrkit.export.check import MODEL, compare, transcriber


def test_figures():
    refs = {"a": "one two three four", "b": "five six seven eight nine ten"}
    ours = {1: "one two three four", 2: "five six seven eight nine zero"}
    theirs = {1: "one two three", 2: "five six seven eight nine zero"}
    batches = [[("a", torch.zeros(1))], [("b", torch.zeros(2))]]
    contestants = {
        MODEL: lambda samples: [ours[len(x)] for x in samples],
        "export": lambda samples: [theirs[len(x)] for x in samples],
    }
    figures = compare(contestants, batches, refs, rate=10)
    assert (figures["utterances"], figures["same"]) == (2, 1)
    assert figures["seconds_audio"] == pytest.approx(0.3)
    assert figures["moved"] == pytest.approx(10.0)
    assert (figures[MODEL]["wer"], figures["export"]["wer"]) == (pytest.approx(10.0), pytest.approx(20.0))
    assert (figures["export"]["errors"], figures["export"]["words"]) == (2, 10)
    assert figures["export"]["real_time_factor"] > 0


def test_transcriber_of_whole_utterances_and_of_streams(recogniser, chunk, tones):
    utterances = [tones(seconds, seed) for seed, seconds in enumerate((1.1, 2.4, 0.03))]
    whole, streamed = (transcriber(recogniser, some)(utterances) for some in (None, chunk))
    assert whole == [recogniser.recognise([x], [""])[0].hyps[0].text for x in utterances]
    streams = [recogniser.stream("", chunk.size, chunk.lookahead) for _ in utterances]
    for stream, samples in zip(streams, utterances, strict=True):
        stream.accept(samples)
    assert streamed == [stream.finish().hyps[0].text for stream in streams]
    assert whole != streamed
