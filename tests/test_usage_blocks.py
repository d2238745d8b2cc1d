"""Commands shown in Usage blocks and READMEs exist, with the options that are shown."""

import re
import shlex
from pathlib import Path

import pytest

from asrkit.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    [
        *(REPOSITORY / "asrkit/cli").glob("*.py"),
        REPOSITORY / "README.md",
        *REPOSITORY.glob("asrkit/*/README.md"),
        *REPOSITORY.glob("egs/*/*/README.md"),
    ]
)


def shown_commands() -> list[tuple[str, str]]:
    """Every `asrkit …` command line of the sources, with the file that shows it."""
    found = []
    for source in SOURCES:
        text = source.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if match := re.match(r"(?:    |[^|`#]*\| )?(asrkit [a-z].*)", line):
                found.append((source.name, match[1].partition("  #")[0]))
    return found


@pytest.mark.parametrize(("source", "line"), shown_commands())
def test_options_of_shown_commands_exist(source, line, capsys):
    words = shlex.split(line)
    command = [word for word in words[1:4] if re.fullmatch(r"[a-z][a-z-]*", word)]
    options = {word.partition("=")[0] for word in words if word.startswith("--") and "." not in word}
    for length in range(len(command), 0, -1):  # the longest prefix that is a command or subcommand
        try:
            main([*command[:length], "--help"])
        except SystemExit as stop:
            if stop.code == 0:
                break
    help_text = capsys.readouterr().out
    assert help_text, f"{source}: {line}"
    for option in options:
        assert option.replace("-", "_").replace("__", "--", 1) in help_text, f"{source}: {line}: {option}"


def test_usage_blocks_are_found():
    assert len(shown_commands()) > 15
