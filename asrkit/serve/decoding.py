"""One thread that decodes the streams of all clients together."""

import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import soxr
import torch

from asrkit.search.recogniser import Recogniser
from asrkit.search.streaming import Endpoint, Stream, decode_streams, partial_results
from asrkit.types import NBest

PARTIAL_SECONDS = 0.2  # a client gets a partial result at most so often


@dataclass(frozen=True)
class Update:
    """What a round of decoding has brought for one client."""

    seconds: float  # of its audio that no longer wait
    segments: list[NBest] = field(default_factory=list)  # finished ones
    partial: NBest | None = None
    finished: bool = False  # everything has been decoded
    failed: bool = False  # or will never be


@dataclass(eq=False)
class Feed:
    """The audio of one client on its way into its stream. `notify` is called in the decoding thread."""

    name: str
    rate: int  # Hz
    notify: Callable[[Update], None]
    stream: Stream | None = None
    resampler: soxr.ResampleStream | None = None
    waiting: deque[np.ndarray] = field(default_factory=deque)
    ended: bool = False  # nothing follows what waits
    partial_time: float = 0.0  # when it last got a partial result


class Decoder(threading.Thread):
    """The decoding thread. All other threads only put what they want into its inbox, and so never wait for it."""

    def __init__(self, recogniser: Recogniser, chunk_size: int | None, endpoint: Endpoint) -> None:
        super().__init__(name="decoder", daemon=True)
        self._recogniser, self._chunk_size, self._endpoint = recogniser, chunk_size, endpoint
        self._inbox: queue.SimpleQueue[tuple] = queue.SimpleQueue()  # (method, arguments…)
        self._feeds: set[Feed] = set()
        self._stopped = False

    def open(self, feed: Feed) -> None:
        self._inbox.put((self._open, feed))

    def add(self, feed: Feed, samples: np.ndarray) -> None:
        """Take the next samples (S,) at the feed's rate."""
        self._inbox.put((feed.waiting.append, samples))

    def end(self, feed: Feed) -> None:
        """No more audio comes: decode all there is."""
        self._inbox.put((setattr, feed, "ended", True))

    def drop(self, feed: Feed) -> None:
        """Forget a client; nothing happens if that is done."""
        self._inbox.put((self._feeds.discard, feed))

    def stop(self) -> None:
        """End the thread after its present round."""
        self._inbox.put((setattr, self, "_stopped", True))

    def run(self) -> None:
        while not self._stopped:
            self._read_inbox()
            self._round()

    def _read_inbox(self) -> None:
        """Do what is wanted; wait for it if there is nothing to decode."""
        wait = not any(feed.waiting or feed.ended or feed.stream.ready for feed in self._feeds)
        with suppress(queue.Empty):
            while True:
                method, *arguments = self._inbox.get(block=wait)
                method(*arguments)
                wait = False

    def _open(self, feed: Feed) -> None:
        feed.stream = self._recogniser.stream(feed.name, self._chunk_size, endpoint=self._endpoint)
        rate = self._recogniser.features.sampling_rate
        if feed.rate != rate:
            feed.resampler = soxr.ResampleStream(feed.rate, rate, 1, dtype="float32")
        self._feeds.add(feed)

    def _round(self) -> None:
        """Decode one chunk of every stream that has one, and tell all clients what is new."""
        taken = {feed: seconds for feed in list(self._feeds) if (seconds := self._fill(feed)) is not None}
        ready = [feed for feed in taken if feed.stream.ready]
        partials: dict[Feed, NBest] = {}
        if ready:
            now = time.monotonic()
            try:
                decode_streams([feed.stream for feed in ready])
                due = [feed for feed in ready if now - feed.partial_time > PARTIAL_SECONDS and not feed.stream.finished]
                for feed, result in zip(due, partial_results([feed.stream for feed in due]), strict=True):
                    partials[feed], feed.partial_time = result, now
            except Exception:
                self._fail(ready)
        for feed in self._feeds & taken.keys():
            segments, feed.stream.segments = feed.stream.segments, []
            update = Update(taken[feed], segments, partials.get(feed), feed.stream.finished)
            if update != Update(0.0):
                feed.notify(update)
            if update.finished:
                self._feeds.discard(feed)

    def _fill(self, feed: Feed) -> float | None:
        """Give a stream what waits for it until it has something to decode; return how many seconds that were."""
        samples = 0
        try:
            while feed.waiting and not feed.stream.ready:
                block = feed.waiting.popleft()
                samples += len(block)
                self._accept(feed, block)
            if feed.ended and not feed.waiting:
                self._close(feed)
        except Exception:
            self._fail([feed])
            return None
        return samples / feed.rate

    def _accept(self, feed: Feed, samples: np.ndarray, last: bool = False) -> None:
        if feed.resampler is not None:
            samples = feed.resampler.resample_chunk(samples, last)
        if len(samples):
            feed.stream.accept(torch.from_numpy(samples))

    def _close(self, feed: Feed) -> None:
        if feed.resampler is not None:
            self._accept(feed, np.zeros(0, np.float32), last=True)
        feed.stream.close()
        feed.ended = False  # the stream knows

    def _fail(self, feeds: list[Feed]) -> None:
        """Give up some streams after a defect, which goes to standard error, and keep the others."""
        traceback.print_exc()
        for feed in feeds:
            self._feeds.discard(feed)
            feed.notify(Update(0.0, failed=True))
