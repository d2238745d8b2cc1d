"""`asrkit decode`: transcribe audio.

Usage:
    asrkit decode --model exp/asr a.wav talks/ data/test.jsonl.gz     # files, folders, manifests, Kaldi directories
    asrkit decode --model exp/asr --streaming microphone
    asrkit decode --model exp/asr --streaming --compiled exp/asr/c microphone    # see asrkit export --format c
    arecord -f S16_LE -r 16000 | asrkit decode --model exp/asr --streaming -
    asrkit decode --model exp/asr --out exp/asr/decode/test data/test.jsonl.gz
    asrkit decode --model exp/asr --fusion fusion.yaml --context names.txt a.wav    # see asrkit/search/fusion.py
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from lhotse.cut import Cut
from torch import Tensor
from tqdm import tqdm

from asrkit.cli.main import command_line, run
from asrkit.compress.export import use_encoder
from asrkit.data.audio import is_audio, read_cut, stream_audio
from asrkit.data.corpora.kaldi import is_kaldi_directory, read_kaldi_directory
from asrkit.data.formats import FORMATS, nbest_writer, read_nbest, write_lines
from asrkit.data.manifests import is_manifest, load_cuts
from asrkit.data.microphone import stream_microphone
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.progress import progress
from asrkit.search.fusion import fuse, read_fusion
from asrkit.search.recogniser import LONG_SECONDS, READ_SECONDS, Recogniser, load
from asrkit.search.streaming import Endpoint, Stream, decode_streams, joined, partial_results
from asrkit.types import NBest

MICROPHONE = "microphone"
LIVE = ("-", MICROPHONE)  # sources that somebody is waiting for
LIVE_SECONDS = 0.1  # audio read from them at a time
WINDOW = 64  # utterances sorted by length together, so that batches waste little and results come in order
BATCH_SECONDS = 240.0  # padded audio a batch


def decode(
    inputs: list[str],
    *,
    model: Path,
    out: Path | None = None,
    format: Literal["text", "json", "ctm", "srt", "nbest"] = "text",
    beam: int = 4,
    fusion: Path | None = None,
    context: Path | None = None,
    streaming: bool = False,
    chunk_size: int | None = None,
    lookahead: int | None = None,
    compiled: Path | None = None,
    threads: int | None = None,
    bf16: bool = False,
) -> None:
    """Transcribe audio files, folders of them, manifests, Kaldi data directories, the microphone ("microphone"), or
    16-bit PCM at the model's rate on standard input ("-").

    A file that cannot be read is reported and left out; the exit status then is 1.

    Args:
        inputs: what to transcribe.
        model: experiment directory.
        out: directory for nbest.jsonl, text, ctm, decode.json (speed) and, when streaming, partials.jsonl (what was
            known when), instead of printing.
        format: what is printed.
        beam: hypotheses kept by the search; 1 is greedy search.
        fusion: YAML file with language models and their weights.
        context: phrases to prefer, one a line, in place of those of the fusion file.
        streaming: decode chunk by chunk, many files together, or show the partial results of one after the other.
        chunk_size: encoder frames (40 ms) in a chunk when streaming; the model's own by default.
        lookahead: encoder frames at the end of a chunk that the next one may revise; by default a quarter of the chunk,
            or more of a short one.
        compiled: what `asrkit export --format c` made of the model, whose encoder then takes the place of the model's
            own, with its chunks: faster, the same to rounding, on one thread.
        threads: processor threads; all by default.
        bf16: compute in bfloat16 where autocast deems it safe: faster on hardware that has instructions for it.
    """
    for name, value in {"beam": beam, "chunk-size": chunk_size, "threads": threads}.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be positive")
    if threads is not None:
        torch.set_num_threads(threads)
    if compiled and not streaming:
        raise InputError("--compiled: needs --streaming")
    recogniser = load(model, beam)
    if compiled:
        use_encoder(recogniser, compiled)
    weights = {}
    if fusion or context:
        config = read_fusion(fusion, context)
        fuse(recogniser, config)
        weights = config.weights
    if streaming:  # fills in the defaults, which decode.json tells
        stream = recogniser.stream("", chunk_size, lookahead)
        chunk_size, lookahead = stream.chunk_size, stream.lookahead
    else:
        chunk_size = None
    job = _Job(recogniser, chunk_size, lookahead, interactive=out is None, fusion=weights, bf16=bf16)
    sources = [source for name in inputs for source in _sources(name)]
    with nbest_writer(out / "nbest.jsonl") if out else nullcontext(_printer(format)) as write:
        results = job.results(sources)
        for result in progress(results, "decoding", len(sources), "utt") if out else results:
            write(result)
    if out:
        results = list(read_nbest(out / "nbest.jsonl"))
        write_lines(map(FORMATS["text"], results), out / "text")
        write_lines(filter(None, map(FORMATS["ctm"], results)), out / "ctm")
        if streaming:
            write_lines((json.dumps(p, ensure_ascii=False) for p in job.partials), out / "partials.jsonl")
        with atomic_write(out / "decode.json") as file:
            json.dump(job.summary(), file, indent=2)
    if job.failed:
        sys.exit(1)


@dataclass(eq=False)
class _Feed:
    """A source on its way through a stream, and when which partial result was there: seconds of audio, words."""

    source: str | Cut
    stream: Stream
    blocks: Iterator[Tensor]
    partials: list[tuple[float, str]] = field(default_factory=list)

    def note(self, partial: NBest) -> bool:
        """Add a partial result; tell whether it is news."""
        segments = [segment.hyps[0].text for segment in self.stream.segments]
        text = " ".join(filter(None, [*segments, partial.hyps[0].text]))
        news = text != (self.partials[-1][1] if self.partials else "")
        if news:
            self.partials.append((round(partial.duration, 3), text))
        return news


@dataclass
class _Job:
    """One run of the command: results in the order of the sources, with what they cost."""

    recogniser: Recogniser
    chunk_size: int | None  # None: not streaming
    lookahead: int | None
    interactive: bool  # the results are printed
    fusion: dict[str, float]  # weights of the language models
    bf16: bool
    failed: int = 0  # sources that could not be read
    audio_seconds: float = 0.0
    seconds: float = 0.0
    partials: list[dict] = field(default_factory=list)  # of each source, when streaming

    @property
    def window(self) -> int:
        """Sources that are decoded together."""
        return 1 if self.shows_partials else WINDOW

    @property
    def shows_partials(self) -> bool:
        return self.chunk_size is not None and self.interactive

    def results(self, sources: list[str | Cut]) -> Iterator[NBest]:
        """Yield the result of each source that can be read; report the others on standard error."""
        remaining = iter(sources)
        while window := list(islice(remaining, self.window)):
            start = time.perf_counter()
            with torch.autocast(self.recogniser.model.device.type, torch.bfloat16, enabled=self.bf16):
                if self.window == 1 and window[0] in LIVE:
                    yield from self._live(window[0])
                    continue
                results = self._window(window)
            self.seconds += time.perf_counter() - start
            self.audio_seconds += sum(result.duration for result in results)
            yield from results

    def summary(self) -> dict:
        return {
            "command": command_line(),
            "beam": getattr(self.recogniser.search, "beam", 1),
            "fusion": self.fusion,
            "chunk_size": self.chunk_size,
            "lookahead": self.lookahead,
            "together": self.window,
            "threads": torch.get_num_threads(),
            "bf16": self.bf16,
            "seconds_audio": round(self.audio_seconds, 2),
            "real_time_factor": round(self.seconds / max(self.audio_seconds, 1e-9), 5),
        }

    def _window(self, sources: list[str | Cut]) -> list[NBest]:
        found: dict[int, NBest] = {}
        short: list[tuple[int, str, Tensor]] = []
        streamed: dict[int, str | Cut] = {}
        for position, source in enumerate(sources):
            try:
                if self.chunk_size is not None or (isinstance(source, Cut) and source.duration > LONG_SECONDS):
                    streamed[position] = source
                elif isinstance(source, str):
                    found[position] = self.recogniser.transcribe(source)
                else:
                    short.append((position, source.id, read_cut(source, self.recogniser.features.sampling_rate)))
            except InputError as error:
                self._report(error)
        for batch in _batches(short, BATCH_SECONDS * self.recogniser.features.sampling_rate):
            positions, names, samples = zip(*batch, strict=True)
            found.update(zip(positions, self.recogniser.recognise(list(samples), list(names)), strict=True))
        feeds = {self._feed(source): position for position, source in streamed.items()}
        for feed in self._streamed(list(feeds)):
            if feed.stream.finished:
                found[feeds[feed]] = result = joined(feed.stream.segments)
                self.partials.append({"utterance": result.utterance, "partials": feed.partials})
        return [found[position] for position in sorted(found)]

    def _live(self, source: str) -> Iterator[NBest]:
        """Yield the segments of an endless source as they come."""
        for feed in self._streamed([self._feed(source)]):
            segments, feed.stream.segments = feed.stream.segments, []
            yield from (segment for segment in segments if segment.hyps[0].tokens)

    def _feed(self, source: str | Cut) -> _Feed:
        rate, name = self.recogniser.features.sampling_rate, source if isinstance(source, str) else source.id
        stream = self.recogniser.stream(name, self.chunk_size, self.lookahead, Endpoint())
        return _Feed(source, stream, _blocks(source, rate))

    def _streamed(self, feeds: list[_Feed]) -> Iterator[_Feed]:
        """Take sources through their streams together, and yield those that moved on, each time that they do."""
        while feeds:
            feeds = [feed for feed in feeds if self._fill(feed)]
            of_stream = {feed.stream: feed for feed in feeds}
            while moved := decode_streams([feed.stream for feed in feeds]):
                for stream, partial in zip(moved, partial_results(moved), strict=True):
                    feed = of_stream[stream]
                    if feed.note(partial) and self.shows_partials:
                        print(f"{partial.utterance} {partial.duration:.2f}s: {feed.partials[-1][1]}", file=sys.stderr)
                    yield feed
            feeds = [feed for feed in feeds if not feed.stream.finished]

    def _fill(self, feed: _Feed) -> bool:
        """Give a stream its next audio, or close it; tell whether the source could be read."""
        try:
            block = next(feed.blocks, None)
        except KeyboardInterrupt:  # the end of what is spoken into a microphone or a pipe
            if feed.source not in LIVE:
                raise
            block = None
        except InputError as error:
            self._report(error)
            return False
        if block is None:
            feed.stream.close()
        else:
            feed.stream.accept(block)
        return True

    def _report(self, error: InputError) -> None:
        self.failed += 1
        tqdm.write(f"asrkit decode: {error}", file=sys.stderr)  # clear of the progress bar


def _printer(format: str) -> Callable[[NBest], None]:
    def write(result: NBest) -> None:
        if text := FORMATS[format](result):  # an utterance without words has no line in CTM
            print(text, flush=True)

    return write


def _blocks(source: str | Cut, rate: int) -> Iterator[Tensor]:
    """Yield the audio of a source, a stretch at a time."""
    if source == MICROPHONE:
        yield from stream_microphone(rate, LIVE_SECONDS)
    elif isinstance(source, str):
        yield from stream_audio(source, rate, LIVE_SECONDS if source in LIVE else READ_SECONDS)
    else:
        yield from _cut_blocks(source, rate)


def _cut_blocks(cut: Cut, rate: int) -> Iterator[Tensor]:
    for number in range(math.ceil(cut.num_samples / (LONG_SECONDS * cut.sampling_rate))):
        yield read_cut(cut.truncate(offset=number * LONG_SECONDS, duration=LONG_SECONDS), rate)


def _batches(items: Iterable[tuple[int, str, Tensor]], most: float) -> Iterator[list[tuple[int, str, Tensor]]]:
    """Group utterances of similar length so that no batch has more than `most` samples, padding included."""
    batch: list[tuple[int, str, Tensor]] = []
    for item in sorted(items, key=lambda item: len(item[2])):
        if batch and len(item[2]) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _sources(name: str) -> list[str | Cut]:
    """Return the audio files or cuts that a word of the command line stands for."""
    if name in LIVE:
        return [name]
    path = Path(name)
    if is_manifest(path):
        return list(load_cuts(path))
    if not path.is_dir():
        return [name]
    if is_kaldi_directory(path):
        return list(read_kaldi_directory(path))
    files = sorted(str(file) for file in path.rglob("*") if is_audio(file))
    if not files:
        raise InputError(f"{path}: no audio files in this folder")
    return files


def main(argv: list[str]) -> None:
    run(decode, argv)
