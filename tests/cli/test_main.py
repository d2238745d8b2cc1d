import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from asrkit.cli import main as cli
from asrkit.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Settings of the example.

    Args:
        width: beam width.
    """

    width: int = 4


def example(
    files: list[Path], *, model: Path, by: list[str] | None = None, live: bool = False, s: Settings = Settings()
):
    """Do the example.

    Args:
        files: what to read.
        model: the directory.
        by: some attributes.
        live: at once.
    """
    return files, model, by, live, s


def test_run_reads_positionals_lists_flags_and_nested_settings():
    got = cli.run(example, "a.wav b.wav --model exp --by speaker domain --live --s.width 8".split())
    assert got == ([Path("a.wav"), Path("b.wav")], Path("exp"), ["speaker", "domain"], True, Settings(8))
    assert cli.run(example, "--model exp --live a.wav".split())[0] == [Path("a.wav")]  # a flag takes no value
    assert cli.run(example, "--model exp a.wav".split())[2:] == (None, False, Settings())
    assert cli.run({"one": {"two": example}}, "one two --model exp a.wav".split())[1] == Path("exp")


def test_a_sequence_has_its_default_or_the_words_given():
    def sets(*, of: Sequence[str] = ("a", "b")):
        """Name the sets."""
        return of

    assert cli.run(sets, []) == ["a", "b"] and cli.run(sets, ["--of", "c"]) == ["c"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("a.wav", "model"),
        ("--model exp", "files"),
        ("a.wav --model exp --modle x", "--modle"),
        ("a.wav --model exp --s.width wide", "wide"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, problem, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(example, arguments.split())
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1
    assert problem in lines[0] and lines[0].startswith("asrkit test_main: ")


def test_help_has_docstrings(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(example, ["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(part in text for part in ("Do the example.", "what to read", "some attributes", "at once", "beam width"))


@pytest.fixture
def command(monkeypatch):
    """Put a function in the place of `asrkit score`."""

    def install(function):
        monkeypatch.setattr("asrkit.cli.score.main", function)

    return install


def test_outcomes_become_exit_statuses(command, capsys):
    def fails_with(error):
        def fail(_argv):
            raise error

        return fail

    command(lambda argv: None)
    assert cli.main(["score"]) == 0
    command(fails_with(InputError("data/x: line 3:\n broken")))
    assert cli.main(["score"]) == 1
    assert capsys.readouterr().err == "asrkit score: data/x: line 3: broken\n"
    command(fails_with(KeyboardInterrupt()))
    assert cli.main(["score"]) == 130
    command(fails_with(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["score"])


def test_unknown_command_lists_the_known(capsys):
    assert cli.main(["scroe"]) == 2
    assert cli.main([]) == 2
    errors = capsys.readouterr().err
    assert "'scroe'" in errors and all(name in errors for name in cli.COMMANDS)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from asrkit.cli.main import main; assert main(['--help']) == 0; "
        "print(sorted({'torch', 'lhotse', 'jsonargparse', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    assert all(f"  {name} " in output for name in cli.COMMANDS)


def test_closed_pipe_is_quiet():
    code = (
        "import sys, asrkit.cli.score as score; from asrkit.cli.main import main; "
        "score.main = lambda argv: [print('x' * 1000) for _ in range(1000)]; sys.exit(main(['score']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_the_recorded_command_names_data_folders_as_the_environment_does(monkeypatch):
    monkeypatch.setenv("ASRKIT_CORPORA", "/data/corpora/")
    monkeypatch.delenv("ASRKIT_IMAGES", raising=False)
    monkeypatch.setattr(sys, "argv", ["asrkit", "diarise", "/data/corpora/ami/a.wav", "--out", "/data/corporal"])
    assert cli.command_line() == "asrkit diarise $ASRKIT_CORPORA/ami/a.wav --out /data/corporal"
