"""Imports go down only, and optional packages are never imported at module level (see the design)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "asrkit"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors", "optional", "files", "progress", "types", "config"},
    {"data", "text", "scoring", "diarisation"},
    {"nn", "lm", "fst"},
    {"losses"},
    {"models"},
    {"search"},
    {"align"},
    {"adapt"},
    {"training"},
    {"export"},
    {"serve"},
    {"compress"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FRONT_DOOR = "__init__.py"  # asrkit/__init__.py: `asrkit.load` imports lazily what it needs
OPTIONAL = {"k2", "torchaudio"}


def imported_names(tree: ast.AST, file: Path) -> list[str]:
    """Dotted names of all modules that a syntax tree imports, relative ones made absolute."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = list(file.relative_to(PACKAGE.parent).parts[: -node.level]) if node.level else []
            module = ".".join([*package, *filter(None, [node.module])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def upward_imports(file: Path, tree: ast.AST) -> list[str]:
    relative = file.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    wrong = []
    for name in imported_names(tree, file):
        parts = name.split(".")
        if parts[0] != "asrkit" or len(parts) == 1 or parts[1] == room:
            continue
        if parts[1] not in LEVEL or LEVEL[parts[1]] > LEVEL[room]:
            wrong.append(name)
        elif LEVEL[parts[1]] == LEVEL[room] > 0:  # rooms of one layer do not know each other
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file):
    if file.relative_to(PACKAGE) == Path(FRONT_DOOR):
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert file.relative_to(PACKAGE).parts[0].removesuffix(".py") in LEVEL, "a room that the order does not have"
    assert upward_imports(file, tree) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_optional_packages_are_imported_in_functions_only(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    module_level = [node for node in ast.walk(tree) if id(node) not in inside_functions]
    names = [name for node in module_level for name in _names_of(node, file)]
    assert [name for name in names if name.split(".")[0] in OPTIONAL] == []


def _names_of(node: ast.AST, file: Path) -> list[str]:
    return imported_names(ast.Module([node], []), file) if isinstance(node, (ast.Import, ast.ImportFrom)) else []


@pytest.mark.parametrize(
    "room, line, wrong",
    [
        ("data/x.py", "from asrkit.text.lexicon import read_lexicon", True),
        ("data/x.py", "import asrkit.cli", True),
        ("data/x.py", "from asrkit import models", True),
        ("data/x.py", "from ..models import transducer", True),
        ("data/x.py", "def f():\n    from asrkit.training import loop", True),
        ("errors.py", "from asrkit.data import manifests", True),
        ("lm/x.py", "from asrkit.nn import lstm", True),
        ("data/x.py", "from asrkit.errors import InputError\nfrom . import manifests", False),
        ("search/x.py", "from asrkit.models import transducer\nimport torch", False),
        ("config.py", "from asrkit.files import atomic_write", False),
    ],
)
def test_the_check_itself(room, line, wrong):
    assert bool(upward_imports(PACKAGE / room, ast.parse(line))) == wrong
