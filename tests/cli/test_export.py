"""`asrkit export`: the files and the report, exports that are refused, and one line for what cannot be exported."""

import json
import shutil

import pytest
import soundfile
import torch
from lhotse.utils import fastcopy
from torch import nn

from asrkit.cli import export as module
from asrkit.cli import export_images as images_module
from asrkit.cli.main import main
from asrkit.compress.engines import in_torch
from asrkit.data.manifests import load_cuts, save_cuts
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.export.check import MODEL
from asrkit.export.onnx import Chunk
from asrkit.models.transducer import Transducer
from asrkit.search.recogniser import load

ONNX_FILES = ["README.md", "decoder.onnx", "encoder.onnx", "export.json", "joiner.onnx", "tokens.txt"]
UNKNOWN = 1


@pytest.fixture(scope="module")
def needs_sherpa_onnx():
    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra 'export')")


@pytest.fixture(scope="module")
def experiment(experiment, tmp_path_factory):
    """The experiment, but it never says <unk>: sherpa-onnx does not, and no trained model does."""
    folder = tmp_path_factory.mktemp("model") / "experiment"
    shutil.copytree(experiment, folder)
    weights = torch.load(folder / "model.pt", weights_only=True)
    weights["model"]["joiner.output.bias"][UNKNOWN] = -100.0
    torch.save(weights, folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, tones, experiment):
    """Utterances with what the model says of them, in streams: its greedy WER is 0."""
    folder = tmp_path_factory.mktemp("manifest")
    recogniser = load(experiment, beam=1)
    cuts = []
    for seed, seconds in enumerate((1.5, 0.7, 1.1)):
        path = folder / f"{seed}.wav"
        samples = (32767 * tones(seconds, seed)).short()
        soundfile.write(path, samples.numpy(), 16000)
        stream = recogniser.stream("", chunk_size=8, lookahead=2)
        stream.accept(samples / 32768)
        text = stream.finish().hyps[0].text
        cuts.append(utterance_cut(read_recording(path, path.stem), f"u{seed}", text, "s"))
    save_cuts(cuts, folder / "test.jsonl.gz")
    return folder / "test.jsonl.gz"


@pytest.fixture
def other_words(manifest, tmp_path):
    """The same utterances with words that nobody says."""
    cuts = [cut.map_supervisions(lambda said: fastcopy(said, text="other words")) for cut in load_cuts(manifest)]
    save_cuts(cuts, tmp_path / "other.jsonl.gz")
    return tmp_path / "other.jsonl.gz"


def run(model, out, *options) -> int:
    return main(["export", "--model", str(model), "--out", str(out), *map(str, options)])


def error(capsys, model, out, *options) -> str:
    capsys.readouterr()
    assert run(model, out, *options) == 1
    return capsys.readouterr().err.splitlines()[-1]


def read_report(out) -> dict:
    return json.loads((out / "export.json").read_text())


def test_export_and_check(needs_sherpa_onnx, experiment, manifest, tmp_path, capsys):
    out = tmp_path / "new" / "onnx"
    assert run(experiment, out, "--check", manifest) == 0
    printed = capsys.readouterr().out
    assert f"{manifest}, beam 1: 3 of 3 hypotheses are the same" in printed
    assert printed.splitlines()[-1] == f"{out}: 0.1 MB, blessed"
    assert [path.name for path in out.parent.iterdir()] == ["onnx"]
    assert sorted(path.name for path in out.iterdir()) == ONNX_FILES
    report = read_report(out)
    assert report["blessed"]
    assert report["bytes"] == {name: (out / name).stat().st_size for name in report["bytes"]}
    assert set(report["differences"]) == {"random", "speech"}
    assert max(max(found.values()) for found in report["differences"].values()) < 1e-4
    greedy, beam = report["check"]
    assert (greedy["beam"], beam["beam"]) == (1, 4)
    for check in (greedy, beam):
        assert (check["utterances"], check["same"], check["moved"]) == (3, 3, 0.0)
    assert greedy[MODEL]["words"] == greedy["sherpa_onnx"]["words"] > 5
    assert report["moved"] == {"1": 0.0, "4": 0.0} and report["changed"] == {"1": 0, "4": 0}


