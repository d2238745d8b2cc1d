"""The benchmarks run, agree with those peers that are there, and write what they promise; no test looks at a time."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "tools/bench"


def run(script: str, folder: Path) -> tuple[str, dict]:
    """Run a benchmark with --quick; return what it prints and its record."""
    files = ["--json", str(folder / "rows.json"), "--markdown", str(folder / "table.md")]
    command = [sys.executable, str(BENCH / script), "--quick", *files]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "table.md").read_text(encoding="utf-8")
    return done.stdout, json.loads((folder / "rows.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "script", ["transducer_loss.py", "training_step.py", "sparse_kernels.py", "sparse_networks.py"]
)
def test_results_agree(script, tmp_path):
    printed, record = run(script, tmp_path)
    assert set(record) == {"machine", "git", "peers", "absent", "rows", "notes"}
    assert record["rows"]
    for row in record["rows"]:
        assert set(row) == {"work", "peer", "ours", "theirs", "unit", "ratio", "result"}
        assert row["result"].startswith("equal to")
        assert row["work"] in printed and row["peer"] in printed
    for peer in record["absent"]:
        assert peer in printed


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import common

    yield common
    del sys.modules["common"]


def test_a_different_result_is_shown_and_fails(common, capsys):
    x = torch.ones(3)
    contestants = {
        "asrkit": lambda: [x],
        "same": lambda: [x + 1e-7],
        "other": lambda: [x + 0.5],
        "none": lambda: [x * torch.nan],
    }
    rows = common.duel("work", contestants, tolerance=1e-5, seconds=0)
    found = {row.peer: row.result for row in rows}
    assert found["same"].startswith("equal to")
    assert found["other"] == "DIFFERS by 5e-01" and found["none"] == "DIFFERS by nan"
    with pytest.raises(SystemExit, match="results differ"):
        common.report("bench", rows, common.options("bench").parse_args([]))
    assert "DIFFERS by 5e-01" in capsys.readouterr().out


def test_ratio_above_one_means_that_ours_is_better(common):
    assert common.Row("work", "peer", 2.0, 3.0, "ms", "equal").ratio == 1.5
    assert common.Row("work", "peer", 3.0, 2.0, "hours", "equal", more_is_better=True).ratio == 1.5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of the resident set to read")
def test_peak_memory_counts_what_is_held_at_once(common):
    one = 64 * 2**20 // 4  # floats in 64 MiB

    def two_of_three() -> None:
        for _ in range(3):
            x = torch.ones(one)
            y = torch.ones(one)
            del x, y

    assert common.peak_memory(two_of_three) == pytest.approx(128, rel=0.1)


def test_searches_find_the_same_texts(tmp_path):
    _, record = run("beam_search.py", tmp_path)
    results = {row["peer"]: row["result"] for row in record["rows"]}
    for peer in ("asrkit, one utterance at a time", "plain loop"):
        assert results[peer].endswith("8 of 8 texts equal")
    assert any(row["work"].startswith("search of 200 utterances") for row in record["rows"])


def test_streams_beside_others_find_the_same_texts(tmp_path):
    _, record = run("streaming.py", tmp_path)
    assert {row["work"] for row in record["rows"]} == {"10 streams, beam 4", "50 streams, beam 4"}
    assert all(row["result"].endswith("8 of 8 texts equal") for row in record["rows"])


@pytest.fixture
def engines(common):
    import engines

    yield engines
    del sys.modules["engines"]


class Wrong(torch.nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def unable(module: torch.nn.Module, *inputs: torch.Tensor) -> None:
    raise RuntimeError("no such layer")


def test_engines_are_checked_and_those_that_cannot_are_absent(common, engines, monkeypatch):
    in_torch = partial(engines.through, engines.in_torch)
    monkeypatch.setattr(engines, "dense_engines", lambda images: {"torch": in_torch, "other": unable})
    monkeypatch.setattr(engines, "in_c", engines.in_torch)
    modules = {"dense": torch.nn.Linear(3, 2), "half": torch.nn.Linear(3, 2)}
    rows = engines.contest("layer", modules, [torch.randn(4, 3)])
    assert [(row.work, row.peer) for row in rows] == [
        ("layer, dense", "torch"),
        ("layer, half", "best dense engine, torch"),
    ]
    assert all(row.result == "equal to 0e+00" for row in rows)
    assert common.absent == {"other from layer": "no such layer"}


def test_a_wrong_network_of_ours_is_shown(engines, monkeypatch):
    monkeypatch.setattr(engines, "dense_engines", lambda images: {"torch": partial(engines.through, engines.in_torch)})
    monkeypatch.setattr(engines, "in_c", lambda module, inputs, folder: engines.in_torch(Wrong(module), inputs, folder))
    (row,) = engines.contest("layer", {"dense": torch.nn.Linear(3, 2)}, [torch.randn(4, 3)])
    assert row.result.startswith("DIFFERS by")


def test_engines_leave_their_results_after_any_number_of_runs(engines):
    module, x = torch.nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 8, 8)
    for ready in engines.prepare_all("convolution", module, x).values():
        ready.run()
        assert engines.difference(ready, engines.in_eager(module, x)) < engines.TOLERANCE
