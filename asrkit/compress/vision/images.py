"""Sets of small images as arrays, and the batches that the training loop wants.

An image counts as one second: the "hours" in which the loop counts are 3,600 images each.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from asrkit.errors import InputError
from asrkit.optional import needed

IMAGES_PER_HOUR = 3600
HELD_OUT = {"digits": 180, "mnist": 5000, "cifar10": 5000}  # images of the training set that are for validation
DIGITS_TEST = 360  # scikit-learn's digits have no test set of their own
CIFAR_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR_SHAPE = (3, 32, 32)
PICTURES = (".png", ".jpg", ".jpeg")

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class ImageConfig:
    """Which images, and how they are dealt out."""

    name: Literal["digits", "mnist", "cifar10"] = "digits"
    size: int = 32
    """Height and width given to the network: images are enlarged by a whole factor, then padded."""
    batch: int = 64
    """Images in a batch."""
    shift: int = 2
    """Most pixels by which training images are moved at random (0: not); those of CIFAR are also mirrored."""
    most: int = 0
    """Use this many of the training images only (0: all)."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ValueError(f"size must be at least 8, not {self.size}")
        if self.batch < 1 or self.shift < 0 or self.most < 0:
            raise ValueError("batch must be above 0, shift and most not below")


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W) of bytes and their labels (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Images":
        return Images(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class ImageBatch:
    """Images (N, C, H, W) from -1 to 1, their labels (N,), and their numbers in the split (N,)."""

    images: Tensor
    labels: Tensor
    numbers: Tensor
    cuts: tuple = ()  # there is no audio to be named

    @property
    def hours(self) -> float:
        return len(self.labels) / IMAGES_PER_HOUR

    def to(self, device: torch.device | str) -> "ImageBatch":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


class ImageLoader:
    """Batches of images, with the interface that the training loop wants.

    In training, images are shuffled, moved, and mirrored as a function of `seed` and the epoch, and what is left
    over after the last whole batch waits for another epoch. Otherwise all come in their order. Process `rank` of
    `world_size` gets batches rank, rank + world_size, … .
    """

    def __init__(
        self,
        data: Images,
        config: ImageConfig,
        training: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.images, self._training, self._seed = data, training, seed
        self._size, self._shift = min(config.batch, len(data.labels)), config.shift
        self._mirror = config.name == "cifar10"
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Images of an epoch, all processes together."""
        total = len(self.images.labels)
        return total - total % self._size if self._training else total

    @property
    def hours(self) -> float:
        return len(self) / IMAGES_PER_HOUR

    def epoch(self, number: int, skip: int = 0) -> Iterator[ImageBatch]:
        """Yield this process's batches of an epoch but for the first `skip`."""
        order = np.arange(len(self.images.labels))
        if self._training:
            np.random.default_rng([self._seed, number]).shuffle(order)
        starts = range(0, len(self), self._size)
        for start in starts[self._rank :: self._world_size][skip:]:
            chosen = order[start : start + self._size]
            images = self.images.images[chosen]
            if self._training:
                rng = np.random.default_rng([self._seed, number, start])
                images = _moved(images, self._shift, self._mirror, rng)
            numbers, labels = torch.from_numpy(chosen), torch.from_numpy(self.images.labels[chosen])
            yield ImageBatch(torch.from_numpy(images).float().div_(127.5).sub_(1.0), labels, numbers)


def read_images(config: ImageConfig, split: Split, folder: Path | str | None = None) -> Images:
    """Read one split of a set of images; "valid" is held out of the set's training images.

    `folder`, or else $ASRKIT_IMAGES, has `mnist/mnist.npz`; `cifar10/` with the files of the binary version or its
    archive `cifar-10-binary.tar.gz`, or `train/<class>/*.png` and `test/<class>/*.png`; or is itself such a folder.

    Raises:
        InputError: the images are not there, or damaged.
    """
    folder = _folder_of(config.name, folder)
    part = "test" if split == "test" else "train"
    data = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10}[config.name](folder, part)
    if not len(data.labels):
        raise InputError(f"{config.name}: no images of the {part} set in {folder}")
    if split != "test":
        # Files may be sorted by class, so what is held out is drawn; always the same, or it would leak.
        order = np.random.default_rng(0).permutation(len(data.labels))
        held_out = min(HELD_OUT[config.name], len(order) // 2)
        data = data[order[:held_out] if split == "valid" else order[held_out:][: config.most or None]]
    return Images(_resized(data.images, config.size), data.labels)


# Details


def _folder_of(name: str, folder: Path | str | None) -> Path | None:
    if name == "digits":
        return None
    folder = folder or os.environ.get("ASRKIT_IMAGES")
    if not folder:
        raise InputError(f"{name}: where are its images? give --images-dir or set ASRKIT_IMAGES")
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return folder / name if (folder / name).is_dir() else folder


def _digits(_folder: None, part: str) -> Images:
    data = needed("sklearn.datasets", "vision").load_digits()
    images = np.round(data.images[:, None] * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[:DIGITS_TEST] if part == "test" else order[DIGITS_TEST:]
    return Images(images, data.target.astype(np.int64))[chosen]


def _mnist(folder: Path, part: str) -> Images:
    file = folder / "mnist.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    except Exception as error:  # damage shows in any layer of zip and numpy
        raise InputError(f"{file}: damaged, or without x_{part} and y_{part}") from error
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(f"{file}: x_{part} must be bytes (N, 28, 28), y_{part} as many labels")
    return Images(images[:, None], labels.astype(np.int64))


def _cifar10(folder: Path, part: str) -> Images:
    archives = sorted(folder.glob("cifar-10-*.tar.gz"))
    if (folder / part).is_dir():
        return _pictures(folder / part)
    if archives and "binary" in archives[0].name:
        return _records(_members(archives[0], CIFAR_FILES[part]), archives[0])
    binary = next((f for f in (folder, folder / "cifar-10-batches-bin") if (f / CIFAR_FILES[part][0]).exists()), None)
    if binary is None:
        hint = "the version for Python is pickled, which could run code" if archives else "nothing of CIFAR-10 here"
        raise InputError(f"{folder}: {hint}; put cifar-10-binary.tar.gz there, or train/<class>/*.png")
    try:
        return _records([(binary / name).read_bytes() for name in CIFAR_FILES[part]], binary)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error


def _members(archive: Path, names: list[str]) -> list[bytes]:
    try:
        with tarfile.open(archive) as tar:
            return [tar.extractfile(f"cifar-10-batches-bin/{name}").read() for name in names]
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise InputError(f"{archive}: damaged: {error}") from error


def _records(parts: list[bytes], source: Path) -> Images:
    """Decode records of a byte for the class and 3 x 32 x 32 for the image."""
    size = 1 + int(np.prod(CIFAR_SHAPE))
    if any(not part or len(part) % size for part in parts):
        raise InputError(f"{source}: damaged: not a whole number of records of {size} bytes")
    records = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, size)
    if records[:, 0].max() > 9:
        raise InputError(f"{source}: damaged: a class above 9")
    return Images(records[:, 1:].reshape(-1, *CIFAR_SHAPE), records[:, 0].astype(np.int64))


def _pictures(folder: Path) -> Images:
    """Read a folder of pictures for each class, the classes in the order of their names."""
    from PIL import Image  # matplotlib brings it

    images, labels = [], []
    for label, names in enumerate(sorted(f for f in folder.iterdir() if f.is_dir())):
        for file in sorted(f for f in names.iterdir() if f.suffix.lower() in PICTURES):
            try:
                with Image.open(file) as picture:
                    images.append(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
            except OSError as error:
                raise InputError(f"{file}: not a picture, or damaged") from error
            if images[-1].shape != images[0].shape:
                raise InputError(f"{file}: not of the size of the other pictures")
            labels.append(label)
    return Images(np.array(images, np.uint8), np.array(labels, np.int64))


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Enlarge images (N, C, H, H) by the largest whole factor, or shrink them, then pad them to (N, C, size, size)."""
    side = images.shape[-1]
    inner = side * (size // side) or size
    if inner != side:
        scaled = nn.functional.interpolate(
            torch.from_numpy(images).float(), (inner, inner), mode="bilinear", antialias=inner < side
        )
        images = scaled.round_().clamp_(0, 255).byte().numpy()
    before = (size - inner) // 2
    around = (before, size - inner - before)
    return np.pad(images, ((0, 0), (0, 0), around, around))


def _moved(images: np.ndarray, shift: int, mirror: bool, rng: np.random.Generator) -> np.ndarray:
    """Move each of images (N, C, H, W) at random, black coming in at the edges, and mirror half of them."""
    number, _, height, width = images.shape
    down, right = rng.integers(0, 2 * shift + 1, (2, number))
    rows = down[:, None] + np.arange(height)  # (N, H)
    columns = right[:, None] + np.arange(width)  # (N, W)
    if mirror:
        flipped = rng.random(number) < 0.5
        columns[flipped] = columns[flipped, ::-1]
    padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift))).transpose(0, 2, 3, 1)  # (N, H, W, C)
    moved = padded[np.arange(number)[:, None, None], rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return np.ascontiguousarray(moved.transpose(0, 3, 1, 2))
