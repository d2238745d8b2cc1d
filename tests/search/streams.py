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
    """Labels, words and times are equal, scores and confidences but for rounding."""
    assert len(result.hyps) == len(other.hyps)
    for ours, theirs in zip(result.hyps, other.hyps, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.token_times == theirs.token_times
        for word, other in zip(ours.words, theirs.words, strict=True):
            assert (word.text, word.start, word.end) == (other.text, other.start, other.end)
            assert word.confidence == pytest.approx(other.confidence, abs=1e-3)
        assert ours.score == pytest.approx(theirs.score, abs=1e-3)
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-3)
