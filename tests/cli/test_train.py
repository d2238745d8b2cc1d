"""`asrkit train`: what it leaves, going on, several processes, and bad input."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from lhotse.supervision import AlignmentItem

from asrkit.cli.main import main
from asrkit.data.manifests import load_cuts, save_cuts
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.models.checkpoint import read_checkpoint
from asrkit.text.tokenizer import char_tokenizer

CONFIG = {
    "features": {"sampling_rate": 16000, "num_mel_bins": 20},
    "batching": {"max_duration": 2.5, "max_length": 2.0, "workers": 0},
    "model": {
        "encoder": {"kind": "lstm", "dim": 16, "layers": 1, "subsampling_channels": 4, "dropout": 0.0},
        "predictor": {"dim": 16},
        "joiner_dim": 16,
    },
    "training": {"steps": 3, "warm_up_hours": 0, "schedule": "constant", "log_every": 1},
}
TEXTS = ("ab", "cd", "a b", "dca", "bb", "d")


@pytest.fixture
def corpus(tmp_path, tones) -> Path:
    """A folder with audio/<n>.wav, train.jsonl, valid.jsonl, lang/ and train.yaml."""
    (tmp_path / "audio").mkdir()
    cuts = []
    for number, text in enumerate(TEXTS):
        file = tmp_path / "audio" / f"{number}.wav"
        soundfile.write(file, tones(0.6 + 0.1 * number, number).numpy(), 16000)
        cuts.append(utterance_cut(read_recording(file, f"r{number}"), f"u{number}", text, "s"))
    save_cuts(cuts, tmp_path / "train.jsonl")
    save_cuts(cuts[:2], tmp_path / "valid.jsonl")
    char_tokenizer(TEXTS).save(tmp_path / "lang")
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def arguments(corpus: Path, *options: str, out: str = "exp") -> list[str]:
    paths = {"conf": "train.yaml", "train": "train.jsonl", "valid": "valid.jsonl", "lang": "lang", "out": out}
    return ["train", *(word for name, path in paths.items() for word in (f"--{name}", str(corpus / path))), *options]


@pytest.fixture
def train(corpus, capsys):
    """A function that trains in <corpus>/exp and returns the exit status and the lines of error messages."""

    def call(*options: str, out: str = "exp") -> tuple[int, list[str]]:
        status = main(arguments(corpus, *options, out=out))
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return status, [line for line in err.splitlines() if line.startswith("asrkit train: ")]

    return call


def last(folder: Path) -> dict:
    return read_checkpoint(folder / "checkpoints" / "last.pt")


def log_of(folder: Path, split: str) -> list[dict]:
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [record for record in records if record["split"] == split]


def assert_same_weights(ours: dict, theirs: dict, tolerance: float = 0.0) -> None:
    for key in ("model", "current"):
        for name, tensor in ours[key].items():
            torch.testing.assert_close(tensor, theirs[key][name], rtol=tolerance, atol=tolerance)


def test_training_leaves_a_directory_that_decodes_alone(corpus, train, capsys):
    assert train() == (0, [])
    exp = corpus / "exp"
    expected = {"config.yaml", "lang", "model.pt", "train.json", "log.jsonl", "checkpoints", "tensorboard"}
    assert {file.name for file in exp.iterdir()} == expected
    config = yaml.safe_load((exp / "config.yaml").read_text())
    assert config["model"]["vocab_size"] == 10 and config["model"]["num_mel_bins"] == 20
    assert config["training"]["steps"] == 3 and config["training"]["epochs"] == 20  # defaults are written down too
    assert json.loads((exp / "train.json").read_text())["steps"] == 3
    assert [record["step"] for record in log_of(exp, "train")] == [1, 2, 3]
    losses = log_of(exp, "train")[-1]
    assert losses["loss"] == pytest.approx(losses["transducer"] + 0.3 * losses["ctc"], rel=1e-5)

    shutil.copy(corpus / "audio" / "0.wav", corpus.parent / f"{corpus.name}.wav")
    moved = exp.rename(corpus.parent / f"{corpus.name}_moved")
    shutil.rmtree(corpus)
    capsys.readouterr()
    assert main(["decode", "--model", str(moved), str(corpus.parent / f"{corpus.name}.wav")]) == 0
    assert capsys.readouterr().out.startswith(f"{corpus.parent}/{corpus.name}.wav")


def test_going_on_equals_never_having_stopped(corpus, train):
    assert train("--training.steps", "2")[0] == 0
    first = log_of(corpus / "exp", "train")
    assert train("--training.steps=5")[0] == 0  # into the second epoch
    assert train("--training.steps", "5", out="whole")[0] == 0
    assert_same_weights(last(corpus / "exp"), last(corpus / "whole"))
    log = log_of(corpus / "exp", "train")
    assert log[:2] == first and [record["step"] for record in log] == [1, 2, 3, 4, 5]


def test_a_finished_training_is_left_alone(corpus, train):
    assert train()[0] == 0
    before = {file: file.stat().st_mtime_ns for file in (corpus / "exp").glob("*.*")}
    assert train()[0] == 0
    changed = {file.name for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed <= {"config.yaml"} and {"model.pt", "train.json", "log.jsonl"} <= {file.name for file in before}


def test_the_losses_fall(corpus, train):
    options = ("--training.steps", "40", "--training.learning_rate", "0.01", "--training.log-every", "20")
    assert train(*options)[0] == 0
    first, final = log_of(corpus / "exp", "train")
    assert final["loss"] < 0.8 * first["loss"]


def train_in_two_processes(corpus: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "asrkit.cli.main", *arguments(corpus, out="two")]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_equal_accumulation(corpus, train):
    """With dropout, random chunks, speed perturbation and an even number of batches an epoch."""
    config = CONFIG | {"augmentation": {"speed": 0.1, "gain": 3.0}}
    config["model"] = CONFIG["model"] | {
        "encoder": {"dim": 16, "layers": 1, "heads": 2, "feedforward_dim": 16, "subsampling_channels": 4},
    }
    config["training"] = CONFIG["training"] | {"steps": 4}
    (corpus / "train.yaml").write_text(yaml.safe_dump(config))
    done = train_in_two_processes(corpus)
    assert done.returncode == 0, done.stderr
    assert train("--training.accumulation", "2", out="one")[0] == 0
    two, one = (log_of(corpus / name, "train") for name in ("two", "one"))
    assert [record["epoch"] for record in one] == [0, 0, 1, 1]
    for ours, theirs in zip(two, one, strict=True):
        for name in ("loss", "transducer", "ctc", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    for ours, theirs in zip(log_of(corpus / "two", "valid"), log_of(corpus / "one", "valid"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert_same_weights(last(corpus / "two"), last(corpus / "one"), tolerance=1e-4)


# What is wrong with the configuration


def test_an_unknown_key_and_a_wrong_type_name_file_and_key(corpus, train):
    for section, text in {"training": "training: {stepz: 3}", "encoder": "model: {encoder: {dim: wide}}"}.items():
        file = corpus / f"{section}.yaml"
        file.write_text(text)
        status, (error,) = train("--conf", str(corpus / "train.yaml"), str(file))
        assert status == 1 and error.startswith(f"asrkit train: {file}: ")
        assert ("stepz" if section == "training" else "dim") in error
    assert not (corpus / "exp").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.stepz", "3"], "command line: .*training.*stepz"),
        (["--training.steps", "few"], "command line: .*training.steps.*few"),
        (["--training.steps"], "--training.steps: expected a value"),
        (["--training.steps", "-1"], "command line: .*steps must not be below 0"),
        (["--model.encoder.kind", "rnn"], "command line: .*rnn"),
        (["--batching.max_duration", "1"], "max_duration 1.0 is below max_length 2.0"),
        (["--model.frame_weight", "0.5"], "no cut has phone times; set model.frame_weight to 0"),
        (["--conf", "none.yaml"], "none.yaml: No such file or directory"),
        (["--lang", "none"], "none/tokens.txt: No such file or directory"),
        (["--train", "none.jsonl"], "none.jsonl: No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_line(corpus, train, options, message, monkeypatch):
    monkeypatch.chdir(corpus)
    status, (error,) = train(*options)
    assert status == 1
    assert re.search(message, error), error
    assert not (corpus / "exp").exists()


def test_another_model_does_not_spoil_the_experiment(corpus, train):
    """Not even one whose weights have the same shapes."""
    assert train()[0] == 0
    before = {file: file.read_bytes() for file in (corpus / "exp").rglob("*.*") if file.is_file()}
    char_tokenizer(["efgh"]).save(corpus / "lang4")
    for options in (["--model.joiner_dim", "8"], ["--features.sampling_rate", "8000"]):
        status, (error,) = train(*options)
        assert status == 1 and error.startswith(f"asrkit train: {corpus}/exp/config.yaml: ")
        assert options[0][2:].split(".")[0] in error
    cut = load_cuts(corpus / "train.jsonl")[0]
    cut.supervisions[0].text = "ef"
    save_cuts([cut], corpus / "other.jsonl")
    other = str(corpus / "other.jsonl")
    status, (error,) = train("--lang", str(corpus / "lang4"), "--train", other, "--valid", other)
    assert status == 1 and error.startswith(f"asrkit train: {corpus}/exp/lang: ")
    assert before == {file: file.read_bytes() for file in before}
    assert train("--training.steps", "4")[0] == 0


# What is wrong with the data


def rewrite(manifest: Path, line: int, **changes) -> None:
    """Change one cut of a manifest; `text` is its supervision's."""
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    if text := changes.pop("text", None):
        records[line]["supervisions"][0]["text"] = text
    records[line] |= changes
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("name", ["train", "valid"])
def test_bad_manifests_are_one_line(corpus, train, name):
    manifest = corpus / f"{name}.jsonl"
    good = manifest.read_text()

    def error() -> str:
        status, (line,) = train()
        assert status == 1 and not (corpus / "exp" / "model.pt").exists()
        manifest.write_text(good)
        return line.removeprefix("asrkit train: ")

    rewrite(manifest, 1, text="d€")
    assert error() == "cut u1: '€' is not known to the tokenizer, in 'd€'"
    rewrite(manifest, 1, duration=5.0)
    assert error() == f"{manifest}: line 2: cut u1 ends at 5.0 s, its recording at 0.7 s"
    rewrite(manifest, 1, id="u0")
    assert error() == "cut u0 is in the manifest twice"
    manifest.write_text("")
    assert error() == f"{manifest}: no cuts"
    manifest.write_text(good[:-40])
    assert error().startswith(f"{manifest}: line {len(good.splitlines())}: not a cut")


