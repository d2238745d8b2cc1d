"""Streams beside sherpa-onnx's with the same weights: processor time, memory, words.

Usage:
    asrkit export --model exp/asr --streaming --out /tmp/onnx
    asrkit export --model exp/asr --format c --out /tmp/c
    python tools/bench/streaming.py --model exp/asr --manifest data/test.jsonl.gz --onnx /tmp/onnx --compiled /tmp/c
    python tools/bench/streaming.py --quick

Each stream gets audio in pieces of 0.1 s, one after the other's; whenever streams have a chunk, these are decoded
together and partial results are read. All on one thread of the CPU, audio to text.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

from beam_search import Task, decoding_options, prepared, random_recogniser, wer
from common import Row, absent, interleaved, load_peers, one_thread, peak_memory, report
from torch import Tensor

from asrkit.compress.export import use_encoder
from asrkit.export.sherpa import SherpaStreamer
from asrkit.search.recogniser import Recogniser, load
from asrkit.search.streaming import decode_streams, partial_results

STREAMS = (1, 10, 50)
PIECE_SECONDS = 0.1
COMPILED = "asrkit, encoder in C"

Texts = list[str]


def main() -> None:
    parser = decoding_options(__doc__)
    parser.add_argument("--compiled", type=Path, help="what asrkit export --format c made of the model")
    arguments = parser.parse_args()
    one_thread()
    report("streaming.py", list(rows(arguments)), arguments)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield time and memory for several numbers of streams."""
    quick = arguments.quick or not arguments.model
    recogniser = load(arguments.model, arguments.beam) if arguments.model else random_recogniser(arguments.beam)
    task = prepared(recogniser, arguments.manifest, 8 if quick else arguments.utterances)
    contestants: dict[str, Callable[[Task, int], Texts]] = {"asrkit": partial(ours, recogniser)}
    if arguments.compiled:
        compiled = load(arguments.model, arguments.beam)
        use_encoder(compiled, arguments.compiled)
        contestants = {COMPILED: partial(ours, compiled), **contestants}
    else:
        absent[COMPILED] = "needs --compiled"
    if "sherpa_onnx" in load_peers("sherpa_onnx"):
        if arguments.onnx:
            streamer = SherpaStreamer(arguments.onnx, recogniser.features, recogniser.tokenizer, arguments.beam)
            contestants["sherpa-onnx"] = partial(theirs, streamer)
        else:
            absent["sherpa-onnx"] = "needs --onnx"
    for n in STREAMS:
        others = {**contestants, **({"asrkit, one stream at a time": partial(alone, recogniser)} if n > 1 else {})}
        texts = {name: contestant(task, n) for name, contestant in others.items()}
        seconds = 0.1 if arguments.quick else 20.0
        times = interleaved({name: partial(run, task, n) for name, run in others.items()}, seconds)
        some = task.first(n)
        memory = {name: peak_memory(partial(run, some, n)) for name, run in contestants.items()}
        audio = 0.04 * task.frames
        for mine, peer in combinations(others, 2):
            if not mine.startswith("asrkit") or (mine == COMPILED and "one stream" in peer):
                continue
            work = f"{n} stream{'s' * (n > 1)}, beam {arguments.beam}{mine.removeprefix('asrkit')}"
            same = sum(a == b for a, b in zip(texts[mine], texts[peer], strict=True))
            rates = f"WER {wer(task, texts[mine])}, theirs {wer(task, texts[peer])}"
            result = f"{rates}; {same} of {len(task.refs)} texts equal"
            yield Row(work, peer, times[mine] / audio, times[peer] / audio, "CPU ms / s of audio", result)
            if memory.get(peer):
                yield Row(work, peer, memory[mine] / n, memory[peer] / n, "MiB / stream", result)


def ours(recogniser: Recogniser, task: Task, n: int) -> Texts:
    """Decode a task with n streams at a time."""
    texts: Texts = []
    for group in groups(task.samples, n):
        streams = [recogniser.stream() for _ in group]
        for pieces in in_pieces(group, recogniser.features.sampling_rate):
            for stream, piece in zip(streams, pieces, strict=True):
                stream.accept(piece) if len(piece) else stream.close()
            while moved := decode_streams(streams):
                partial_results(moved)
        texts += [stream.finish().hyps[0].text for stream in streams]
    return texts


def alone(recogniser: Recogniser, task: Task, _: int) -> Texts:
    """Decode a task with one stream at a time, however many there might be."""
    return ours(recogniser, task, 1)


def theirs(streamer: SherpaStreamer, task: Task, n: int) -> Texts:
    """The same in sherpa-onnx."""
    texts: Texts = []
    recognizer, rate = streamer.recognizer, streamer.sampling_rate
    for group in groups([streamer.padded(samples) for samples in task.samples], n):
        streams = [recognizer.create_stream() for _ in group]
        for pieces in in_pieces(group, rate):
            for stream, piece in zip(streams, pieces, strict=True):
                stream.accept_waveform(rate, piece.numpy()) if len(piece) else stream.input_finished()
            while moved := [stream for stream in streams if recognizer.is_ready(stream)]:
                recognizer.decode_streams(moved)
                for stream in moved:
                    recognizer.get_result(stream)
        texts += [streamer.text(recognizer.tokens(stream)) for stream in streams]
    return texts


def groups(samples: list[Tensor], n: int) -> Iterator[list[Tensor]]:
    for first in range(0, len(samples), n):
        yield samples[first : first + n]


def in_pieces(group: list[Tensor], rate: int) -> Iterator[list[Tensor]]:
    """Yield the next piece of each utterance, empty once after its end and ever after."""
    size = round(PIECE_SECONDS * rate)
    for start in range(0, max(map(len, group)) + size, size):
        yield [samples[start : start + size] for samples in group]


if __name__ == "__main__":
    main()
