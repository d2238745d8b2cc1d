"""Fourfold reduction of the frame rate in front of every encoder."""

import torch
from torch import Tensor, nn

from asrkit.data.features import SUBSAMPLING

# Log-mel energies of speech in [-1, 1] lie around -8 with a spread of about 4. The transform is fixed, so that no
# statistics of an utterance or of a corpus are needed, in streaming least of all.
LOG_MEL_MEAN, LOG_MEL_SCALE = -8.0, 4.0


class Subsampling(nn.Module):
    """Two 3x3 convolutions of stride 2, causal up to the four frames that make one output, then a projection.

    Output frame i sees feature frames 4i-3 … 4i+3, so nothing beyond its own group of four is waited for.
    """

    def __init__(self, num_mel_bins: int, dim: int, channels: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels // 2, 3, stride=2, padding=(0, 1))
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=(0, 1))
        bins1 = (num_mel_bins + 1) // 2
        bins2 = (bins1 + 1) // 2
        self.state_sizes = ((1, 1, num_mel_bins), (channels // 2, 1, bins1))
        self.project = nn.Linear(channels * bins2, dim)
        self.norm = nn.LayerNorm(dim)

    def start(self, n: int) -> list[Tensor]:
        """Return the state before the first frame of `n` streams: the last input frame of each convolution."""
        return [self.project.weight.new_zeros(n, *size) for size in self.state_sizes]

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (N, T, F), feature_lens (N,) to (N, ceil(T/4), D), one frame if T is 0, and lengths (N,)."""
        n, frames, _ = features.shape
        missing = -frames % SUBSAMPLING if frames else SUBSAMPLING  # a click of no frames still is an utterance
        features = nn.functional.pad(features, (0, 0, 0, missing))
        inside = torch.arange(features.shape[1], device=features.device) < feature_lens[:, None]  # (N, T)
        out, _ = self.step(features, self.start(n), inside)
        return out, (feature_lens + SUBSAMPLING - 1) // SUBSAMPLING

    def step(
        self, features: Tensor, state: list[Tensor], inside: Tensor | None = None, keep: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Map the next features (N, 4c, F) of each stream to (N, c, D).

        Frames not `inside` (N, 4c) count as silence. Also returns the state after `keep` of the c frames.
        """
        x = (features - LOG_MEL_MEAN) / LOG_MEL_SCALE
        if inside is not None:
            x = x.masked_fill(~inside[:, :, None], 0.0)
        x0 = torch.cat([state[0].to(x.dtype), x[:, None]], dim=2)  # (N, 1, 1 + 4c, F)
        x1 = nn.functional.silu(self.conv1(x0))  # (N, C/2, 2c, F/2)
        x1 = torch.cat([state[1].to(x1.dtype), x1], dim=2)  # (N, C/2, 1 + 2c, F/2)
        x2 = nn.functional.silu(self.conv2(x1))  # (N, C, c, F/4)
        x2 = x2.transpose(1, 2).flatten(2)  # (N, c, C * F/4)
        keep = x2.shape[1] if keep is None else keep
        return self.norm(self.project(x2)), [x0[:, :, 4 * keep : 4 * keep + 1], x1[:, :, 2 * keep : 2 * keep + 1]]
