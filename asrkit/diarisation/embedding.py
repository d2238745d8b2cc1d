"""Speaker embeddings of short windows of speech, by any network."""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from scipy import fft, signal
from torch import Tensor, nn

from asrkit.errors import InputError
from asrkit.optional import needed

BATCH = 64  # windows
SHORTEST = 0.1  # seconds that a network hears at least
N_FFT, FRAME_SHIFT = 400, 0.01  # samples at 16 kHz, seconds: the frames of resemblyzer
LEVEL = 5e-3  # mean square of what is loud in a recording, as resemblyzer hears it best


class Embedder(Protocol):
    """A network that maps windows of one channel to vectors that are near each other for the same speaker."""

    sampling_rate: int

    def __call__(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the embeddings (N, D) float32 of windows of samples (T,) float32; starts, ends (N,) in seconds."""
        ...


def window_bounds(
    starts: np.ndarray, ends: np.ndarray, intervals: Sequence[tuple[float, float]], length: float = 1.6
) -> np.ndarray:
    """Return the window (N, 2) of each cell: `length` seconds round its middle, moved into the interval of the cell.

    In a shorter interval it is the interval. Times are seconds; intervals are in order and each cell is in one.
    """
    bounds = np.array(intervals, dtype=float).reshape(-1, 2)
    middles = (starts + ends) / 2
    first, last = bounds[np.searchsorted(bounds[:, 0], middles, side="right") - 1].T
    begin = np.minimum(np.maximum(middles - length / 2, first), np.maximum(last - length, first))
    return np.stack([begin, np.minimum(begin + length, last)], axis=1)


class OnnxEmbedder:
    """A network that maps features (N, T, F) to embeddings (N, D), as WeSpeaker and 3D-Speaker export them.

    `features` maps samples (S,) float32 to log mel energies (T, F) float32 of frames every 10 ms; their mean over the
    window is subtracted here. A network for a fixed T hears a shorter window repeated, of a longer one the beginning.

    Raises:
        InputError: the file is no such network, or onnxruntime is not installed.
    """

    def __init__(
        self, file: Path | str, features: Callable[[np.ndarray], np.ndarray], sampling_rate: int = 16000
    ) -> None:
        self.sampling_rate = sampling_rate
        self._features = features
        onnxruntime = needed("onnxruntime", "meetings")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the exceptions of onnxruntime have no other base
            raise InputError(f"{file}: not an ONNX network: {str(error).splitlines()[0]}") from error
        shapes = [entry.shape for entry in self._session.get_inputs()]
        if len(shapes) != 1 or len(shapes[0]) != 3:
            raise InputError(f"{file}: expected one input of shape (N, T, F), found {shapes}")
        self._file, self._name = file, self._session.get_inputs()[0].name
        self._batch, self._frames, self._bins = (size if isinstance(size, int) else None for size in shapes[0])

    def __call__(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        embeddings = []
        for first in range(0, len(starts), BATCH):
            windows = zip(starts[first : first + BATCH], ends[first : first + BATCH], strict=True)
            embeddings += self._embed([self._window(samples, start, end) for start, end in windows])
        return np.array(embeddings, dtype=np.float32) if embeddings else np.zeros((0, 0), dtype=np.float32)

    def _window(self, samples: np.ndarray, start: float, end: float) -> np.ndarray:
        """Return the features (T, F) of one window."""
        piece = samples[round(start * self.sampling_rate) : round(end * self.sampling_rate)]
        least = round(SHORTEST * self.sampling_rate)
        features = self._features(np.pad(piece, (0, max(0, least - len(piece)))))
        if self._bins not in (None, features.shape[1]):
            raise InputError(f"{self._file}: needs {self._bins} features a frame, not {features.shape[1]}")
        features = features - features.mean(axis=0)
        return features if self._frames is None else features[np.arange(self._frames) % len(features)]

    def _embed(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        """Return the embedding (D,) of each window (T, F); those of one length go through the network together."""
        embeddings: dict[int, np.ndarray] = {}
        lengths = np.array([len(window) for window in windows])
        for length in np.unique(lengths):
            (places,) = np.nonzero(lengths == length)
            size = self._batch or len(places)
            for first in range(0, len(places), size):
                batch = places[first : first + size]
                # A network for a fixed N gets the last window as often as it takes.
                filled = np.pad(batch, (0, size - len(batch)), mode="edge")
                inputs = np.stack([windows[place] for place in filled])
                (out, *_) = self._session.run(None, {self._name: inputs.astype(np.float32)})
                embeddings.update(zip(batch.tolist(), out, strict=False))
        return [embeddings[place] for place in range(len(windows))]


class ResemblyzerEmbedder:
    """The d-vector whose weights the package resemblyzer brings; its code is not used (Wan et al., 1710.10467).

    Three layers of LSTM over the power in 40 mel bands, and a projection of the last output.

    Raises:
        InputError: the package is not installed.
    """

    sampling_rate = 16000

    def __init__(self) -> None:
        found = find_spec("resemblyzer")
        if found is None or not found.submodule_search_locations:
            raise InputError("resemblyzer is not installed: pip install --no-deps resemblyzer")
        file = Path(found.submodule_search_locations[0]) / "pretrained.pt"
        self._network = _DVector().eval()
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
            self._network.load_state_dict({name: weights[name] for name in self._network.state_dict()})
        except (OSError, KeyError, RuntimeError) as error:
            raise InputError(f"{file}: not the weights of resemblyzer 0.1.4: {error}") from error
        self._mel = mel_filters(40, N_FFT, self.sampling_rate)

    @torch.inference_mode()
    def __call__(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        embeddings = np.zeros((len(starts), 256), dtype=np.float32)
        gain = LEVEL / max(_active_power(samples, self.sampling_rate), 1e-12)
        begins = np.round(starts / FRAME_SHIFT).astype(int)
        counts = np.maximum(np.round((ends - starts) / FRAME_SHIFT).astype(int), 1)
        for first in range(0, len(starts), BATCH):
            batch = slice(first, first + BATCH)
            # Windows overlap: each frame of theirs is computed once. A short one is filled up with what comes after it,
            # which does not reach the output at its last frame.
            frames = begins[batch, None] + np.arange(counts[batch].max())  # (N, T)
            distinct, places = np.unique(frames, return_inverse=True)
            powers = self._powers(samples, distinct)[places.reshape(frames.shape)]  # (N, T, 40)
            out = self._network(torch.from_numpy(powers * np.float32(gain)), torch.from_numpy(counts[batch]))
            embeddings[batch] = out.numpy()
        return embeddings

    def _powers(self, samples: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Return the power (n, 40) in mel bands of frames (n,) by number; frame 0 is centred at the beginning."""
        hop = round(FRAME_SHIFT * self.sampling_rate)
        places = frames[:, None] * hop + np.arange(N_FFT) - N_FFT // 2  # (n, L)
        inside = (places >= 0) & (places < len(samples))
        pieces = np.where(inside, samples[places.clip(0, len(samples) - 1)], 0)
        spectrum = fft.rfft(pieces * signal.windows.hann(N_FFT, sym=False).astype(np.float32), axis=1)
        return np.square(np.abs(spectrum)) @ self._mel


def mel_filters(bands: int, n_fft: int, rate: int) -> np.ndarray:
    """Return (n_fft // 2 + 1, bands) float32: triangles of equal area on Slaney's mel scale, from 0 Hz to rate / 2.

    The scale is linear below 1000 Hz (15 mels) and logarithmic above, where 27 mels are a factor of 6.4.
    """
    linear, step = 1000 / 15, math.log(6.4) / 27
    top = 15 + math.log(rate / 2 / 1000) / step
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(mels < 15, mels * linear, 1000 * np.exp((mels - 15) * step))
    frequencies = np.arange(n_fft // 2 + 1)[:, None] * rate / n_fft
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rise, fall = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return (np.minimum(rise, fall).clip(0) * 2 / (high - low)).astype(np.float32)


# Details


class _DVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """Map x (N, T, 40), of which the first lens (N,) frames count, to unit vectors (N, 256)."""
        out, _ = self.lstm(x)
        last = out[torch.arange(len(x)), lens - 1]
        return nn.functional.normalize(self.linear(last).relu(), dim=1)


def _active_power(samples: np.ndarray, rate: int) -> float:
    """Return the mean square of those tenths of a second of samples (T,) that are louder than the mean.

    The level is one for the recording: to amplify each window by itself amplifies noise, and forgets who is loud.
    """
    hop = min(rate // 10, len(samples))
    pieces = samples[: len(samples) // hop * hop].reshape(-1, hop)
    powers = np.einsum("ns,ns->n", pieces, pieces) / hop
    return float(powers[powers >= powers.mean()].mean())
