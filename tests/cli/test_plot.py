import json

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

from asrkit.cli.main import main
from asrkit.data.formats import write_nbest, write_rttm, write_tracks
from asrkit.data.manifests import save_cuts
from asrkit.diarisation.observations import Observations
from asrkit.types import Hypothesis, NBest, Segment, Tracks, Word


def plot(*arguments):
    return main(["plot", *map(str, arguments)])


def test_curve(tmp_path):
    records = [{"split": split, "hours": h, "loss": 1 / h, "lr": 0.1} for h in (1, 2) for split in ("train", "valid")]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert plot("curve", "--exp", tmp_path, "--out", tmp_path / "c.png") == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("log", "problem"), [('{"split": "train"}\n', "log.jsonl: line 1"), ("", "no records"), (None, "No such file")]
)
def test_curve_of_a_broken_log(tmp_path, capsys, log, problem):
    if log is not None:
        (tmp_path / "log.jsonl").write_text(log)
    assert plot("curve", "--exp", tmp_path, "--out", tmp_path / "c.png") == 1
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


@pytest.fixture
def decoded(tmp_path):
    """One utterance of noise at 8 kHz with a word time, and its hypothesis."""
    soundfile.write(tmp_path / "u1.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    supervision = SupervisionSegment("u1", "u1", 0.0, 1.0, text="hello")
    supervision = supervision.with_alignment("word", [AlignmentItem("hello", 0.2, 0.5)])
    recording = Recording.from_file(tmp_path / "u1.wav", recording_id="u1")
    save_cuts([MonoCut("u1", 0.0, 1.0, 0, [supervision], recording=recording)], tmp_path / "cuts.jsonl.gz")
    hyp = Hypothesis(("▁hel", "lo"), (0.4, 0.6), (Word("hello", 0.3, 0.6),), -1.0)
    write_nbest([NBest("empty", 1.0, ()), NBest("u1", 1.0, (hyp,))], tmp_path / "nbest.jsonl")
    return tmp_path


def test_alignment(decoded):
    files = ("--cuts", decoded / "cuts.jsonl.gz", "--hyps", decoded / "nbest.jsonl", "--out")
    assert plot("alignment", *files, decoded / "first.png") == 0
    assert plot("alignment", *files, decoded / "named.png", "--utterance", "u1") == 0
    assert (decoded / "first.png").read_bytes() == (decoded / "named.png").read_bytes()


def test_alignment_of_an_unknown_utterance(decoded, capsys):
    files = ("--cuts", decoded / "cuts.jsonl.gz", "--hyps", decoded / "nbest.jsonl", "--out", decoded / "a.png")
    assert plot("alignment", *files, "--utterance", "u9") == 1
    assert "'u9'" in capsys.readouterr().err


def test_latency(tmp_path, capsys):
    spread = {"median": 0.2, "p90": 0.4}
    scored = {"whole": {"wer": 2.0}, "8": {"wer": 3.0, "latency": {"emission": spread}}}
    for name, figures in scored.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "score.json").write_text(json.dumps({"references": "data/test.jsonl.gz", **figures}))
        (tmp_path / name / "decode.json").write_text('{"chunk_size": 8}')
    assert plot("latency", tmp_path / "whole", tmp_path / "8", "--out", tmp_path / "l.png") == 0
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
    assert plot("latency", tmp_path / "whole", "--out", tmp_path / "none.png") == 1
    assert "no latency in its score.json" in capsys.readouterr().err


def test_timeline(tmp_path, capsys):
    pytest.importorskip("pyannote.metrics", reason="pyannote.metrics is not installed (extra 'meetings')")
    write_rttm([Segment("m", 0, 2, "ann"), Segment("n", 0, 1, "bob")], tmp_path / "ref.rttm")
    write_rttm([Segment("m", 0, 1, "1")], tmp_path / "hyp.rttm")
    write_tracks([Tracks("m", 0.5, {"1": [0.1, 0.2]})], tmp_path / "tracks.jsonl")
    cells = np.zeros((2, 1))
    Observations(cells[:, 0], cells[:, 0] + 1, cells, cells[:, 0], cells[:, 0], cells).save(tmp_path / "seen.npz")
    files = ("--refs", tmp_path / "ref.rttm", "--hyps", tmp_path / "hyp.rttm", "--out", tmp_path / "t.png")
    where = ("--found_tracks", tmp_path / "tracks.jsonl", "--observations", tmp_path / "seen.npz")
    assert plot("timeline", *files, *where) == 0
    with_azimuths = (tmp_path / "t.png").read_bytes()
    assert plot("timeline", *files, "--recording", "n") == 0
    assert with_azimuths.startswith(b"\x89PNG") and with_azimuths != (tmp_path / "t.png").read_bytes()
    assert plot("timeline", *files, "--recording", "x") == 1
    assert "no recording 'x'" in capsys.readouterr().err


def test_der(tmp_path, capsys):
    for name in ("kalman/still", "kalman/walk", "vbx/walk"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "score.json").write_text('{"der": 3.5, "interval": [2.5, 4.5]}')
    folders = (tmp_path / "kalman/still", tmp_path / "kalman/walk", tmp_path / "vbx/walk")
    assert plot("der", *folders, "--out", tmp_path / "d.png") == 0
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "vbx/walk/score.json").write_text('{"wer": 3.5}')
    assert plot("der", *folders, "--out", tmp_path / "d.png") == 1
    assert "vbx/walk/score.json: no diarisation error rate" in capsys.readouterr().err
