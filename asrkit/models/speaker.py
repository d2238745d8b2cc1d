"""Speaker embeddings: a time-delay network with statistics pooling, trained to tell speakers apart.

Frame-level layers see the recording once, however many windows overlap; an embedding needs only sums of their outputs
over its window. Source: Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP 2018; the
sums of layers follow Desplanques et al., "ECAPA-TDNN", 2005.07143, the loss Deng et al., "ArcFace", 1801.07698.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asrkit.config import read_section
from asrkit.data.features import FRAME_SHIFT, Fbank, FeatureConfig
from asrkit.models.checkpoint import load_weights

STRIDE = 2  # feature frames of a frame of the network
FIRST_KERNEL, KERNEL = 5, 3
MEAN_FRAMES = 150  # feature frames before and after each one whose mean is taken from it
DYNAMIC_RANGE = 10.0  # of the natural logarithm of energies: 43 dB
BLOCK_SECONDS = 60.0  # windows that start in the same minute are embedded together
PROTOTYPE_SCALE = 10.0
SMALLEST_VARIANCE = 1e-5


@dataclass(frozen=True)
class SpeakerConfig:
    """Size of the network and its loss; `num_mel_bins` and `speakers` follow the features and the data."""

    dim: int = 128
    """Size D of an embedding."""
    channels: int = 128
    """Outputs of the frame-level layers."""
    layers: int = 4
    """Residual layers; the n-th looks n frames of 20 ms back and ahead."""
    pooled_dim: int = 256
    """Outputs P of which mean and standard deviation over the window are taken."""
    dropout: float = 0.1
    margin: float = 0.2
    """Radians that an embedding must be nearer to its speaker than to others."""
    margin_hours: float = 4.0
    """Hours of audio over which the margin grows from 0: with all of it at the start, nothing is learnt for long."""
    scale: float = 20.0
    """Factor of the cosines in the softmax over speakers."""
    num_mel_bins: int = 80
    speakers: int = 0

    def __post_init__(self) -> None:
        if min(self.dim, self.channels, self.layers, self.pooled_dim) < 1 or self.scale <= 0:
            raise ValueError("dim, channels, layers, pooled_dim and scale must be above 0")
        if not 0 <= self.margin < 1.5:
            raise ValueError(f"margin must be from 0 to below 1.5 radians, not {self.margin}")


class SpeakerNetwork(nn.Module):
    """Frame-level layers, pooling with a weight for each frame, a linear layer, and the speakers of the training."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        padding = FIRST_KERNEL // 2
        self.first = nn.Conv1d(config.num_mel_bins, channels, FIRST_KERNEL, stride=STRIDE, padding=padding)
        self.layers = nn.ModuleList(Layer(channels, n + 1, config.dropout) for n in range(config.layers))
        self.last = nn.Conv1d(channels * (config.layers + 1), config.pooled_dim, 1)
        self.gate = nn.Conv1d(config.pooled_dim, 1, 1)
        pooled = 2 * config.pooled_dim
        # Without the two normalisations over the batch, the softmax learns next to nothing for hundreds of steps.
        self.embedding = nn.Sequential(
            nn.BatchNorm1d(pooled), nn.Linear(pooled, config.dim), nn.BatchNorm1d(config.dim)
        )
        self.speakers = nn.Parameter(torch.randn(config.speakers, config.dim) * config.dim**-0.5)

    @property
    def device(self) -> torch.device:
        return self.speakers.device

    @property
    def context(self) -> int:
        """Frames of the network on either side that a frame depends on."""
        return -(-MEAN_FRAMES // STRIDE) + FIRST_KERNEL + sum(n + 1 for n in range(self.config.layers)) * (KERNEL // 2)

    def forward(self, batch: Any, hours: float = float("inf")) -> dict[str, Tensor]:
        """Return the loss of a batch (asrkit.data.speakers.SpeakerBatch), summed over its crops, and their number.

        Each crop is to be found by the mean of its speaker's other crops among the speakers of the batch (Wan et al.,
        "Generalized end-to-end loss for speaker verification", 1710.10467, equations 6 and 8). In training the additive
        angular margin softmax over all training speakers comes on top; alone it needs several times the steps to begin
        to learn. `hours` is the amount of audio trained on so far. Keys: loss (total), prototype, softmax, weight;
        accuracy, of the prototypes.
        """
        config = self.config
        embeddings = nn.functional.normalize(self.embed(batch.features).float())
        _, present = batch.speakers.unique(return_inverse=True)
        cosines = prototype_cosines(embeddings, present)
        losses = {"prototype": nn.functional.cross_entropy(PROTOTYPE_SCALE * cosines, present, reduction="sum")}
        if self.training:
            cosines_all = embeddings @ nn.functional.normalize(self.speakers).T  # (N, K)
            margin = config.margin * min(1.0, hours / max(config.margin_hours, 1e-9))
            logits = config.scale * with_margin(cosines_all, batch.speakers, margin)
            losses["softmax"] = nn.functional.cross_entropy(logits, batch.speakers, reduction="sum")
        right = (cosines.argmax(dim=1) == present).sum()
        return {"loss": sum(losses.values()), **losses, "accuracy": right, "weight": torch.tensor(len(embeddings))}

    def embed(self, features: Tensor) -> Tensor:
        """Map features (N, T, F) of crops, each one window, to their embeddings (N, D)."""
        hidden, weights = self.frames(features)
        return self._embed(*(part.sum(dim=1) for part in _weighted(hidden, weights)))

    def embed_windows(self, features: Tensor, firsts: Tensor, ends: Tensor) -> Tensor:
        """Map features (T, F) of a recording and windows [first, end) (N,) of frames to embeddings (N, D).

        A window that holds no frame has the embedding of one frame.
        """
        hidden, weights = self.frames(features[None])
        firsts = firsts.clamp(0, hidden.shape[1] - 1)
        ends = ends.clamp(max=hidden.shape[1]).maximum(firsts + 1)
        parts = []
        for part in _weighted(hidden[0].double(), weights[0].double()):
            sums = nn.functional.pad(part.cumsum(dim=0), (0, 0, 1, 0))
            parts.append((sums[ends] - sums[firsts]).float())
        return self._embed(*parts)

    def frames(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (N, T, F) to what is pooled, (N, T / STRIDE rounded up, P), and its weights (…, 1)."""
        x = self.first(_normalise(features).transpose(1, 2))  # (N, C, T)
        outputs = [x]
        for layer in self.layers:
            outputs.append(x := layer(x))
        hidden = self.last(torch.cat(outputs, dim=1)).relu()
        # The variance is a difference of sums, of which bfloat16 would leave nothing.
        return hidden.float().transpose(1, 2), self.gate(hidden).float().sigmoid().transpose(1, 2)

    def _embed(self, total: Tensor, sums: Tensor, squares: Tensor) -> Tensor:
        """Map the sums over a window of weights (N, 1), weighted outputs and their squares (N, P) to (N, D)."""
        means = sums / total
        variances = squares / total - means.square()
        return self.embedding(torch.cat([means, variances.clamp(min=SMALLEST_VARIANCE).sqrt()], dim=1))


class Layer(nn.Module):
    """A dilated convolution over time with a residual connection."""

    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, channels, KERNEL, dilation=dilation, padding=dilation * (KERNEL // 2))
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T) to (N, C, T)."""
        return x + self.dropout(self.norm(self.convolution(x).relu()))


class SpeakerEmbedder:
    """A trained network as an embedder of windows (see asrkit.diarisation.embedding)."""

    def __init__(self, model: SpeakerNetwork, features: FeatureConfig) -> None:
        self.model, self.sampling_rate = model.eval(), features.sampling_rate
        self._fbank = Fbank(features)
        self._size = STRIDE * int(FRAME_SHIFT * features.sampling_rate + 1e-6)  # samples of a frame of the network

    @torch.inference_mode()
    def __call__(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the embeddings (N, D) of windows from `starts` to `ends` (N,), seconds, of samples (S,), S > 0.

        A window outside the samples has the embedding of what is next to it.
        """
        embeddings = np.zeros((len(starts), self.model.config.dim), np.float32)
        most = max(0, len(samples) // self._size - 1)
        firsts, lasts = (np.rint(np.asarray(t) * self.sampling_rate / self._size).astype(int) for t in (starts, ends))
        firsts, lasts = firsts.clip(0, most), lasts.clip(0, most + 1)
        blocks = firsts * self._size // round(BLOCK_SECONDS * self.sampling_rate)
        for block in np.unique(blocks):
            inside = blocks == block
            embeddings[inside] = self._embed(samples, firsts[inside], lasts[inside])
        return embeddings

    def _embed(self, samples: np.ndarray, firsts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Embed windows of frames, of the samples around them."""
        offset = max(0, firsts.min() - self.model.context)
        part = samples[offset * self._size : (ends.max() + self.model.context) * self._size]
        features = self._fbank(torch.from_numpy(np.ascontiguousarray(part, np.float32))).to(self.model.device)
        windows = (torch.from_numpy(frames - offset).to(self.model.device) for frames in (firsts, ends))
        return self.model.embed_windows(features, *windows).cpu().numpy()


def load_embedder(folder: Path | str) -> SpeakerEmbedder:
    """Load the embedder of an experiment directory.

    Raises:
        InputError: a file is missing, damaged or does not belong to this model; names it.
    """
    folder = Path(folder)
    features = read_section(folder / "config.yaml", "features", FeatureConfig)
    model = SpeakerNetwork(read_section(folder / "config.yaml", "model", SpeakerConfig))
    load_weights(model, folder / "model.pt")
    return SpeakerEmbedder(model, features)


# Details


def with_margin(cosines: Tensor, speakers: Tensor, margin: float) -> Tensor:
    """Return cosines (N, K) with the angles to the embeddings' own speakers (N,) made larger by `margin` radians."""
    own = cosines.gather(1, speakers[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    angles = (own.acos() + margin).clamp(max=torch.pi)
    return cosines.scatter(1, speakers[:, None], angles.cos())


def prototype_cosines(embeddings: Tensor, speakers: Tensor) -> Tensor:
    """Return cosines (N, K) of embeddings (N, D), of length 1, with the mean of each speaker's but that one.

    K is one more than the highest of speakers (N,); who has no other is as far as can be.
    """
    member = nn.functional.one_hot(speakers).to(embeddings.dtype)  # (N, K)
    others = (member.T @ embeddings)[None] - member[:, :, None] * embeddings[:, None]  # (N, K, D)
    present = (member.sum(dim=0) - member) > 0
    cosines = (nn.functional.normalize(others, dim=2) * embeddings[:, None]).sum(dim=2)
    return cosines.masked_fill(~present, -1.0)


def _normalise(features: Tensor) -> Tensor:
    """Raise features (N, T, F) to DYNAMIC_RANGE below the loudest near them, and take from each frame the mean there.

    Near is up to MEAN_FRAMES away. The mean is the channel's; what is so quiet is noise, or holes that MP3 leaves.
    """
    loudest = features.amax(dim=2)[:, None]  # (N, 1, T)
    loudest = nn.functional.max_pool1d(loudest, 2 * MEAN_FRAMES + 1, stride=1, padding=MEAN_FRAMES)
    features = features.maximum(loudest.transpose(1, 2) - DYNAMIC_RANGE)
    length = features.shape[1]
    sums = nn.functional.pad(features.double().cumsum(dim=1), (0, 0, 1, 0))
    times = torch.arange(length, device=features.device)
    first, end = (times - MEAN_FRAMES).clamp(min=0), (times + MEAN_FRAMES + 1).clamp(max=length)
    means = (sums[:, end] - sums[:, first]) / (end - first)[:, None]
    return features - means.to(features.dtype)


def _weighted(hidden: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights (…, 1) of frames, and with them hidden (…, P) and its squares."""
    return weights, weights * hidden, weights * hidden.square()
