"""Padding and batch size change nothing; streaming equals the chunk-masked full pass."""

import pytest
import torch

from asrkit.nn.encoders import ENCODERS, EncoderConfig, chunk_mask


def build(kind: str, **options):
    torch.manual_seed(0)
    config = EncoderConfig(kind=kind, dim=32, layers=3, heads=4, feedforward_dim=64, kernel_size=5, **options)
    return ENCODERS[kind](config, num_mel_bins=20).eval()


def features(*lens: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(len(lens), max(lens), 20) * 4 - 8


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("chunk_size", [0, 4])
def test_padding_and_batch_change_nothing(kind, chunk_size):
    encoder = build(kind)
    x, lens = features(83, 40, 61), torch.tensor([83, 40, 61])
    out, out_lens = encoder(x, lens, chunk_size)
    assert out_lens.tolist() == [21, 10, 16]
    x[1, 40:] = 1e3  # whatever stands in the padding
    for i, length in enumerate(lens.tolist()):
        alone, alone_lens = encoder(x[i : i + 1, :length], lens[i : i + 1], chunk_size)
        torch.testing.assert_close(alone[0], out[i, : alone_lens[0]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(("chunk_size", "left_context"), [(1, 4), (4, 8), (8, 8), (3, 0)])
def test_streaming_equals_masked_full_pass(kind, chunk_size, left_context):
    encoder = build(kind, left_context=left_context)
    x = features(96, 96)
    expected, _ = encoder(x, torch.tensor([96, 96]), chunk_size)
    state, chunks = encoder.start(2), []
    for first in range(0, 96, 4 * chunk_size):
        out, state = encoder.step(x[:, first : first + 4 * chunk_size], state)
        chunks.append(out)
    torch.testing.assert_close(torch.cat(chunks, dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_streams_are_stacked_by_indexing_states(kind):
    """Two streams that started at different times give the same in one batch as each alone."""
    encoder = build(kind, left_context=8)
    x = features(64, 64)
    _, early = encoder.step(x[:1, :16], encoder.start(1))
    stacked = [torch.cat(pair) for pair in zip(early, encoder.start(1), strict=True)]
    both, _ = encoder.step(torch.cat([x[:1, 16:32], x[1:, :16]]), stacked)
    torch.testing.assert_close(both[:1], encoder.step(x[:1, 16:32], early)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1:], encoder.step(x[1:, :16], encoder.start(1))[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_last_chunk_beside_longer_ones(kind):
    """A stream that ends within a chunk gives the same beside others as alone."""
    encoder = build(kind, left_context=8)
    x = features(32, 32)
    lens = torch.tensor([32, 13])
    inside = torch.arange(32) < lens[:, None]
    both, _ = encoder.step(x, encoder.start(2), inside)
    alone, _ = encoder.step(x[1:, :16], encoder.start(1), inside[1:, :16])
    torch.testing.assert_close(both[1:, :4], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_state_before_the_lookahead(kind):
    """Frames after the first `keep` do not count for the next chunk but as what those kept have attended to."""
    encoder = build(kind, left_context=8)
    x = features(48, 48)
    out, state = encoder.step(x[:, :32], encoder.start(2), keep=6)
    short, expected = encoder.step(x[:, :24], encoder.start(2))
    assert [part.shape for part in state] == [part.shape for part in expected]
    # Up to the Conformer's first keys and values nothing has heard the lookahead.
    causal = slice(None) if kind == "lstm" else slice(4)
    for ours, theirs in zip(state[causal], expected[causal], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    if kind == "lstm":
        torch.testing.assert_close(out[:, :6], short, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_gradient_of_a_padded_batch_is_finite(kind):
    encoder = build(kind).train()
    out, _ = encoder(features(80, 7), torch.tensor([80, 7]), 4)
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_chunk_mask_by_hand():
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert chunk_mask(5, 2, 1, torch.device("cpu")).int().tolist() == expected


def test_heads_must_divide_dim():
    with pytest.raises(ValueError, match="encoder.heads"):
        EncoderConfig(dim=30, heads=4)
