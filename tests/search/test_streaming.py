"""Streams: chunks are the masked whole, company and partial results change nothing, segments end in silences."""

import math
import random

import pytest
import torch
from streams import assert_same, streamed
from tiny_models import DIM, bigram, search_all, tiny_model

from asrkit.errors import InputError
from asrkit.search.beam import BeamSearch
from asrkit.search.greedy import GreedySearch
from asrkit.search.streaming import FRAME_SECONDS, Endpoint, decode_streams, joined, partial_results

# Seconds of audio whose features are 4n, 4n + 1, 4n + 2, 4n + 3 frames, one encoder frame, or end inside a frame.
LENGTHS = (2.4, 2.41, 1.22, 0.83, 0.04, 1.7771)


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
def test_a_stream_is_the_whole_with_masked_attention(recogniser, tones, seen, chunk_size):
    draw = random.Random(chunk_size)
    for seed, seconds in enumerate(LENGTHS):
        samples = tones(seconds, seed)
        whole = recogniser.recognise([samples], ["a"], chunk_size)[0]
        (encoder_out,) = seen
        assert len(encoder_out) == math.ceil(len(recogniser.fbank(samples)) / 4)
        sizes = []
        while (rest := len(samples) - sum(sizes)) > 0:
            sizes.append(min(rest, draw.randrange(1, 6000)))
        seen.clear()
        result = streamed(recogniser, samples, chunk_size, sizes)
        assert_same(result, whole)
        assert all(len(chunk) == chunk_size for chunk in seen[:-1])
        torch.testing.assert_close(torch.cat(seen), encoder_out, atol=1e-4, rtol=0)  # to the very last frame
        seen.clear()


@pytest.mark.parametrize("lookahead", [0, 3])
def test_streams_of_one_batch_do_not_know_each_other(recogniser, tones, lookahead):
    """Streams that begin, pause and end at any time, in any company, say what each says alone."""
    draw = random.Random(lookahead)
    samples = [tones(seconds, seed) for seed, seconds in enumerate((*LENGTHS, 0.0, 4.0))]
    streams = [recogniser.stream(str(seed), 8, lookahead) for seed in range(len(samples))]
    left = [list(part.split(2000)) for part in samples]
    together = []
    while not all(stream.finished for stream in streams):
        for stream, pieces in zip(streams, left, strict=True):
            for _ in range(draw.randrange(5)):  # none, or several at once
                stream.accept(pieces.pop(0)) if pieces else stream.close()
                if stream.closed:
                    break
        together.append(len(decode_streams(streams)))
        partial_results([stream for stream in streams if draw.random() < 0.5])
    assert max(together) > 3
    for stream, part in zip(streams, samples, strict=True):
        (result,) = stream.segments
        assert_same(result, streamed(recogniser, part, 8, 2000, lookahead))
        assert result.duration == len(part) / 16000


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_partial_results_come_as_soon_as_a_chunk_is_there(recogniser, tones, chunk_size):
    samples = tones(2.4)
    stream = recogniser.stream("a", chunk_size, lookahead=0)
    partial = []
    for i, piece in enumerate(samples.split(1600), start=1):
        stream.accept(piece)
        while decode_streams([stream]):
            pass
        (result,) = partial_results([stream])
        # A feature frame needs the 12.5 ms after its begin, and an encoder frame four of them.
        chunks = int((0.1 * i - 0.0075) / (FRAME_SECONDS * chunk_size) + 1e-6)
        assert result.duration == pytest.approx(chunks * chunk_size * FRAME_SECONDS)
        assert max(result.hyps[0].token_times, default=-1) < result.duration
        partial.append(result)
    assert any(result.hyps[0].tokens for result in partial[:8])
    assert_same(stream.finish(), streamed(recogniser, samples, chunk_size, len(samples)))


@pytest.mark.parametrize("lookahead", [1, 3, 7])
def test_lookahead_is_heard_twice_and_emitted_once(recogniser, tones, seen, lookahead):
    """However the audio comes, every frame is final once, and looking at partial results changes nothing."""
    samples = tones(3.03)
    frames = len(recogniser.recognise([samples], ["a"]) and seen.pop())
    expected = streamed(recogniser, samples, 8, len(samples), lookahead)
    assert sum(len(chunk) for chunk in seen) == frames
    stream = recogniser.stream("a", 8, lookahead)
    heard = 0.0
    for piece in samples.split(3000):
        stream.accept(piece)
        while decode_streams([stream]):
            (partial,) = partial_results([stream])
            heard += (8 if heard == 0 else 8 - lookahead) * FRAME_SECONDS
            assert partial.duration == pytest.approx(heard)  # the lookahead is part of it
    assert_same(stream.finish(), expected)


def test_lookahead_must_be_within_the_chunk(recogniser):
    with pytest.raises(InputError, match="lookahead 8: must be from 0 to 7"):
        recogniser.stream("a", 8, lookahead=8)


def test_a_stream_holds_one_chunk_whatever_its_length(recogniser, tones):
    def held(stream) -> int:
        buffers = [stream._features, stream._fbank._samples, *stream._encoder_state]
        return sum(tensor.untyped_storage().nbytes() for tensor in buffers)

    stream = recogniser.stream(lookahead=0)
    sizes = []
    for seed in range(17):  # of 100 feature frames, so that what is left over from chunks of 32 comes back after 8
        stream.accept(tones(1.0, seed))
        while decode_streams([stream]):
            pass
        sizes.append(held(stream))
    assert sizes[9:] == sizes[1:9]