def test_export_for_streams(needs_sherpa_onnx, experiment, manifest, tmp_path):
    """sherpa-onnx hears the last 10 ms of an utterance otherwise, which shows in a model with random weights."""
    out = tmp_path / "onnx"
    assert run(experiment, out, "--streaming", "--chunk-size", 8, "--lookahead", 2, "--check", manifest, "--force") == 0
    report = read_report(out)
    greedy = report["check"][0]
    assert (greedy[MODEL]["wer"], greedy["utterances"]) == (0.0, 3)
    assert greedy["moved"] == greedy["sherpa_onnx"]["wer"] < 30
    assert Chunk.of((out / "encoder.onnx").read_bytes()) == Chunk(8, 2)


def test_without_a_check_nothing_is_blessed(needs_sherpa_onnx, experiment, manifest, tmp_path, capsys):
    for out, options in {"dynamic": [], "static": ["--calibrate", manifest]}.items():
        assert run(experiment, tmp_path / out, "--format", "onnx-int8", *options) == 0
        assert "not blessed: see --check" in capsys.readouterr().out
        assert not read_report(tmp_path / out)["blessed"]
        assert sorted(path.name for path in (tmp_path / out).iterdir()) == ONNX_FILES
    dynamic, static = ((tmp_path / out / "encoder.onnx").read_bytes() for out in ("dynamic", "static"))
    assert b"DynamicQuantizeLinear" in dynamic
    assert b"DynamicQuantizeLinear" not in static
    assert b"QuantizeLinear" in static


def test_an_export_that_says_other_things_is_refused(
    needs_sherpa_onnx, experiment, manifest, tmp_path, capsys, monkeypatch
):
    """The weights are random, so 8 bits are too few for some label."""
    losses = {f"encoder.layers.{n}.out": 40.0 + n for n in range(8)}
    monkeypatch.setattr(module, "layer_losses", lambda *arguments: losses)
    out, options = tmp_path / "int8", ("--format", "onnx-int8", "--streaming", "--check", manifest)
    assert run(experiment, out, *options) == 1
    captured = capsys.readouterr()
    (line,) = (line for line in captured.err.splitlines() if line.startswith("asrkit"))
    assert f"{out}: not written: on {manifest} its WER moves by " in line
    assert "points, more than 0.1; leave layers out with --keep-float, or accept it with --force" in line
    assert list(tmp_path.iterdir()) == []
    rows = [line.split() for line in captured.out.splitlines() if line.endswith(" dB")]
    assert rows == [[f"encoder.layers.{n}.out", f"{40 + n}.0", "dB"] for n in range(5)]

    assert run(experiment, out, *options, "--force") == 0
    assert "not blessed: on " in capsys.readouterr().out
    report = read_report(out)
    assert not report["blessed"]
    assert report["layers"] == dict(list(losses.items())[:5])


def test_every_manifest_is_checked(needs_sherpa_onnx, experiment, manifest, other_words, tmp_path):
    """The model is right about the first one only."""
    assert run(experiment, tmp_path / "onnx", "--check", manifest, other_words, "--force") == 0
    report = read_report(tmp_path / "onnx")
    checked = [(check["manifest"], check["beam"]) for check in report["check"]]
    assert checked == [(str(name), beam) for name in (manifest, other_words) for beam in (1, 4)]
    assert report["check"][0][MODEL]["wer"] < report["check"][2][MODEL]["wer"]


