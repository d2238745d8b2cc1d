"""`asrkit speaker` and `asrkit data prepare librispeech_speakers` on voices that are easy to tell apart; bad input."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkit.cli.main import main
from asrkit.data.manifests import load_cuts
from asrkit.diarisation.plda import load_plda
from asrkit.models.speaker import load_embedder

RATE = 16000
TINY = (
    "--features.num_mel_bins 20 --model.channels 16 --model.layers 1 --model.pooled_dim 16 --model.dim 8 "
    "--batching.size 16 --batching.length [0.4,0.8] --batching.speeds [1.0] --batching.workers 0 "
    "--augmentation.time_masks 0 --augmentation.frequency_masks 0 --training.warm_up_hours 0 --training.average 0 "
)
WINDOWS = "--windows.seconds 0.6 --windows.number 8"


def write_voice(file: Path, number: int, take: int) -> None:
    """Write two seconds of a buzz with pitch and formant of a speaker."""
    times = np.arange(2 * RATE) / RATE
    rng = np.random.default_rng((number, take))
    pitch = (90 + 22 * number) * (1 + 0.05 * np.sin(2 * np.pi * 3 * times + take))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formant = 400 + 230 * number
    buzz = sum(np.exp(-abs(k * pitch - formant) / 500) * np.cos(k * phase) for k in range(1, 25))
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, 0.05 * buzz + 0.002 * rng.standard_normal(len(times)), RATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Manifests of eight training and six other speakers, and an embedder of the former."""
    folder = tmp_path_factory.mktemp("speaker")
    for number in range(14):
        part = folder / "corpora" / ("train" if number % 7 % 2 else "held" if number < 12 else "train")
        for take in range(2):
            write_voice(part / "sub" / f"{100 + number}-7-{take:04d}.flac", number, take)
    folders = ["--train-dir", str(folder / "corpora" / "train"), "--held-out-dir", str(folder / "corpora" / "held")]
    assert main(["data", "prepare", "librispeech_speakers", str(folder / "data"), *folders]) == 0
    return folder


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """A function that runs `asrkit` in the folder and returns its status and what it said."""
    monkeypatch.chdir(folder)

    def call(line: str) -> tuple[int, str]:
        try:
            status = main(line.split())
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, err if status else out

    return call


def speakers(manifest: Path) -> list[str]:
    return sorted({cut.supervisions[0].speaker for cut in load_cuts(manifest)})


def test_no_speaker_is_in_two_sets(folder, run):
    sets = {name: speakers(folder / "data" / f"{name}.jsonl.gz") for name in ("train", "dev", "test")}
    assert [len(sets[name]) for name in ("train", "dev", "test")] == [7, 3, 4]
    assert len({speaker for names in sets.values() for speaker in names}) == 14
    assert max(sets["dev"]) < min(sets["test"])
    before = (folder / "data" / "train.jsonl.gz").stat().st_mtime_ns
    line = "data prepare librispeech_speakers data --train-dir {0}/train --held-out-dir {0}/held"
    assert run(line.format(folder / "corpora"))[0] == 0
    assert (folder / "data" / "train.jsonl.gz").stat().st_mtime_ns == before


def test_train_plda_verify(folder, run):
    train = f"speaker train --train data/train.jsonl.gz --valid data/dev.jsonl.gz --out exp {TINY}"
    assert run(f"{train} --training.steps 4")[0] == 0
    assert run(f"{train} --training.steps 30 --training.learning-rate 0.01")[0] == 0  # goes on
    steps = [json.loads(line)["step"] for line in (folder / "exp" / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 30 and load_embedder(folder / "exp").model.config.speakers == 7
    status, said = run(f"{train} --training.steps 30 --model.dim 12")
    assert status == 1 and "exp/config.yaml: begun with another 'model' section" in said

    status, said = run(f"speaker plda --model exp --cuts data/train.jsonl.gz --out exp/plda.npz --dim 3 {WINDOWS}")
    assert status == 0 and "3 dimensions" in said and load_plda(folder / "exp" / "plda.npz").between.shape == (3,)
    verify = f"speaker verify --model exp --plda exp/plda.npz --cuts data/train.jsonl.gz --out exp/train {WINDOWS}"
    status, said = run(verify)
    assert status == 0 and said.startswith("cosine: equal error rate ") and "\nplda: equal error rate " in said
    found = json.loads((folder / "exp" / "train" / "score.json").read_text())
    assert (found["speakers"], found["same"], found["different"]) == (7, 7 * 28, 21 * 64)
    run(verify)
    assert json.loads((folder / "exp" / "train" / "score.json").read_text()) == found
    run(f"{verify} --windows.clean true")
    clean = json.loads((folder / "exp" / "train" / "score.json").read_text())
    assert clean["cosine"]["eer"] < min(35, found["cosine"]["eer"])  # 50 tells nothing apart


RESEMBLYZER = "none.jsonl.gz" if find_spec("resemblyzer") else "pip install --no-deps resemblyzer"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("speaker verify --model none --cuts data/test.jsonl.gz --out x", "none/config.yaml: No such file"),
        ("speaker verify --model none.onnx --cuts data/test.jsonl.gz --out x", "none.onnx"),
        ("speaker plda --model resemblyzer --cuts none.jsonl.gz --out x", RESEMBLYZER),
        ("speaker train --train data/train.jsonl.gz --valid data/dev.jsonl.gz --out x --model.dims 3", "dims"),
        ("speaker train --train none.jsonl --valid data/dev.jsonl.gz --out x", "none.jsonl: No such file"),
        ("speaker verify --model none --cuts a.jsonl --out x --windows.number 1", "number"),
        ("data prepare librispeech_speakers new --train-dir none", "none: no such directory"),
        ("data prepare librispeech_speakers new --train-dir data --held-out-dir data", "fewer than two speakers"),
    ],
)
def test_bad_input_is_one_line(run, line, message):
    status, said = run(line)
    last = said.strip().splitlines()[-1]
    assert status in (1, 2) and message in last and last.startswith("asrkit ") and "Traceback" not in said


def test_a_speaker_in_both_folders(run, folder):
    shutil.copytree(folder / "corpora" / "held", folder / "corpora" / "again", dirs_exist_ok=True)
    line = "data prepare librispeech_speakers new --train-dir corpora/held --held-out-dir corpora/again"
    status, said = run(line)
    assert status == 1 and "speaker 100 is in" in said.splitlines()[-1]