def test_what_a_stream_must_not_do(recogniser, tones):
    stream, other = recogniser.stream(), recogniser.stream(chunk_size=4)
    stream.close()
    other.close()
    with pytest.raises(ValueError, match="closed"):
        stream.accept(tones(0.1))
    with pytest.raises(ValueError, match="same recogniser"):
        decode_streams([stream, other])


def talk_and_silence(tones) -> torch.Tensor:
    """Three stretches of tones with 0.9 s and 1.8 s of silence between."""
    return torch.cat([tones(1.3, 1), torch.zeros(14400), tones(2.0, 2), torch.zeros(28800), tones(0.9, 3)])


@pytest.mark.parametrize("lookahead", [0, 2])
def test_nothing_is_said_to_digital_silence(recogniser, tones, lookahead):
    """What follows a silence keeps its time, in partial results too."""
    stream = recogniser.stream("a", 4, lookahead)
    partial_times = set()
    for piece in talk_and_silence(tones).split(1600):
        stream.accept(piece)
        while decode_streams([stream]):
            partial_times |= set(partial_results([stream])[0].hyps[0].token_times)
    times = stream.finish().hyps[0].token_times
    for found in (times, partial_times):
        assert not any(1.34 < time < 2.14 or 4.24 < time < 5.94 for time in found)
        assert all(any(start < time < end for time in found) for start, end in ((0, 1.3), (2.2, 4.2), (6.0, 6.9)))


@pytest.mark.parametrize("pause, segments", [(0.6, 3), (1.2, 2), (3.0, 1)])
@pytest.mark.parametrize("lookahead", [0, 2])
def test_segments_end_in_silences(recogniser, tones, pause, segments, lookahead):
    samples = talk_and_silence(tones)
    stream = recogniser.stream("a", 4, lookahead, Endpoint(pause=pause))
    found = []
    for piece in samples.split(1600):
        stream.accept(piece)
        while decode_streams([stream]):
            found += stream.segments
            stream.segments.clear()
            assert len(partial_results([stream])[0].hyps) >= 1
    stream.close()
    while decode_streams([stream]):
        pass
    found += stream.segments
    assert len(found) == segments and all(segment.hyps[0].tokens for segment in found)
    ends = [segment.duration for segment in found]
    assert ends[-1] == pytest.approx(len(samples) / 16000)
    starts = [0.0, *ends[:-1]]
    for segment, start, end in zip(found, starts, ends, strict=True):
        times = segment.hyps[0].token_times
        assert start <= times[0] and times[-1] < end  # seconds from the start of the stream
        assert end == ends[-1] or end - times[-1] >= pause
    whole = joined(found)
    assert whole.duration == ends[-1]
    assert whole.hyps[0].tokens == sum((segment.hyps[0].tokens for segment in found), ())
    assert whole.hyps[0].score == pytest.approx(sum(segment.hyps[0].score for segment in found))


def test_a_segment_too_long_ends_in_a_short_pause(recogniser, tones):
    stream = recogniser.stream("a", 4, 0, Endpoint(pause=9.0, longest=1.0, short_pause=0.3))
    stream.accept(talk_and_silence(tones))
    while decode_streams([stream]):
        pass
    ends = [segment.duration for segment in stream.segments]
    assert len(ends) >= 2 and 4 < ends[-1] < 5.2  # in the second silence, of 1.8 s
    for segment, start, end in zip(stream.segments, [0.0, *ends], ends, strict=False):
        assert end - start >= 1.0
        assert 0.3 <= end - segment.hyps[0].token_times[-1] < 0.6


def test_joined_segments_of_which_one_has_words(recogniser, tones):
    """Silence at the end does not cost the N-best list."""
    samples = torch.cat([tones(1.3, 1), torch.zeros(48000)])
    result = streamed(recogniser, samples, 4, 1600, 0, Endpoint(pause=1.0))
    alone = streamed(recogniser, samples, 4, 1600, 0)
    assert result.duration == alone.duration == pytest.approx(4.3)
    assert [hyp.tokens for hyp in result.hyps] == [hyp.tokens for hyp in alone.hyps]
    assert len(result.hyps) == recogniser.search.beam if isinstance(recogniser.search, BeamSearch) else 1


@pytest.mark.parametrize("topology", ["regular", "modified"])
@pytest.mark.parametrize("greedy", [True, False])
def test_stacked_and_unstacked_states(topology, greedy):
    """After each frame the utterances are taken apart and put together in another order."""
    model = tiny_model("lstm", seed=2, topology=topology)
    options = {"scorers": [(bigram(), 0.3)], "internal_lm_weight": -0.2}
    search = GreedySearch(model) if greedy else BeamSearch(model, beam=3, **options)
    torch.manual_seed(0)
    encoder_out = torch.randn(3, 12, DIM)
    expected = search_all(search, encoder_out)
    states = search.unstack(search.start(3))
    draw = random.Random(0)
    for t in range(12):
        order = draw.sample(range(3), 3)
        state = search.stack([states[i] for i in order])
        search.advance(state, encoder_out[order, t : t + 1], torch.ones(3, dtype=torch.int64))
        labels = search.last_labels(state)
        for i, part, last in zip(order, search.unstack(state), labels, strict=True):
            states[i] = part
            best = max(search.hypotheses(part, final=False)[0], key=lambda path: path.score)
            assert last == (best.frames[-1] if best.frames else None)
    for state, paths in zip(states, expected, strict=True):
        (found,) = search.hypotheses(state)
        assert [(path.tokens, path.frames) for path in found] == [(path.tokens, path.frames) for path in paths]
        assert [path.score for path in found] == pytest.approx([path.score for path in paths], abs=1e-4)
        for one, other in zip(found, paths, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
