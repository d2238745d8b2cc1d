import json
import subprocess

import pytest

from asrkit.errors import InputError
from asrkit.scoring.provenance import git_version, machine
from asrkit.scoring.results import Claim, Results, Row, evaluate, markdown, read_measures

MEASURES = {"a": {"wer": 4.0, "by": {"speaker": {"f-1": {"wer": 6.0}}}, "ser": None}, "b": {"wer": 5.0}}


def score_json(wer, **more):
    rates = {"wer": wer, "errors": 1, "words": 20, "insertions": 0, "deletions": 0, "substitutions": 1}
    return {**rates, "wer_interval": [1.0, 9.0], "first_word": rates, "other_words": rates | {"wer": None}, **more}


@pytest.fixture
def experiments(tmp_path):
    """Two sets decoded with one model, with commands and figures."""
    for name, wer in (("full", 5.0), ("streaming", 5.5)):
        (tmp_path / "asr" / name).mkdir(parents=True)
        (tmp_path / "asr" / name / "score.json").write_text(json.dumps(score_json(wer, command=f"score {name}")))
    decode = {"command": "decode full", "real_time_factor": 0.0312, "threads": 1}
    (tmp_path / "asr" / "full" / "decode.json").write_text(json.dumps(decode))
    train = {"command": "train", "parameters": 812345, "peak_memory_bytes": 800.4e6, "seconds": 600, "hours": 2}
    (tmp_path / "asr" / "train.json").write_text(json.dumps(train))
    return tmp_path


ROWS = {"full": Row("full context", "asr/full"), "live": Row("streaming", "asr/streaming")}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a.wer", 4.0),
        ("b.wer - a.wer", 1.0),
        ("100 * (b.wer - a.wer) / b.wer", 20.0),
        ("-a.wer + 1", -3.0),
        ('a.by.speaker["f-1"].wer', 6.0),
    ],
)
def test_evaluate(expression, value):
    assert evaluate(expression, MEASURES) == pytest.approx(value)


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("c.wer", "'c' is not measured"),
        ("a.cer", "'cer' is not measured"),
        ("a", "not a number"),
        ("a.ser", "not a number"),
        ("a.wer /", "not an arithmetic expression"),
        ("a.wer / (b.wer - b.wer)", "division by zero"),
        ("a.wer.real", "not"),
        ("__import__('os').getcwd()", "only"),
        ("a.wer ** 999999", "only"),
    ],
)
def test_evaluate_refuses(expression, problem):
    with pytest.raises(InputError, match=problem):
        evaluate(expression, MEASURES)


def test_markdown_shows_figures_and_verdicts(experiments):
    claims = [
        Claim("WER", "full.wer", at_most=5.0, paper="4.2"),
        Claim("loss of streaming", "live.wer - full.wer", at_most=0.4),
        Claim("parameters", "live.train.parameters", at_least=1e6),
        Claim("real-time factor", "full.decode.real_time_factor"),
    ]
    results = Results("My title", ROWS, "Words first.", claims, {"pictures/a.png": "An alignment"})
    text = markdown(results, read_measures(ROWS, experiments), "abc123", "a machine")
    lines = text.splitlines()
    assert lines[0] == "# My title" and "Words first." in text and "- git: abc123\n- machine: a machine" in text
    row = "| full context | **5.00** | 1.00–9.00 | 20 | 0 | 0 | 1 | 5.00 | – | 0.031 (1 thread) | 812,345 |"
    assert row in lines
    assert "| WER | 4.2 | at most 5 | 5.00 | met |" in lines
    assert "| loss of streaming | – | at most 0.4 | 0.50 | **not met** |" in lines
    assert "| parameters | – | at least 1e+06 | 812,345 | **not met** |" in lines
    assert "| real-time factor | – | – | 0.0312 | – |" in lines
    assert "| asr | 812,345 | 800 | 2.00 | 10.0 |" in lines
    assert "![An alignment](pictures/a.png)" in text
    assert "train\ndecode full\nscore full\nscore streaming" in text
    assert text == markdown(results, read_measures(ROWS, experiments), "abc123", "a machine")