@pytest.mark.parametrize("moved, blessed", [(0.1, True), (-0.1, True), (0.104, True), (0.11, False), (-5.0, False)])
def test_how_far_the_wer_may_move(moved, blessed):
    checks = [{"manifest": name, "beam": beam, "moved": 9.0} for name in ("a", "b") for beam in (1, 4)]
    checks[0]["moved"], checks[2]["moved"] = 0.0, moved  # the greedy ones count
    assert module._problem(checks) == (None if blessed else f"on b its WER moves by {moved:+.2f} points, more than 0.1")


def test_programs_for_executorch(experiment, manifest, tmp_path, monkeypatch):
    """The command; what the programs say is tested with them."""
    pytest.importorskip("executorch", reason="executorch is not installed (extra 'executorch')")

    def write(recogniser, folder, chunk):
        for name in module.PROGRAMS:
            (folder / name).write_bytes(f"{chunk.size} {chunk.lookahead}".encode())
        return {"encoder.pte": 0.0}

    monkeypatch.setattr(module, "export_executorch", write)
    monkeypatch.setattr(module, "executorch_differences", lambda model, programs, chunk, speech: {"encoder.pte": 0.0})
    monkeypatch.setattr(module, "stand_in", lambda model, programs: model)
    options = ("--format", "executorch", "--chunk-size", 8, "--lookahead", 1, "--check", manifest)
    assert run(experiment, tmp_path / "programs", *options) == 0
    report = read_report(tmp_path / "programs")
    assert report["blessed"]
    assert set(report["check"][0]) > {MODEL, "executorch"}
    assert (tmp_path / "programs" / "encoder.pte").read_text() == "8 1"


def test_networks_in_c(experiment, manifest, other_words, tmp_path, capsys):
    out, options = tmp_path / "c", ("--format", "c", "--chunk-size", 8, "--lookahead", 2)
    assert run(experiment, out, *options, "--check", manifest) == 0
    printed = capsys.readouterr().out
    assert f"{manifest}, beam 1: 3 of 3 hypotheses are the same" in printed
    assert f"{manifest}, beam 4: 3 of 3 hypotheses are the same" in printed
    assert printed.splitlines()[-1].endswith("MB, blessed")
    names = ["CMakeLists.txt", "README.md", "decoder", "encoder", "export.json", "joiner"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "model.json", "stream.c", "tokens.txt"]
    report = read_report(out)
    assert report["blessed"] and set(report["seconds"]) == set(report["differences"]["speech"]) == set(module.NETWORKS)
    assert report["bytes"]["encoder/weights.bin"] > report["bytes"]["joiner/weights.bin"] > 0

    model = module.c_stand_in(load(experiment).model, out)
    model.joiner.combine = lambda *inputs: 0 * Transducer(model.config).joiner.output(sum(inputs))  # says nothing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "c_stand_in", lambda *arguments: model)
        patch.setattr(module, "export_c", lambda *arguments: {})
        patch.setattr(module, "network_seconds", lambda folder: {"encoder": 0.0})
        patch.setattr(module, "c_differences", lambda *arguments: {})
        assert "its WER moves by +100.00 points" in error(
            capsys, experiment, tmp_path / "other", *options, "--check", manifest
        )
    assert not (tmp_path / "other").exists()


def test_networks_in_c_for_other_machines(experiment, manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "export_c", lambda recogniser, folder, chunk, target: {})
    monkeypatch.setattr(module, "runs_here", lambda target: False)
    options = ("--format", "c", "--target", "neon")
    assert run(experiment, tmp_path / "c", *options) == 0
    assert not read_report(tmp_path / "c")["blessed"]
    line = error(capsys, experiment, tmp_path / "c", *options, "--check", manifest)
    assert "--check: this machine runs nothing that is made for neon; leave it out" in line


