"""Streaming-capable encoders: a Conformer with chunk-wise attention and causal convolution, and a small LSTM.

Conformer: Gulati et al., "Conformer: Convolution-augmented Transformer for Speech Recognition", 2005.08100.
Chunk-wise attention with a chunk size drawn anew each batch: Zhang et al., "Unified Streaming and Non-streaming
Two-pass End-to-end Model", 2012.05481. Rotary positions: Su et al., "RoFormer", 2104.09864.

Every encoder maps `forward(features (N, T, F), feature_lens (N,), chunk_size)` to `(encoder_out (N, T', D), lens (N,))`
and streams by `state = start(N)` and `step(features (N, 4c, F), state)`. States are lists of tensors with the stream in
dimension 0, so streams are stacked and selected with plain indexing. What stands for an encoder and is not `batched`
gains nothing by that.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from asrkit.data.features import SUBSAMPLING
from asrkit.nn.subsampling import Subsampling


@dataclass(frozen=True)
class EncoderConfig:
    """Size and context of the encoder; frames are encoder frames of 40 ms."""

    kind: Literal["conformer", "lstm"] = "conformer"
    dim: int = 144
    layers: int = 4
    heads: int = 4
    feedforward_dim: int = 576
    kernel_size: int = 9
    """Frames of the causal depthwise convolution."""
    subsampling_channels: int = 32
    dropout: float = 0.1
    chunk_sizes: tuple[int, ...] = (0, 16)
    """Drawn from in training, one a batch; 0 is the whole utterance. The last one is the streaming default."""
    left_context: int = 64
    """Frames before its chunk that a frame attends to when streaming."""

    def __post_init__(self) -> None:
        if self.kind == "conformer" and (self.dim % self.heads or self.dim // self.heads % 2):
            raise ValueError(f"encoder.dim {self.dim} must be an even multiple of encoder.heads {self.heads}")
        if not self.chunk_sizes or min(self.chunk_sizes) < 0:
            raise ValueError("encoder.chunk_sizes needs at least one size, none negative")


def rotate(x: Tensor, first: int) -> Tensor:
    """Apply rotary positions `first`, `first` + 1, … to x (N, H, T, d) (2104.09864, eq. 34)."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(first, first + x.shape[2], device=x.device)[:, None] * frequencies  # (T, d/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    x = x.contiguous()  # a third of the time, and the product with it wants it anyway
    swapped = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return torch.addcmul(x * cos.repeat(1, 2), swapped, torch.cat([-sin, sin], dim=-1))


def chunk_mask(frames: int, chunk_size: int, left_context: int, device: torch.device) -> Tensor:
    """Return (T, T) booleans: may frame i attend to frame j, with chunks of `chunk_size` (0: everything)?"""
    position = torch.arange(frames, device=device)
    if chunk_size == 0:
        return torch.ones(frames, frames, dtype=torch.bool, device=device)
    start = position // chunk_size * chunk_size
    return (position >= (start - left_context)[:, None]) & (position < (start + chunk_size)[:, None])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention of q (N, H, T, d) to k and v (N, H, S, d) under mask (N, 1, T, S).

    Written out on the CPU, where the gradient of the fused kernel takes six times as long (torch 2.13).
    """
    if q.is_cuda:
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)  # (N, H, T, S)
    return scores.masked_fill(~mask, -1e4).softmax(dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; the state holds the keys and values of the left context."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.left_context = config.heads, config.left_context
        self.norm = nn.LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def start(self, n: int) -> list[Tensor]:
        return [self.out.weight.new_zeros(n, self.left_context, 2 * self.out.in_features)]

    def forward(
        self, x: Tensor, mask: Tensor, cache: Tensor | None = None, keep: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend from x (N, T, D) to `cache` (N, L, 2D) and x under `mask` (N, 1, T, L + T).

        Returns the output (N, T, D) and the cache (N, L, 2D) after the first `keep` frames.

        Keys are cached without their rotation: positions count from the oldest cached frame, so they stay small however
        long the stream, and only differences of positions matter.
        """
        n, frames, dim = x.shape
        q, kv = self.qkv(self.norm(x)).split([dim, 2 * dim], dim=-1)
        if cache is not None:
            kv = torch.cat([cache.to(kv.dtype), kv], dim=1)
        past = kv.shape[1] - frames
        k, v = kv.view(n, -1, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)  # each (N, H, L + T, d)
        q = q.view(n, frames, self.heads, -1).transpose(1, 2)  # (N, H, T, d)
        out = attend(rotate(q, past), rotate(k, 0), v, mask)
        end = past + (frames if keep is None else keep)
        return self.out(out.transpose(1, 2).flatten(2)), kv[:, end - self.left_context : end]


