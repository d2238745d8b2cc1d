"""Streams: utterances that arrive bit by bit, many of them decoded together.

    streams = [recogniser.stream(name) for name in ("a", "b")]
    streams[0].accept(samples)             # as audio comes
    decode_streams(streams)                # one chunk of each stream that has one, as one batch
    partial_results(streams)               # what has been said so far
    streams[0].close()                     # no more audio; decode_streams takes what is left

Each stream has its encoder and search states to itself, with 1 in dimension 0. A batch stacks them and takes them apart
again, so streams may come, pause and go at any time, and what one says does not depend on its company.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from asrkit.data.features import FRAME_SHIFT, SUBSAMPLING, FbankStream, heard, pad_features
from asrkit.errors import InputError
from asrkit.types import Hypothesis, NBest

if TYPE_CHECKING:
    from asrkit.search.beam import BeamSearch
    from asrkit.search.greedy import GreedySearch
    from asrkit.search.recogniser import Recogniser

FRAME_SECONDS = FRAME_SHIFT * SUBSAMPLING


@dataclass(frozen=True)
class Endpoint:
    """Where a segment of a stream ends, in seconds. A silence begins with the emission of the last label.

    Segments that are too long end in the next short pause, not within a word.
    """

    pause: float = 1.2
    """A silence that ends a segment with words."""
    longest: float = 20.0
    """A segment longer than this ends in the next short pause."""
    short_pause: float = 0.28


class Stream:
    """One utterance, or with an `endpoint` one after the other, in memory that does not grow with its length.

    `segments` are its final results, for the caller to take away: one each time that a segment ends. Times are seconds
    from the start of the stream.
    """

    def __init__(
        self, recogniser: "Recogniser", name: str, chunk_size: int, lookahead: int, endpoint: Endpoint | None
    ) -> None:
        if not 0 <= lookahead < chunk_size:
            raise InputError(f"lookahead {lookahead}: must be from 0 to {chunk_size - 1}, below the chunk size")
        self.recogniser, self.name, self.endpoint = recogniser, name, endpoint
        self.chunk_size, self.lookahead = chunk_size, lookahead
        self.segments: list[NBest] = []
        self.closed = self.finished = False
        self._samples = 0
        self._waiting: list[Tensor] = []  # samples that have no features yet, and how many they are
        self._num_waiting = 0
        self._fbank = FbankStream(recogniser.features)
        self._features = torch.zeros(0, recogniser.features.num_mel_bins)  # not final yet
        self._encoder_state = recogniser.model.encoder.start(1)
        self._search_state = recogniser.search.start(1)
        # Of the frames that are not final yet: encoder output (1, lookahead, D), and which are heard (1, lookahead).
        self._lookahead: tuple[Tensor, Tensor] | None = None
        self._segment_start = 0  # encoder frames

    def accept(self, samples: Tensor) -> None:
        """Take the next samples (S,), float in [-1, 1] at the model's sampling rate."""
        if self.closed:
            raise ValueError(f"stream '{self.name}' is closed")
        self._samples += samples.shape[0]
        self._num_waiting += samples.shape[0]
        self._waiting.append(samples)
        # Features are computed for a chunk at once: those of 0.1 s cost as much as those of a second.
        missing = self.chunk_size * SUBSAMPLING - self._features.shape[0]
        rate = self.recogniser.features.sampling_rate
        if self._num_waiting >= missing * FRAME_SHIFT * rate:
            self._take(self._fbank.accept(torch.cat(self._waiting)))

    def close(self) -> None:
        """Say that no more audio comes."""
        if not self.closed:
            if self._waiting:
                self._take(self._fbank.accept(torch.cat(self._waiting)))
            self._take(self._fbank.flush())
            self.closed = True

    @property
    def ready(self) -> bool:
        """Whether `decode_streams` has something to do."""
        return not self.finished and (self.closed or self._features.shape[0] >= self.chunk_size * SUBSAMPLING)

    @property
    def duration(self) -> float:
        """Seconds of audio received."""
        return self._samples / self.recogniser.features.sampling_rate

    def finish(self) -> NBest:
        """Close the stream, decode what is left of it and return all its segments that have not been taken, as one."""
        self.close()
        while self.ready:
            decode_streams([self])
        segments, self.segments = self.segments, []
        return joined(segments)

    def _take(self, features: Tensor) -> None:
        self._features, self._waiting, self._num_waiting = torch.cat([self._features, features]), [], 0

    def _next_chunk(self) -> Tensor:
        return self._features[: self.chunk_size * SUBSAMPLING]

    def _is_last(self) -> bool:
        """Whether the next chunk is all that is left."""
        return self.closed and len(self._features) <= self.chunk_size * SUBSAMPLING

    def _end_segment(self, paths: list, frame: int) -> None:
        """End the segment before encoder frame `frame`, and begin the next one."""
        ends = self.duration if self.finished else frame * FRAME_SECONDS
        self.segments.append(self.recogniser.nbest(self.name, ends, paths))
        self._search_state = self.recogniser.search.start(1)
        self._search_state.frames += frame
        self._segment_start = frame

    def _at_endpoint(self, frame: int, last_label: int | None) -> bool:
        """Whether the segment ends before encoder frame `frame`, if its last label so far is at frame `last_label`."""
        if self.endpoint is None or last_label is None:
            return False
        too_long = (frame - self._segment_start) * FRAME_SECONDS >= self.endpoint.longest
        silence = (frame - 1 - last_label) * FRAME_SECONDS
        return silence >= (self.endpoint.short_pause if too_long else self.endpoint.pause)


