"""YAML files and `--dotted.name value` overrides to frozen dataclasses, every mistake named with its file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from asrkit.errors import InputError
from asrkit.files import atomic_write

Config = TypeVar("Config")


def read_config(cls: type[Config], files: Sequence[Path | str] = (), overrides: dict[str, Any] | None = None) -> Config:
    """Build `cls`, a dataclass, from YAML files (later ones win) and then `overrides` (dotted name -> value).

    Raises:
        InputError: a file is missing or no YAML mapping, a key is unknown, a value has the wrong type.
    """
    trees = [(str(file), read_yaml(Path(file))) for file in files]
    if overrides:
        trees.append(("command line", overrides))
    return _build(cls, trees)


def read_section(file: Path | str, section: str, cls: type[Config]) -> Config:
    """Build `cls` from the mapping under the top-level key `section` of a YAML file; other sections are not read."""
    tree = read_yaml(Path(file))
    if section not in tree:
        raise InputError(f"{file}: no section '{section}'")
    return _build(cls, [(f"{file}: {section}", tree[section] or {})])


def write_config(config: Any, file: Path | str) -> None:
    """Write a dataclass as YAML that `read_config` reads back to an equal one."""
    with atomic_write(file) as out:
        yaml.safe_dump(_plain(dataclasses.asdict(config)), out, sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_yaml(file: Path) -> dict[str, Any]:
    """Return what a YAML file maps names to. Raises InputError if it is missing or no such mapping."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not YAML: {_one_line(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{file}: expected a mapping of names to values, found {type(tree).__name__}")
    return tree


def _build(cls: type[Config], trees: list[tuple[str, dict[str, Any]]]) -> Config:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, None)
    namespace = parser.get_defaults()
    for source, tree in trees:
        try:
            namespace = parser.parse_object(tree, namespace=namespace)
        except (ArgumentError, TypeError, ValueError) as error:
            raise InputError(f"{source}: {_one_line(error)}") from error
    try:
        return cls(**vars(parser.instantiate(namespace)))
    except ValueError as error:  # a check across fields in __post_init__
        raise InputError(f"{trees[-1][0] if trees else cls.__name__}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