def test_bad_audio_is_one_line(corpus, train, damage):
    damage(corpus / "audio" / "4.wav")
    status, (error,) = train()
    assert status == 1 and error.startswith(f"asrkit train: cut u4: {corpus}/audio/4.wav: ")


def test_audio_shorter_than_its_cut_is_one_line(corpus, train):
    file = corpus / "audio" / "4.wav"
    samples, rate = soundfile.read(file)
    soundfile.write(file, samples[:4000], rate)
    status, (error,) = train()
    assert status == 1 and error.startswith(f"asrkit train: cut u4: {file}: ")


def test_bad_audio_in_a_worker_loses_nothing(corpus, train):
    """The workers' exceptions are one line too, and a run goes on from its checkpoint when the file is mended."""
    options = ("--training.save_every", "1", "--batching.workers", "1")
    assert train("--training.steps", "1", *options)[0] == 0
    sound = (corpus / "audio" / "4.wav").read_bytes()
    (corpus / "audio" / "4.wav").write_bytes(b"")
    status, (error,) = train(*options)
    assert status == 1 and error.startswith(f"asrkit train: cut u4: {corpus}/audio/4.wav: ")
    (corpus / "audio" / "4.wav").write_bytes(sound)
    assert last(corpus / "exp")["progress"]["step"] >= 1
    assert train(*options)[0] == 0
    assert train(*options, out="whole")[0] == 0
    assert_same_weights(last(corpus / "exp"), last(corpus / "whole"))