@torch.inference_mode()
def decode_streams(streams: Sequence[Stream]) -> list[Stream]:
    """Decode one chunk of each stream that is ready, as one batch, and return those streams.

    They belong to one recogniser and have the same chunk size and lookahead.
    """
    streams = [stream for stream in streams if stream.ready]
    if not streams:
        return []
    recogniser, size, lookahead = streams[0].recogniser, streams[0].chunk_size, streams[0].lookahead
    if any((s.recogniser, s.chunk_size, s.lookahead) != (recogniser, size, lookahead) for s in streams):
        raise ValueError("streams of one batch must have the same recogniser, chunk size and lookahead")
    search, final = recogniser.search, size - lookahead
    features, inside = _next_chunks(streams)
    chunk_frames = features.shape[1] // SUBSAMPLING
    lens = torch.tensor([-(-len(s._next_chunk()) // SUBSAMPLING) if s._is_last() else final for s in streams])  # (N,)

    state = search.stack([stream._search_state for stream in streams])
    encoder_out, frames_heard = features.new_zeros(len(streams), 0, 0), inside[:, ::SUBSAMPLING]
    if chunk_frames:
        # A stream that ends has no use for its state, whatever its last chunk keeps.
        encoder_out = _encode(streams, features, inside, keep=min(final, chunk_frames))
        _advance(search, state, encoder_out, lens, frames_heard)
    last_labels = search.last_labels(state)
    for i, (stream, part) in enumerate(zip(streams, search.unstack(state), strict=True)):
        frame = int(part.frames)
        stream.finished = stream._is_last()
        stream._search_state = part
        stream._features = stream._features[int(lens[i]) * SUBSAMPLING :].clone()
        following = (slice(i, i + 1), slice(final, None))
        stream._lookahead = None if stream.finished else (encoder_out[following].clone(), frames_heard[following])
        if stream.finished or stream._at_endpoint(frame, last_labels[i]):
            stream._end_segment(search.hypotheses(part)[0], frame)
    return streams


def _next_chunks(streams: Sequence[Stream]) -> tuple[Tensor, Tensor]:
    """Return the features (N, 4c, F) of the next chunk of each stream, and which of them are audio (N, 4c)."""
    features, feature_lens = pad_features([stream._next_chunk() for stream in streams])
    features = torch.nn.functional.pad(features, (0, 0, 0, -features.shape[1] % SUBSAMPLING))
    frames = torch.arange(features.shape[1])
    # A model may never have heard digital silence, as of a muted microphone, and say anything to it. Behind the end is
    # none: there the last frame goes on.
    last_frames = frames.minimum((feature_lens[:, None] - 1).clamp(min=0))  # (N, 4c)
    audible = heard(features.gather(1, last_frames[..., None].expand_as(features)))
    device = streams[0].recogniser.model.device
    return features.to(device), (audible & (frames < feature_lens[:, None])).to(device)


def _encode(streams: Sequence[Stream], features: Tensor, inside: Tensor, keep: int) -> Tensor:
    """Take the encoders of streams through the chunks of `_next_chunks` and return encoder_out (N, T, D)."""
    encoder = streams[0].recogniser.model.encoder
    if not encoder.batched:
        rows = []
        for stream, *chunk in zip(streams, features.split(1), inside.split(1), strict=True):
            out, stream._encoder_state = encoder.step(chunk[0], stream._encoder_state, chunk[1], keep)
            rows.append(out)
        return torch.cat(rows)
    state = [torch.cat(parts) for parts in zip(*(stream._encoder_state for stream in streams), strict=True)]
    encoder_out, state = encoder.step(features, state, inside, keep)
    for i, stream in enumerate(streams):
        stream._encoder_state = [x[i : i + 1].clone() for x in state]
    return encoder_out


def _advance(
    search: "BeamSearch | GreedySearch", state: Any, encoder_out: Tensor, lens: Tensor, frames_heard: Tensor
) -> None:
    """Let a search consume lens (N,) frames of encoder_out (N, T, D); those not heard (N, T) pass without a label."""
    lens = lens.to(encoder_out.device)
    inside = torch.arange(encoder_out.shape[1], device=lens.device) < lens[:, None]
    counted = inside & frames_heard
    if torch.equal(counted, inside):
        search.advance(state, encoder_out, lens)
        return
    numbers = (~counted).int().argsort(dim=1, stable=True)  # those that count come first
    rows = torch.arange(len(lens), device=lens.device)[:, None]
    frames = state.frames + lens
    search.advance(state, encoder_out[rows, numbers], counted.sum(dim=1), numbers)
    state.frames = frames


@torch.inference_mode()
def partial_results(streams: Sequence[Stream]) -> list[NBest]:
    """Return the best hypothesis of each stream's unfinished segment, its lookahead included.

    `duration` is the audio that it is based on, in seconds.
    """
    if not streams:
        return []
    recogniser = streams[0].recogniser
    state = recogniser.search.stack([stream._search_state for stream in streams])
    begun = [stream._lookahead for stream in streams if stream._lookahead is not None]
    if begun:
        nothing = tuple(torch.zeros_like(x) for x in begun[0])
        parts = [stream._lookahead or nothing for stream in streams]
        out, frames_heard = (torch.cat(x) for x in zip(*parts, strict=True))
        lens = torch.tensor([0 if stream._lookahead is None else stream.lookahead for stream in streams])
        _advance(recogniser.search, state, out, lens, frames_heard)
    return [
        recogniser.nbest(stream.name, min(stream.duration, frames * FRAME_SECONDS), paths, most=1)
        for stream, frames, paths in zip(
            streams, state.frames.tolist(), recogniser.search.hypotheses(state, final=False), strict=True
        )
    ]


def joined(segments: Sequence[NBest]) -> NBest:
    """Return consecutive segments of a stream as one result: of several with words, the best hypothesis of each."""
    spoken = [segment for segment in segments if segment.hyps[0].tokens] or segments[-1:]
    if len(spoken) == 1:
        return replace(spoken[0], duration=segments[-1].duration)
    best = [segment.hyps[0] for segment in spoken]
    scores: dict[str, float] = {}
    for hyp in best:
        for name, score in hyp.scores.items():
            scores[name] = scores.get(name, 0.0) + score
    hyp = Hypothesis(
        tokens=tuple(token for hyp in best for token in hyp.tokens),
        token_times=tuple(time for hyp in best for time in hyp.token_times),
        words=tuple(word for hyp in best for word in hyp.words),
        score=sum(hyp.score for hyp in best),
        scores=scores,
    )
    return NBest(segments[-1].utterance, segments[-1].duration, (hyp,))