@pytest.mark.parametrize("format, file", [("c", "weights.bin"), ("onnx", "model.onnx"), ("executorch", "model.pte")])
def test_image_classifiers(classifier, tmp_path, capsys, format, file):
    for package in {"c": (), "onnx": ("onnx", "onnxruntime"), "executorch": ("executorch",)}[format]:
        pytest.importorskip(package)
    out = tmp_path / format
    assert run(classifier, out, "--format", format) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("MB, blessed")
    report = read_report(out)
    assert report["blessed"] and report["check"]["images"] == report["check"]["same"] == 360
    assert report["check"]["moved"] == 0.0 and report["check"][MODEL] == report["check"][format] > 0.05
    assert set(report["seconds"]) == {MODEL, format}
    assert report["bytes"][file] == (out / file).stat().st_size
    assert 1.5 * report["weights"]["exported"] < report["weights"]["of the model"]  # its zeros are gone


def test_an_image_classifier_that_sees_other_things_is_refused(classifier, tmp_path, capsys, monkeypatch):
    def write(network, inputs, folder, format, target):
        (folder / "weights.bin").write_bytes(b"")
        return in_torch(nn.Sequential(network, Turned()), inputs, folder)

    class Turned(nn.Module):
        def forward(self, logits):
            return logits.roll(1, -1)

    monkeypatch.setattr(images_module, "_write", write)
    monkeypatch.setattr(images_module, "difference", lambda *arguments: 0.0)
    out = tmp_path / "c"
    line = error(capsys, classifier, out, "--format", "c")
    assert f"{out}: not written: its accuracy moves by " in line and "accept it with --force" in line
    assert not out.exists()
    assert run(classifier, out, "--format", "c", "--force") == 0
    assert not read_report(out)["blessed"]
    monkeypatch.setattr(images_module, "difference", lambda *arguments: float("nan"))
    assert "differs from the model by nan: not written" in error(capsys, classifier, out, "--format", "c", "--force")


@pytest.mark.parametrize("moved, blessed", [(0.1, True), (-0.1, True), (0.104, True), (0.11, False), (-5.0, False)])
def test_how_far_the_accuracy_may_move(moved, blessed):
    problem = f"its accuracy moves by {moved:+.2f} points, more than 0.1"
    assert images_module._problem(moved) == (None if blessed else problem)


def test_image_classifiers_for_other_machines(classifier, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(images_module, "runs_here", lambda target: False)
    assert run(classifier, tmp_path / "c", "--format", "c", "--target", "neon") == 0
    assert "not blessed: nothing here runs what is made for neon" in capsys.readouterr().out
    assert json.loads((tmp_path / "c" / "model.json").read_text())["target"] == "neon"


def test_what_an_image_classifier_does_not_take(classifier, manifest, tmp_path, capsys):
    for options in (["--format", "onnx-int8"], ["--streaming"], ["--check", manifest]):
        assert "an image classifier: it takes --format onnx, executorch or c" in error(
            capsys, classifier, tmp_path / "out", *options
        )


def test_what_cannot_be_exported_is_one_line(needs_sherpa_onnx, experiment, manifest, tmp_path, capsys):
    out = tmp_path / "onnx"
    assert "config.yaml: No such file or directory" in error(capsys, tmp_path / "none", out)
    assert "none.jsonl.gz: No such file" in error(capsys, experiment, out, "--check", tmp_path / "none.jsonl.gz")
    assert "--chunk-size: needs --streaming" in error(capsys, experiment, out, "--chunk-size", 8)
    assert "lookahead 8: must be from 0 to 7" in error(
        capsys, experiment, out, "--streaming", "--chunk-size", 8, "--lookahead", 8
    )
    assert "--calibrate: --format onnx has no 8-bit products" in error(capsys, experiment, out, "--calibrate", manifest)
    assert "--keep-float layers.9: no such layer" in error(
        capsys, experiment, out, "--format", "onnx-int8", "--keep-float", "layers.9"
    )
    assert "--target: --format onnx is for every processor" in error(capsys, experiment, out, "--target", "avx2")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in error(capsys, experiment, tmp_path / "file" / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_formats_are_wrong_usage(experiment, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(experiment, tmp_path, "--format", "tflite")
    assert stop.value.code == 2
    assert "format" in capsys.readouterr().err