def test_latencies_of_streams_have_their_table(experiments):
    assert "## Latency" not in markdown(Results("Title", ROWS), read_measures(ROWS, experiments), "git", "machine")
    spreads = {"first_partial": (0.61, 0.9), "emission": (0.2, 0.351), "token": (-0.05, -0.001), "final": (None, None)}
    latency = {name: {"median": median, "p90": p90} for name, (median, p90) in spreads.items()} | {"revised": 3.21}
    figures = score_json(5.5, latency=latency, last_words={"deleted": 2})
    (experiments / "asr" / "streaming" / "score.json").write_text(json.dumps(figures))
    decode = {"chunk_size": 32, "lookahead": 8, "real_time_factor": 0.02}
    (experiments / "asr" / "streaming" / "decode.json").write_text(json.dumps(decode))
    text = markdown(Results("Title", ROWS), read_measures(ROWS, experiments), "git", "machine")
    cells = "0.61 (0.90) | 0.20 (0.35) | -0.05 (0.00) | – (–) | 3.2 | 2 | 0.020 |"
    assert f"| streaming | 32 | 8 | **5.50** | {cells}" in text.split("## Latency")[1].splitlines()


def test_exports_have_their_table(experiments):
    def check(name, beam, moved, same):
        figures = {"wer": 4.0, "real_time_factor": 0.0123}
        exported = {"wer": 4.0 + moved, "real_time_factor": 0.004}
        return {"manifest": name, "beam": beam, "utterances": 20, "same": same, "asrkit": figures, "phone": exported}

    checks = [check("a/dev.jsonl.gz", 1, 0.0, 20), check("a/dev.jsonl.gz", 4, 0.05, 19), check("b.jsonl", 1, 0.2, 18)]
    report = {"command": "export it", "bytes": {"a": 1_200_000, "b": 60_000}, "blessed": False, "check": checks}
    (experiments / "int8").mkdir()
    (experiments / "int8" / "export.json").write_text(json.dumps(report))
    rows = {"int8": Row("8 bits", "int8")}
    claims = [Claim("bytes", "int8.bytes.a", at_most=2e6)]
    text = markdown(Results("Title", rows, claims=claims), read_measures(rows, experiments), "git", "machine")
    assert "## Word error rates" not in text and "export it" in text and "| met |" in text
    lines = text.split("## Exports")[1].splitlines()
    times = "0.0123 → 0.0040"
    assert f"| 8 bits | 1.3 | dev | 4.00 → 4.00 / 4.00 → 4.05 | 0 / 1 | {times} / {times} | **no** |" in lines
    assert f"| 8 bits | 1.3 | b | 4.00 → 4.20 | 2 | {times} | **no** |" in lines
    both = ROWS | rows
    text = markdown(Results("Title", both), read_measures(both, experiments), "git", "machine")
    assert "## Exports" in text and "8 bits" not in text.split("## Word error rates")[1].split("##")[0]


@pytest.fixture
def meetings(tmp_path):
    """Two sets scored by `asrkit der`, the second against the first, without azimuths and without its run."""
    parts = {"missed": 0.5, "false_alarm": 0.25, "confusion": 1.5, "jer": 4.0, "meetings": 20, "command": "der it"}
    parts |= {"speaker_error": 0.5, "speaker_bias": -0.25, "collar": 0.0, "overlap": "scored"}
    against = {"hypotheses": "exp/still/hyp.rttm", "difference": 1.25, "interval": [0.5, 2.0], "p_value": 0.003}
    scores = {
        "still": parts | {"der": 2.25, "interval": [1.5, 3.0], "azimuth": {"median": 1.04, "p90": 5.0}},
        "walk": parts | {"der": 3.5, "interval": None, "baseline": against | {"wins": 3, "ties": 2, "losses": 15}},
    }
    for name, figures in scores.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "score.json").write_text(json.dumps(figures))
    run = {"command": "diarise still", "duration": 6000.0, "seconds": 120.0, "config": {}}
    (tmp_path / "still" / "diarise.json").write_text(json.dumps(run))
    return tmp_path


