"""Packages that only some uses of asrkit need."""

import importlib
from types import ModuleType

from asrkit.errors import InputError


def needed(module: str, extra: str) -> ModuleType:
    """Import a module of an extra of asrkit.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module.partition('.')[0]} is not installed: pip install 'asrkit[{extra}]'") from error
