"""Model files: `{"model": name -> tensor, …}`, written atomically and read without executing anything in them."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.errors import InputError
from asrkit.files import atomic_write

MOST_DIFFERENCES_NAMED = 3


def save_checkpoint(contents: dict[str, Any], path: Path | str) -> None:
    """Write a dictionary of tensors and plain values.

    Raises:
        InputError: the file cannot be written, for instance because the disk is full; an older file is left whole.
    """
    buffer = io.BytesIO()  # torch.save into the file itself would hide a full disk behind an unrelated RuntimeError
    torch.save(contents, buffer)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())


def save_weights(model: nn.Module, path: Path | str) -> None:
    """Write the parameters and buffers of `model`. Raises InputError as `save_checkpoint` does."""
    save_checkpoint({"model": model.state_dict()}, path)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return the contents of a checkpoint, its tensors on the CPU.

    Raises:
        InputError: the file is missing, cut short, or holds more than tensors and plain values (a pickled object of
            another kind would run code when loaded; it is refused unread).
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    try:
        with file:
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any layer of zip, pickle and torch
        raise InputError(f"{path}: not a plain model file, or a damaged one") from error
    if not isinstance(contents, dict) or not isinstance(contents.get("model"), dict):
        raise InputError(f"{path}: not a plain model file: no weights under the key 'model'")
    return contents


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Copy the weights of a model file into `model`, every one of them.

    Raises:
        InputError: as `read_checkpoint`, or the file belongs to another model.
    """
    copy_weights(model, read_checkpoint(path)["model"], path)


def copy_weights(model: nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """Copy `weights`, read from the file `source`, into `model`.

    Raises:
        InputError: names or shapes differ; names the first that do.
    """
    differences = _differences(model.state_dict(), weights)
    if differences:
        named = "; ".join(differences[:MOST_DIFFERENCES_NAMED])
        more = len(differences) - MOST_DIFFERENCES_NAMED
        raise InputError(f"{source}: weights of another model: {named}" + (f"; and {more} more" if more > 0 else ""))
    model.load_state_dict(weights)


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    lines = []
    for name, tensor in expected.items():
        if name not in found:
            lines.append(f"'{name}' is missing")
        elif not isinstance(found[name], Tensor) or found[name].shape != tensor.shape:
            lines.append(f"'{name}' is {_shape(found[name])} where the model has {_shape(tensor)}")
    return lines + [f"'{name}' is unknown to the model" for name in found if name not in expected]


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
