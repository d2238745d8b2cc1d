"""A whole utterance through a stream, and what it means that two results are the same."""

import pytest

from asrkit.search.streaming import decode_streams


def streamed(recogniser, samples, chunk_size, pieces, lookahead=0, endpoint=None):
    stream = recogniser.stream("a", chunk_size, lookahead, endpoint)
    for piece in samples.split(pieces):
        stream.accept(piece)
        while stream.ready:
            decode_streams([stream])
    return stream.finish()


def assert_same(result, other):
    """Labels and times are equal, scores but for rounding."""
    assert len(result.hyps) == len(other.hyps)
    for ours, theirs in zip(result.hyps, other.hyps, strict=True):
        assert ours.tokens == theirs.tokens
        assert (ours.token_times, ours.words) == (theirs.token_times, theirs.words)
        assert ours.score == pytest.approx(theirs.score, abs=1e-3)
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-3)