def test_diarisation_has_its_table(meetings):
    rows = {"still": Row("sitting still", "still"), "walk": Row("walking", "walk")}
    claims = [Claim("still", "still.der", at_most=2.5), Claim("real-time", "still.diarise.seconds", at_most=60)]
    text = markdown(Results("Title", rows, claims=claims), read_measures(rows, meetings), "git", "machine")
    lines = text.splitlines()
    assert "## Word error rates" not in text and "percent of words" not in text
    parts = "0.50 | 0.25 | 1.50 | 4.00 | -0.25 (0.50)"
    scored = "collar 0 s, overlap scored"
    assert f"| sitting still | 20 | **2.25** | 1.50–3.00 | {parts} | 1.0 (5.0) | 0.020 | {scored} |" in lines
    assert f"| walking | 20 | **3.50** | – | {parts} | – | – | {scored} |" in lines
    assert "| walking | sitting still | +1.25 | +0.50 … +2.00 | 0.003 | 3 / 2 / 15 |" in lines
    assert "| still | – | at most 2.5 | 2.25 | met |" in lines and "| **not met** |" in text
    assert "diarise still\nder it" in text


def test_seeds_of_diarisation(meetings):
    rows = {"both": Row("two seeds", ["still", "walk"])}
    measures = read_measures(rows, meetings)
    assert measures["both"]["der_spread"] == pytest.approx(1.25 / 2**0.5)
    line = "| two seeds | 20 | **2.88** ± 0.88 | 2.25–3.50 (2 seeds) |"
    assert line in markdown(Results("T", rows), measures, "git", "machine")


def test_a_row_that_was_not_scored_is_named(experiments):
    with pytest.raises(InputError, match="asr/none/score.json"):
        read_measures({"none": Row("none", "asr/none")}, experiments)
    (experiments / "asr" / "full" / "score.json").write_text("{half")
    with pytest.raises(InputError, match="full/score.json: not JSON"):
        read_measures(ROWS, experiments)


def test_git_version_marks_a_changed_tree_but_not_for_its_own_results(tmp_path):
    assert git_version(tmp_path) == "unknown (no git checkout)"
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = git_version(tmp_path)
    assert len(clean) == 12
    (tmp_path / "recipe" / "pictures").mkdir(parents=True)
    (tmp_path / "recipe" / "RESULTS.md").write_text("figures")
    (tmp_path / "recipe" / "pictures" / "a.png").write_text("picture")
    assert git_version(tmp_path / "recipe") == clean
    (tmp_path / "code.py").write_text("2")
    assert git_version(tmp_path / "recipe") == f"{clean}+dirty"


def test_machine_names_torch():
    assert "core" in machine() and "torch 2" in machine()


def test_seeds_give_mean_and_spread_and_baselines_a_table_of_differences(experiments):
    against = {"hypotheses": "exp/asr/full/nbest.jsonl", "wer": 5.0, "difference": 0.5, "interval": [-0.25, 1.25]}
    live = score_json(5.5, baseline=against | {"p_value": 0.0123})
    (experiments / "asr" / "streaming" / "score.json").write_text(json.dumps(live))
    rows = ROWS | {"both": Row("two seeds", ["asr/full", "asr/streaming"])}
    measures = read_measures(rows, experiments)
    assert measures["both"]["wer"] == 5.25 and measures["both"]["wer_spread"] == pytest.approx(0.5 / 2**0.5)
    assert evaluate("both.train.seconds / 60", measures) == 10
    lines = markdown(Results("T", rows), measures, "abc123", "a machine").splitlines()
    assert "| streaming | full context | +0.50 | -0.25 … +1.25 | 0.012 |" in lines
    assert any(line.startswith("| two seeds | **5.25** ± 0.35 | 5.00–5.50 (2 seeds) | 20.0 | 0.0 |") for line in lines)
