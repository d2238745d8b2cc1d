"""`asrkit export`: the files and the report, and one line for what cannot be exported."""

import json

import pytest
import soundfile

from asrkit.cli.main import main
from asrkit.data.manifests import save_cuts
from asrkit.data.utterances import read_recording, utterance_cut


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, tones):
    folder = tmp_path_factory.mktemp("manifest")
    cuts = []
    for seed, seconds in enumerate((1.5, 0.7, 1.1)):
        path = folder / f"{seed}.wav"
        soundfile.write(path, (32767 * tones(seconds, seed)).short().numpy(), 16000)
        cuts.append(utterance_cut(read_recording(path, path.stem), f"u{seed}", "ab cd", "s"))
    save_cuts(cuts, folder / "test.jsonl.gz")
    return folder / "test.jsonl.gz"


def test_export_and_check(experiment, manifest, tmp_path, capsys):
    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra 'export')")
    out = tmp_path / "onnx"
    assert main(["export", "--model", str(experiment), "--out", str(out), "--check", str(manifest)]) == 0
    assert "of 3 hypotheses are the same" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "decoder.onnx",
        "encoder.onnx",
        "export.json",
        "joiner.onnx",
        "tokens.txt",
    ]
    report = json.loads((out / "export.json").read_text())
    assert report["bytes"] == {name: (out / name).stat().st_size for name in report["bytes"]}
    assert set(report["differences"]) == {"random", "speech"}
    assert max(max(found.values()) for found in report["differences"].values()) < 1e-4
    greedy, beam = report["check"]
    assert (greedy["beam"], beam["beam"]) == (1, 4)
    assert greedy["utterances"] == 3
    assert greedy["asrkit"]["words"] == greedy["sherpa_onnx"]["words"] == 6


def test_what_cannot_be_exported_is_one_line(experiment, manifest, tmp_path, capsys):
    def error(model, *options: str) -> str:
        assert main(["export", "--model", str(model), "--out", str(tmp_path / "onnx"), *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "config.yaml: No such file or directory" in error(tmp_path / "none")
    pytest.importorskip("sherpa_onnx")
    assert "none.jsonl.gz: No such file or directory" in error(experiment, "--check", str(tmp_path / "none.jsonl.gz"))
    assert not (tmp_path / "onnx").exists()


def test_other_formats_are_wrong_usage(experiment, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "--model", str(experiment), "--format", "tflite", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "format" in capsys.readouterr().err