def test_bad_audio_of_one_process_ends_the_other_too(corpus):
    """What torchrun itself says follows; asrkit says one line a process, and no traceback."""
    (corpus / "audio" / "4.wav").unlink()
    done = train_in_two_processes(corpus)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("asrkit train: ", "[rank"))]
    assert done.returncode == 1
    assert f"asrkit train: cut u4: {corpus}/audio/4.wav: no such file" in lines
    assert set(lines[1:]) <= {"asrkit train: another process of this training ended; see its message"}


def test_times_of_phones_train_the_encoder(corpus, train):
    """Cuts without times may be among those that have them, and phones that training lacks in the validation data."""
    cuts = list(load_cuts(corpus / "train.jsonl"))
    for cut in cuts[:3]:
        cut.supervisions[0].alignment = {"phone": [AlignmentItem("a", 0.1, 0.2), AlignmentItem("b", 0.3, 0.2)]}
    save_cuts(cuts, corpus / "train.jsonl")
    assert train("--model.frame_weight", "0.5")[0] == 0
    assert yaml.safe_load((corpus / "exp" / "config.yaml").read_text())["model"]["frame_units"] == 3
    assert any(record["frame"] > 0 for record in log_of(corpus / "exp", "train"))
    unlabelled = log_of(corpus / "exp", "valid")[-1]["frame"]
    cuts[0].supervisions[0].alignment["phone"][1] = AlignmentItem("x", 0.3, 0.2)
    save_cuts(cuts[:2], corpus / "valid.jsonl")
    assert train("--model.frame_weight", "0.5", out="other")[0] == 0
    assert log_of(corpus / "other", "valid")[-1]["frame"] != unlabelled


# What is wrong with the disk


def test_a_full_disk_leaves_the_last_checkpoint(corpus, train, monkeypatch):
    assert train("--training.steps", "2")[0] == 0
    before = {name: (corpus / "exp" / name).read_bytes() for name in ("model.pt", "checkpoints/last.pt")}
    replace = os.replace

    def no_space(source, target):
        if str(target).endswith(".pt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr("asrkit.files.os.replace", no_space)
    status, (error,) = train("--training.steps", "5")
    assert status == 1
    assert error.startswith(f"asrkit train: {corpus}/exp/checkpoints/") and error.endswith(
        ".pt: cannot be written: No space left on device"
    )
    monkeypatch.undo()
    assert before == {name: (corpus / "exp" / name).read_bytes() for name in before}
    assert main(["decode", "--model", str(corpus / "exp"), str(corpus / "audio" / "0.wav")]) == 0
    assert train("--training.steps", "5")[0] == 0
    assert train("--training.steps", "5", out="whole")[0] == 0
    assert_same_weights(last(corpus / "exp"), last(corpus / "whole"))


def test_an_experiment_directory_that_cannot_be_made(corpus, train):
    (corpus / "file").write_text("")
    status, (error,) = train(out="file/exp")
    assert status == 1 and f"{corpus}/file/exp/" in error and "cannot be written: Not a directory" in error