class Convolution(nn.Module):
    """Gated causal depthwise convolution of the Conformer; the state holds the last K - 1 gated frames."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, config.kernel_size, groups=dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)

    def start(self, n: int) -> list[Tensor]:
        return [self.out.weight.new_zeros(n, self.depthwise.kernel_size[0] - 1, self.out.in_features)]

    def forward(self, x: Tensor, cache: Tensor, keep: int | None = None) -> tuple[Tensor, Tensor]:
        """Map x (N, T, D) and the frames before it, cache (N, K - 1, D), to the output and the cache after `keep`."""
        keep = x.shape[1] if keep is None else keep
        x, gate = self.gate(self.norm(x)).chunk(2, dim=-1)
        x = x * gate.sigmoid()
        x = torch.cat([cache.to(x.dtype), x], dim=1)  # (N, K - 1 + T, D)
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)  # (N, T, D)
        return self.out(nn.functional.silu(self.inner_norm(y))), x[:, keep : keep + cache.shape[1]]


def feedforward(config: EncoderConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(config.dim),
        nn.Linear(config.dim, config.feedforward_dim),
        nn.SiLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.feedforward_dim, config.dim),
    )


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward (2005.08100, figure 1)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.feedforward1 = feedforward(config)
        self.attention = Attention(config)
        self.convolution = Convolution(config)
        self.feedforward2 = feedforward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self, x: Tensor, mask: Tensor, kv: Tensor | None, conv: Tensor, keep: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x + 0.5 * self.dropout(self.feedforward1(x))
        y, kv = self.attention(x, mask, kv, keep)
        x = x + self.dropout(y)
        y, conv = self.convolution(x, conv, keep)
        x = x + self.dropout(y)
        x = x + 0.5 * self.dropout(self.feedforward2(x))
        return self.norm(x), kv, conv


class Conformer(nn.Module):
    """State: [processed frames (N,), two of the subsampling, then keys-and-values and convolution of each layer]."""

    batched = True

    def __init__(self, config: EncoderConfig, num_mel_bins: int) -> None:
        super().__init__()
        self.config = config
        self.subsampling = Subsampling(num_mel_bins, config.dim, config.subsampling_channels)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.layers))

    def forward(self, features: Tensor, feature_lens: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Encode whole utterances; attention sees chunks of `chunk_size` frames.

        None means one of the configured sizes at random in training, and the whole utterance otherwise.
        """
        x, lens = self.subsampling(features, feature_lens)
        if chunk_size is None:
            sizes = self.config.chunk_sizes
            chunk_size = sizes[int(torch.randint(len(sizes), ()))] if self.training else 0
        inside = torch.arange(x.shape[1], device=x.device) < lens[:, None]  # (N, T)
        mask = chunk_mask(x.shape[1], chunk_size, self.config.left_context, x.device)
        # A padded frame attends to its own chunk whatever it holds: an empty row would give NaN.
        mask = (mask & inside[:, None, :]) | ~inside[:, :, None]
        for layer in self.layers:
            x, _, _ = layer(x, mask[:, None], None, layer.convolution.start(x.shape[0])[0])
        return x, lens

    def start(self, n: int) -> list[Tensor]:
        """Return the state of `n` streams before their first frame."""
        state = [torch.zeros(n, dtype=torch.int64, device=self.layers[0].norm.weight.device)]
        state += self.subsampling.start(n)
        for layer in self.layers:
            state += layer.attention.start(n) + layer.convolution.start(n)
        return state

    def step(
        self, features: Tensor, state: list[Tensor], inside: Tensor | None = None, keep: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode one chunk, features (N, 4c, F), to (N, c, D).

        Its frames attend to each other and to the left context. Frames not `inside` (N, 4c), at the end of an
        utterance, count as silence. The state is that after the first `keep` of the c frames (all by default): those
        that follow are heard again in the next chunk.
        """
        processed = state[0]
        x, new_state = self.subsampling.step(features, state[1:3], inside, keep)
        new_state = [processed + (x.shape[1] if keep is None else keep), *new_state]
        left = self.config.left_context
        seen = torch.arange(-left, x.shape[1], device=x.device) >= -processed[:, None]  # (N, L + c)
        if inside is not None:
            seen = torch.cat([seen[:, :left], seen[:, left:] & inside[:, ::SUBSAMPLING]], dim=1)
        mask = seen[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for i, layer in enumerate(self.layers):
            x, kv, conv = layer(x, mask, state[3 + 2 * i], state[4 + 2 * i], keep)
            new_state += [kv, conv]
        return x, new_state


class LstmEncoder(nn.Module):
    """Stacked LSTM after the same subsampling; causal, so the chunk size changes nothing.

    State: [two of the subsampling, hidden (N, layers, D), cell (N, layers, D)].
    """

    batched = True

    def __init__(self, config: EncoderConfig, num_mel_bins: int) -> None:
        super().__init__()
        self.config = config
        self.subsampling = Subsampling(num_mel_bins, config.dim, config.subsampling_channels)
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=config.dropout)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, features: Tensor, feature_lens: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
        x, lens = self.subsampling(features, feature_lens)
        x, _ = self.lstm(x)
        return self.norm(x), lens

    def start(self, n: int) -> list[Tensor]:
        size = (n, self.config.layers, self.config.dim)
        return self.subsampling.start(n) + [self.norm.weight.new_zeros(size) for _ in ("hidden", "cell")]

    def step(
        self, features: Tensor, state: list[Tensor], inside: Tensor | None = None, keep: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        x, new_state = self.subsampling.step(features, state[:2], inside, keep)
        hidden, cell = (s.transpose(0, 1).contiguous() for s in state[2:])
        final, lookahead = x[:, :keep], x[:, x.shape[1] if keep is None else keep :]
        final, (hidden, cell) = self.lstm(final, (hidden, cell))
        if lookahead.shape[1]:
            lookahead, _ = self.lstm(lookahead, (hidden, cell))
        x = torch.cat([final, lookahead], dim=1)
        return self.norm(x), [*new_state, hidden.transpose(0, 1), cell.transpose(0, 1)]


ENCODERS = {"conformer": Conformer, "lstm": LstmEncoder}
