"""`asrkit bench`: the table, the file of figures, and engines that are missing."""

import json
import sys

import pytest

from asrkit.cli.main import main


def run(*options) -> int:
    return main(["bench", *map(str, options)])


def test_models_and_engines(experiment, classifier, tmp_path, capsys):
    file = tmp_path / "new" / "bench.json"
    assert run("--model", classifier, experiment, "--engines", "torch", "c", "--json", file) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "engine", "ms", "speed", "difference", "from", "torch"]
    contestants = [[str(model), engine] for model in (classifier, experiment) for engine in ("torch", "c")]
    assert [line.split()[:2] for line in lines] == contestants
    assert lines[0].split()[3] == "1.00"
    figures = json.loads(file.read_text())
    assert {"command", "git", "machine", "rows"} == set(figures)
    for row, contestant in zip(figures["rows"], contestants, strict=True):
        assert [row["model"], row["engine"]] == contestant
        assert row["milliseconds"] > 0 and row["difference"] < 1e-4


def test_engines_that_are_missing_are_left_out(classifier, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run("--model", classifier, "--engines", "onnxruntime", "torch") == 0
    captured = capsys.readouterr()
    assert f"{classifier}: not in onnxruntime: onnxruntime is not installed" in captured.err
    assert len(captured.out.splitlines()) == 2
    assert run("--model", classifier, "--engines", "onnxruntime") == 1
    assert "no engine runs any of the models" in capsys.readouterr().err


def test_what_cannot_be_measured_is_one_line(tmp_path, capsys):
    assert run("--model", tmp_path / "none") == 1
    assert "config.yaml: No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        run("--model", tmp_path, "--engines", "tensorrt")
    assert stop.value.code == 2
