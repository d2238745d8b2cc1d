import json
import math

import numpy as np
import pytest

from asrkit.cli.main import main
from asrkit.data.formats import write_rttm, write_seglst, write_tracks
from asrkit.types import Segment, Tracks

REFS = {
    "m1": [Segment("m1", 0, 10, "ann", "good morning"), Segment("m1", 10, 20, "bob", "hello")],
    "m2": [Segment("m2", 0, 10, "ann", "yes"), Segment("m2", 12, 20, "eve", "no")],
}
HYPS = {
    "m1": [Segment("m1", 0, 12, "1", "good morning"), Segment("m1", 12, 20, "2", "hello")],
    "m2": [Segment("m2", 0, 20, "1", "yes no")],
}


@pytest.fixture
def meetings(tmp_path):
    pytest.importorskip("pyannote.metrics", reason="pyannote.metrics is not installed (extra 'meetings')")
    (tmp_path / "hyps").mkdir()
    write_rttm(sum(REFS.values(), []), tmp_path / "ref.rttm")
    for name, segments in HYPS.items():
        write_rttm(segments, tmp_path / "hyps" / f"{name}.rttm")
    return tmp_path


def der(folder, *options, hyps="hyps"):
    files = ("--refs", folder / "ref.rttm", "--hyps", folder / hyps, "--out", folder / "out")
    return main(["der", *map(str, (*files, *options))])


def figures(folder):
    return json.loads((folder / "out" / "score.json").read_text())


def test_score_json_and_summary(meetings, capsys):
    assert der(meetings) == 0
    score = figures(meetings)
    assert score["der"] == pytest.approx(100 * (2 + 2 + 8) / 38)
    assert score["missed"] == 0 and score["false_alarm"] == pytest.approx(100 * 2 / 38)
    assert score["interval"][0] <= score["der"] <= score["interval"][1]
    assert (score["collar"], score["overlap"], score["meetings"]) == (0, "scored", 2)
    assert (score["speaker_error"], score["speaker_bias"]) == (0.5, -0.5)
    assert score["by"]["meeting"]["m1"]["der"] == pytest.approx(10)
    assert score["command"].startswith("asrkit") and score["missing"] == []
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "%DER 31.58 [ missed 0.00, false alarm 5.26, confusion 26.32 ], 95% interval 10.00 to 55.56;"
    )
    assert first.endswith("collar 0 s, overlap scored, 2 meetings")
    assert second.startswith("%JER ") and third.startswith("speakers found - true: -0.50")


def test_only_what_the_uem_holds_is_scored(meetings):
    (meetings / "a.uem").write_text(";; seconds\nm2 1 0 5\nm2 1 5 12.0\n")
    assert der(meetings, "--uem", meetings / "a.uem", "--collar", 0.5) == 0
    score = figures(meetings)
    assert list(score["by"]["meeting"]) == ["m2"] and score["collar"] == 0.5
    assert score["speech"] == pytest.approx(9) and score["false_alarm"] == pytest.approx(100 * 1 / 9)


def test_a_recording_that_is_missing_counts_as_missed(meetings, capsys):
    (meetings / "hyps" / "m2.rttm").write_text("")
    assert der(meetings) == 0
    assert figures(meetings)["missing"] == ["m2"]
    assert figures(meetings)["missed"] == pytest.approx(100 * 18 / 38)
    assert "1 of 2 recordings are missing, their speech counts as missed: m2" in capsys.readouterr().err


def test_baseline_tracks_and_words(meetings, capsys):
    write_seglst(sum(REFS.values(), []), meetings / "ref.json")
    write_seglst(sum(HYPS.values(), []), meetings / "hyp.json")
    seats = {"ann": np.full(200, 3.0), "bob": np.full(200, -1.0), "eve": np.zeros(200)}
    write_tracks([Tracks(name, 0.1, seats) for name in REFS], meetings / "true.jsonl")
    write_tracks([Tracks("m1", 0.1, {"1": np.full(200, -3.0), "2": np.full(200, math.nan)})], meetings / "found.jsonl")
    options = ("--tracks", meetings / "true.jsonl", "--found_tracks", meetings / "found.jsonl")
    files = ["der", "--refs", meetings / "ref.json", "--hyps", meetings / "hyp.json", "--out", meetings / "out"]
    pytest.importorskip("meeteval", reason="meeteval is not installed (extra 'meetings')")
    assert main([*map(str, (*files, *options, "--baseline", meetings / "ref.rttm"))]) == 0
    score = figures(meetings)
    assert score["azimuth"]["median"] == pytest.approx(math.degrees(2 * math.pi - 6), abs=0.01)
    assert score["azimuth"]["covered"] == pytest.approx(100 * 100 / 380)
    assert score["words"]["cpwer"] == pytest.approx(100 * 2 / 5)  # "no" of eve is also inserted with ann
    assert score["baseline"]["difference"] == pytest.approx(score["der"]) and score["baseline"]["losses"] == 2
    out = capsys.readouterr().out
    assert "azimuth error" in out and "%cpWER 40.00" in out and "meetings better, same, worse: 0, 0, 2" in out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--collar", "-1"), "--collar"),
        (("--tracks", "t.jsonl"), "--found_tracks"),
        (("--uem", "empty.uem"), "empty.uem: nothing to score"),
        (("--baseline", "stranger.rttm"), "stranger.rttm: recording 'm9' is not in the references"),
        (("--baseline", "broken.rttm"), "broken.rttm: line 1"),
        (("--baseline", "none"), "No such file"),
        (("--tracks", "true.jsonl", "--found_tracks", "true.jsonl"), "no speaker 'ann'"),
    ],
)
def test_bad_input_is_one_line(meetings, monkeypatch, capsys, options, problem):
    (meetings / "stranger.rttm").write_text("SPEAKER m9 1 0 1 <NA> <NA> a <NA> <NA>\n")
    (meetings / "broken.rttm").write_text("SPEAKER m1 1 0 -1 <NA> <NA> a <NA> <NA>\n")
    (meetings / "empty.uem").write_text("")
    write_tracks([Tracks(name, 0.1, {}) for name in REFS], meetings / "true.jsonl")
    monkeypatch.chdir(meetings)
    assert der(meetings, *options) == 1
    err = capsys.readouterr().err
    assert problem in err and len([line for line in err.splitlines() if not line.startswith("warning")]) == 1


def test_folders(meetings, capsys):
    (meetings / "none").mkdir()
    assert der(meetings, hyps="none") == 1
    (meetings / "hyps" / "score.json").write_text("{}")  # what else is in a folder does not matter
    assert der(meetings) == 0
    (meetings / "hyps" / "again.rttm").write_text((meetings / "hyps" / "m1.rttm").read_text())
    assert der(meetings) == 1
    err = capsys.readouterr().err
    assert "no .rttm file in this folder" in err and "recording 'm1' is in" in err
