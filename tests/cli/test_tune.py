"""`asrkit tune decode`: the search for weights, and the whole command on a small model."""

import json
from pathlib import Path

import pytest
import soundfile

from asrkit.cli.main import main
from asrkit.cli.tune import Trials, coordinate_search
from asrkit.data.manifests import save_cuts
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.scoring.wer import Errors
from asrkit.search.fusion import read_fusion
from asrkit.search.recogniser import load


def bowl(point) -> Errors:
    """Fewest errors at a = 0.6, b = -0.3."""
    return Errors(words=1000, deletions=round(400 * (point["a"] - 0.6) ** 2 + 300 * (point["b"] + 0.3) ** 2))


def test_finds_the_minimum(tmp_path):
    trials = Trials(bowl, tmp_path / "log.jsonl")
    assert coordinate_search({"a": 0.1, "b": 0.0}, trials) == pytest.approx({"a": 0.6, "b": -0.3})
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(records) == len({str(record["weights"]) for record in records}) < 60
    assert all(record["errors"] == bowl(record["weights"]).total for record in records)
    assert all(record["weights"]["a"] >= 0 for record in records)  # its sign is kept


def test_of_equally_good_points_the_one_nearest_to_zero(tmp_path):
    trials = Trials(lambda point: Errors(words=10, deletions=int(abs(point["a"]) > 0.45)), tmp_path / "log")
    assert coordinate_search({"a": 0.4}, trials) == {"a": 0.0}


@pytest.fixture
def folder(tmp_path, experiment, tones) -> Path:
    """Audio with what the model hears in it, but for one letter that it hears too often."""
    soundfile.write(tmp_path / "a.wav", (32767 * tones(6.0)).short().numpy(), 16000)
    recording, recogniser = read_recording(tmp_path / "a.wav", "a"), load(experiment)
    text = recogniser.transcribe(tmp_path / "a.wav").hyps[0].text
    cuts = [utterance_cut(recording, f"u{i}", text[::2], "s", i, i + 2.5) for i in range(3)]
    save_cuts(cuts, tmp_path / "dev.jsonl.gz")
    (tmp_path / "fusion.yaml").write_text("length: -0.5\n")
    return tmp_path


def tune(folder: Path, experiment: Path, *weights: str) -> int:
    paths = {"model": experiment, "data": folder / "dev.jsonl.gz", "fusion": folder / "fusion.yaml"}
    options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    return main(["tune", "decode", *options, "--weights", *weights, "--out", str(folder / "tuned.yaml")])


def test_the_command(folder, experiment, capsys):
    assert tune(folder, experiment, "length", "internal_lm") == 0
    tuned = read_fusion(folder / "tuned.yaml")
    records = [json.loads(line) for line in (folder / "tuned.jsonl").read_text().splitlines()]
    best = min(records, key=lambda record: record["errors"])
    weights = {"length": tuned.length, "internal_lm": tuned.internal_lm}
    assert [record["errors"] for record in records if record["weights"] == weights] == [best["errors"]]
    assert f"%WER {best['wer']:.2f}, " in capsys.readouterr().out
    assert (folder / "tuned.png").read_bytes().startswith(b"\x89PNG")

    # The same weights in `asrkit decode` give the same errors.
    assert (
        main(
            ["decode", str(folder / "dev.jsonl.gz"), "--model", str(experiment), "--out", str(folder / "out")]
            + ["--fusion", str(folder / "tuned.yaml")]
        )
        == 0
    )
    hyps = str(folder / "out" / "nbest.jsonl")
    main(["score", "--refs", str(folder / "dev.jsonl.gz"), "--hyps", hyps, "--out", str(folder / "out")])
    assert f"%WER {best['wer']:.2f} " in capsys.readouterr().out
    assert json.loads((folder / "out" / "decode.json").read_text())["fusion"] == pytest.approx(weights)


def test_mistakes_are_one_line(folder, experiment, capsys):
    assert tune(folder, experiment, "lm") == 1
    assert f"--weights lm: {folder}/fusion.yaml has the weights internal_lm, length" in capsys.readouterr().err
