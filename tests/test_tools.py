"""The shell tools: option parsing, set-up, and that all scripts are executable and strict."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = f"""#!/usr/bin/env bash
# Train a thing.
#
#   run.sh --stage 2

# Not part of the help.
set -euo pipefail
stage=1
stop_stage=9
hours=0.5
use_gpu=false
name="a b"
empty=
source {REPOSITORY}/tools/parse_options.sh
echo "$stage|$stop_stage|$hours|$use_gpu|$name|$empty|$#"
"""


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text(SCRIPT)

    def call(*arguments):
        return subprocess.run(["bash", script, *arguments], capture_output=True, text=True, timeout=60)

    return call


@pytest.mark.parametrize(
    "arguments, values",
    [
        ([], "1|9|0.5|false|a b||0"),
        (["--stage", "2", "--stop-stage", "-1"], "2|-1|0.5|false|a b||0"),
        (["--stop_stage", "3", "--hours", "10", "--use-gpu", "true"], "1|3|10|true|a b||0"),
        (
            ["--name", "x $(echo y) 'z'", "--empty", "1", "--stage", "2", "--stage", "4"],
            "4|9|0.5|false|x $(echo y) 'z'|1|0",
        ),
        (["--name", ""], "1|9|0.5|false|||0"),
        (["--name", "--hours 20", "--stage", "2"], "2|9|0.5|false|--hours 20||0"),
        (["--name", "--training.steps=3"], "1|9|0.5|false|--training.steps=3||0"),
    ],
)
def test_options_set_variables(run, arguments, values):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, values + "\n", "")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--stages", "2"], "unknown option '--stages'"),
        (["--PATH", "/"], "unexpected argument '--PATH'"),
        (["--name[0]", "x"], "unexpected argument '--name[0]'"),
        (["2"], "unexpected argument '2'"),
        (["--stage=2"], "unexpected argument '--stage=2'"),
        (["-s", "2"], "unexpected argument '-s'"),
        (["--stage"], "option '--stage' needs a value"),
        (["--name", "--stage"], "option '--name' needs a value"),
        (["--stage", "two"], "option '--stage' is a whole number, not 'two'"),
        (["--stop-stage", "1.5"], "option '--stop-stage' is a whole number, not '1.5'"),
        (["--use-gpu", "yes"], "option '--use-gpu' is true or false, not 'yes'"),
    ],
)
def test_wrong_options_are_named_in_one_line(run, arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--stage", "2", "--help"]])
def test_help_is_the_head_of_the_script(run, arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (0, "Train a thing.\n\n  run.sh --stage 2\n")


@pytest.fixture
def copy(tmp_path):
    """A copy of what set-up reads, with an environment whose Python records how it is called."""
    root = tmp_path / "copy"
    (root / "tools").mkdir(parents=True)
    for name in ("tools/setup.sh", "tools/constraints.txt", "setup.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, root / name)
    bin_folder = tmp_path / "env" / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("python", "asrkit"):
        (bin_folder / name).write_text('#!/bin/sh\necho "$0 $*"\n! [ -e "$(dirname "$0")/broken" ]\n')
        (bin_folder / name).chmod(0o755)
    return root


def set_up(copy, **variables):
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    environment |= {"VIRTUAL_ENV": str(copy.parent / "env"), **variables}
    return subprocess.run([copy / "tools/setup.sh"], env=environment, capture_output=True, text=True, timeout=60)


def test_setup_uses_the_active_environment_once(copy):
    done = set_up(copy)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("setup: ") and line.endswith(" s") for line in lines)
    log = (copy.parent / "env/asrkit-setup.log").read_text()
    assert log.index("torch==2.13.0") < log.index("--editable")
    assert log.count("--constraint tools/constraints.txt") == 2
    assert set_up(copy).stdout == ""
    with (copy / "tools/constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert len(set_up(copy).stdout.splitlines()) == 3


def test_setup_can_be_told_to_do_nothing(copy):
    done = set_up(copy, ASRKIT_SKIP_SETUP="1")
    assert (done.returncode, done.stdout) == (0, "") and not (copy.parent / "env/asrkit-setup.log").exists()


def test_setup_uses_conda_but_not_its_base(copy):
    active, own = copy.parent / "env", copy / ".venv"
    shutil.copytree(active, own)
    conda = {"VIRTUAL_ENV": "", "CONDA_PREFIX": str(active)}
    assert set_up(copy, **conda, CONDA_DEFAULT_ENV="base").returncode == 0
    assert (own / "asrkit-setup.stamp").exists() and not (active / "asrkit-setup.stamp").exists()
    assert set_up(copy, **conda, CONDA_DEFAULT_ENV="asr").returncode == 0
    assert (active / "asrkit-setup.stamp").exists()


def test_failed_setup_shows_its_log_and_is_repeated(copy):
    (copy.parent / "env/bin/broken").touch()
    done = set_up(copy)
    assert done.returncode == 1
    assert "setup: torch ... failed" in done.stdout and "torch==2.13.0" in done.stdout
    assert "asrkit-setup.log" in done.stderr
    (copy.parent / "env/bin/broken").unlink()
    assert len(set_up(copy).stdout.splitlines()) == 3


def test_sourcing_setup_puts_the_environment_first(copy):
    command = f"source {copy}/tools/setup.sh >/dev/null; command -v asrkit"
    environment = {**os.environ, "VIRTUAL_ENV": str(copy.parent / "env")}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(copy.parent / "env/bin/asrkit")


def test_constraints_are_versions_alone():
    lines = (REPOSITORY / "tools/constraints.txt").read_text().splitlines()
    pins = [line.partition(";")[0] for line in lines if not line.startswith("#")]
    assert all(line.count("==") == 1 and " " not in line and "/" not in line for line in pins)
    assert "torch==2.13.0" in pins


@pytest.mark.parametrize("script", [".ci/run", "tools/setup.sh", "tools/test.sh"])
def test_scripts_run_and_stop_at_the_first_error(script):
    assert os.access(REPOSITORY / script, os.X_OK)
    assert "set -euo pipefail" in (REPOSITORY / script).read_text()
