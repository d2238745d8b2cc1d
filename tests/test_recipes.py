"""Every recipe in miniature: all stages of its run.sh, with a model of a few thousand weights and a few steps."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from asrkit.cli.train import ExperimentConfig
from asrkit.compress.latency import LatencyTable, header_line, point_line
from asrkit.compress.measuring import grid
from asrkit.config import read_config
from asrkit.diarisation.pipeline import DiarisationConfig
from asrkit.scoring.results import Results
from asrkit.search.fusion import read_fusion

REPOSITORY = Path(__file__).resolve().parents[1]
# Just long enough for the model to be mostly silent: what babbles takes long to decode and to score.
TINY = (
    "--training.steps 12 --training.learning_rate 0.05 --training.warm_up_hours 0 --training.average 0 "
    "--training.bf16 false --batching.workers 0 --model.warm_start_hours 0 --model.encoder.dim 16 "
    "--model.encoder.layers 1 --model.encoder.feedforward_dim 16 --model.encoder.subsampling_channels 4"
)


@dataclass(frozen=True)
class Recipe:
    """What makes a recipe small, the corpus that it needs (None: it makes its own), and the sets that it decodes."""

    prepare_options: str
    options: str
    corpus: str | None
    decoded: tuple[str, ...]


RECIPES = {
    "mini/asr": Recipe(
        "--hours 0.02 --test_utterances 5 --text_sentences 50 --jobs 1",
        "--vocab-size 150",
        None,
        ("test_seen", "test_unseen", "test_seen_streaming", "test_unseen_streaming"),
    ),
    "fsdd/asr": Recipe(
        "--hours 0.02",
        "--vocab-size 30 --processes 1",
        "fsdd",
        ("test", "test_heldout", "test_streaming", "test_heldout_streaming"),
    ),
    "librispeech/asr": Recipe(
        "", "--vocab-size 60 --processes 1", "librispeech_dev_clean_20spk", ("test", "test_streaming")
    ),
}


# recipes with a driver of their own, or that drive others
OTHERS = (
    "librispeech/speaker",
    "meetings/diarisation",
    "mini/compress",
    "mini/export",
    "mini/fusion",
    "mini/losses",
    "mini/streaming",
    "vision/pruning",
)


@pytest.fixture(params=RECIPES)
def name(request) -> str:
    return request.param


@pytest.fixture
def corpora_of(name, request, tmp_path) -> Path:
    """The folder to be $ASRKIT_CORPORA; skips where a corpus is not there."""
    corpus = RECIPES[name].corpus
    if corpus is None:
        if importlib.util.find_spec("espeakng_loader") is None:
            pytest.skip("no espeakng_loader; pip install 'asrkit[mini]'")
        return tmp_path
    corpora = request.getfixturevalue("corpora")
    if not (corpora / corpus).is_dir():
        pytest.skip(f"no {corpora / corpus}")
    if corpus.startswith("librispeech"):
        link_part_of_librispeech(corpora / corpus, tmp_path / corpus)
        return tmp_path
    return corpora


def link_part_of_librispeech(corpus: Path, part: Path, speakers: int = 6, utterances: int = 3) -> None:
    """Make a copy with a few speakers and the first utterances of a chapter of each."""
    for speaker in sorted((corpus / "dev-clean").iterdir())[:speakers]:
        chapter = min(speaker.iterdir())
        transcript = next(chapter.glob("*.trans.txt"))
        lines = transcript.read_text().splitlines()[:utterances]
        folder = part / "dev-clean" / speaker.name / chapter.name
        folder.mkdir(parents=True)
        (folder / transcript.name).write_text("".join(f"{line}\n" for line in lines))
        for audio in (file for line in lines for file in chapter.glob(f"{line.split()[0]}.*")):
            (folder / audio.name).symlink_to(audio)


def run(name: str, *options: str, corpora: Path = Path("/nonexistent")) -> subprocess.CompletedProcess:
    """Call a recipe in this Python's environment as it is."""
    environment = os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "ASRKIT_SKIP_SETUP": "1",
        "ASRKIT_CORPORA": str(corpora),
        "OMP_NUM_THREADS": "1",
    }
    command = [REPOSITORY / "egs" / name / "run.sh", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_all_stages(name, corpora_of, tmp_path):
    recipe, work = RECIPES[name], tmp_path / "work"
    options = ["--work", str(work), "--prepare-options", recipe.prepare_options, "--train-options", TINY]
    options += recipe.options.split()
    done = run(name, *options, corpora=corpora_of)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("stage ")] == [
        f"stage {number}" for number in range(1, 7)
    ]
    data, exp = work / "data" / "default", work / "exp" / "default"
    for file in ("train.jsonl.gz", "dev.jsonl.gz", "lang/tokens.txt", "lang/bpe.model"):
        assert (data / file).stat().st_size > 0
    for file in ("config.yaml", "model.pt", "lang/tokens.txt", "train.json", "log.jsonl"):
        assert (exp / file).stat().st_size > 0
    for decoded in recipe.decoded:
        for file in ("nbest.jsonl", "text", "ctm", "decode.json", "score.json", "alignments.txt"):
            assert (exp / decoded / file).exists(), f"{decoded}/{file}"
    results = (work / "RESULTS.md").read_text()
    for row in read_config(Results, [REPOSITORY / "egs" / name / "results.yaml"]).rows.values():
        assert f"| {row.name} | " in results
    for picture in ("curve.png", "alignment.png"):
        assert (work / "pictures" / picture).read_bytes().startswith(b"\x89PNG") and f"pictures/{picture}" in results
    if name != "mini/asr":  # what follows is the driver's doing, the same in all recipes
        return

    def times() -> dict[Path, int]:
        kept = [*(work / "data").rglob("*.jsonl.gz"), *(work / "data").rglob("*.wav"), *exp.rglob("*.pt")]
        return {file: file.stat().st_mtime_ns for file in [*kept, exp / "train.json", exp / "log.jsonl"]}

    before = times()
    again = run(name, *options, "--stop-stage", "3", corpora=corpora_of)
    assert again.returncode == 0 and "training is complete" in again.stderr
    assert times() == before


@pytest.fixture
def mini_options(tmp_path) -> list[str]:
    """Options that make a recipe on the embedded corpus small."""
    if importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip("no espeakng_loader; pip install 'asrkit[mini]'")
    options = ["--work", str(tmp_path / "work"), "--processes", "1", "--vocab-size", "150", "--train-options", TINY]
    return [*options, "--prepare-options", RECIPES["mini/asr"].prepare_options]


def test_losses_in_miniature(mini_options, tmp_path):
    done = run("mini/losses", *mini_options, "--seeds", "7", "--stop-stage", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    trained = {"full": "loss: full\n", "pruned": "prune_by: ctc\n", "simple": "prune_by: simple\n"}
    for loss, line in trained.items():
        experiment = tmp_path / "work" / "exp" / f"{loss}-7"
        assert line in (experiment / "config.yaml").read_text()
        assert all((experiment / decoded / "score.json").exists() for decoded in ("test_seen", "test_unseen"))
    script, manifest = "egs/mini/losses/left_out.py", tmp_path / "work" / "data" / "default" / "test_unseen.jsonl.gz"
    command = [sys.executable, script, tmp_path / "work" / "exp" / "simple-7", manifest, "--utterances", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert [line.split(" labels")[0] for line in done.stdout.splitlines()] == [
        f"{way}, {size}" for way in ("simple", "ctc") for size in (3, 4, 5)
    ]


def test_fusion_in_miniature(mini_options, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("anna\n")
    options = [*mini_options, "--targets", "meeting", "--phrases", str(names), "--stop-stage", "8"]
    options += ["--target-options", "--test_utterances 3 --text_sentences 30 --jobs 1"]
    options += ["--lm-options", "--model.dim 8 --training.epochs 1"]
    done = run("mini/fusion", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    exp = tmp_path / "work" / "exp" / "default"
    names = {"shallow_fusion": {"target"}, "density_ratio": {"target", "source"}, "lodr": {"target", "source_bigram"}}
    names |= {"ilme": {"target"}, "length": set(), "context": {"context"}}
    for method, expected in names.items():
        folder = exp / "meeting" / method
        weights = read_fusion(folder / "tuned.yaml").weights
        assert weights.keys() == {*expected, "internal_lm", "length"}
        decoded = json.loads((folder / "decode.json").read_text())
        assert decoded["fusion"] == weights and (folder / "score.json").exists()
        assert (folder / "tuned.png").read_bytes().startswith(b"\x89PNG")
    assert "phrases" in json.loads((exp / "meeting" / "context" / "score.json").read_text())


def test_streaming_in_miniature(mini_options, tmp_path):
    options = [*mini_options, "--asr", str(tmp_path / "asr"), "--test-sets", "test_seen", "--chunk-sizes", "8"]
    done = run("mini/streaming", *options, "--stop-stage", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    exp = tmp_path / "work" / "exp"
    tried = [line.split()[:2] for line in (exp / "dev" / "8").read_text().splitlines()]
    assert sorted(tried) == [["0", "%WER"], ["2", "%WER"], ["4", "%WER"]]
    assert json.loads((exp / "test_seen" / "8" / "decode.json").read_text())["lookahead"] == int(tried[0][0])
    scored = {name: json.loads((exp / "test_seen" / name / "score.json").read_text()) for name in ("whole", "8", "8-0")}
    assert [name for name, figures in scored.items() if "latency" in figures] == ["8"]
    assert "8-masked" in scored["8-0"]["references"]


def test_export_in_miniature(mini_options, tmp_path):
    for package in ("onnx", "onnxruntime", "sherpa_onnx", "executorch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}; pip install 'asrkit[export,executorch]'")
    done = run("mini/export", *mini_options, "--asr", str(tmp_path / "asr"), "--test-sets", "test_unseen")
    assert done.returncode == 0, done.stdout + done.stderr
    results = (tmp_path / "work" / "RESULTS.md").read_text()
    for row in read_config(Results, [REPOSITORY / "egs" / "mini" / "export" / "results.yaml"]).rows.values():
        report = json.loads((tmp_path / "work" / "exp" / row.dir / "export.json").read_text())
        assert ("--streaming" in report["command"]) == row.dir.endswith("-streaming")
        checked = [(Path(check["manifest"]).name, check["beam"]) for check in report["check"]]
        assert checked == [(f"{name}.jsonl.gz", beam) for name in ("dev", "test_unseen") for beam in (1, 4)]
        assert f"| {row.name} | " in results


@pytest.fixture
def latencies(tmp_path) -> str:
    """A latency table with made-up figures: time is proportional to the multiplications that are left."""
    lines = [header_line(LatencyTable("avx512", "a made-up machine"))]
    lines += [point_line(point, 1e-6 + 1e-11 * point.layer.macs * (1 - point.ratio)) for point in grid()]
    (tmp_path / "latency.jsonl").write_text("".join(lines))
    return str(tmp_path / "latency.jsonl")


def test_compress_in_miniature(mini_options, latencies, tmp_path):
    steps = "--training.steps 4 --training.bf16 false --training.average 0"
    options = [*mini_options, "--asr", str(tmp_path / "asr"), "--test-sets", "test_seen", "--percents", "60"]
    options += ["--table", latencies, "--speed-up", "1.05", "--prune-options", steps, "--stop-stage", "7"]
    options += ["--train-options", f"{TINY} --model.encoder.dim 48 --model.encoder.feedforward_dim 64"]
    done = run("mini/compress", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    exp = tmp_path / "work" / "exp"
    found = json.loads((exp / "sparse-60" / "compress.json").read_text())
    assert found["kept"] < 1 and {layer["scheme"] for layer in found["layers"]} > {"dense"}
    assert (exp / "sparse-60" / "test_seen" / "score.json").exists()
    assert json.loads((exp / "export" / "export.json").read_text())["format"] == "c"


def test_pruning_in_miniature(latencies, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra 'vision')")
    options = ["--work", str(tmp_path), "--images", "digits", "--networks", "resnet32", "--seeds", "0"]
    options += ["--mappings", "rule filter", "--percents", "60", "--methods", "admm", "--method-percents", "60"]
    options += ["--more-mappings", "punched_4x1"]
    options += ["--table", latencies, "--speed-up", "1.2", "--train-options", "--training.steps 4"]
    options += ["--dense-options", "--images.size 8 --network.width 0.5", "--stop-stage", "6"]
    done = run("vision/pruning", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    exp = tmp_path / "exp" / "resnet32" / "0"
    for name in ("dense", "rule-60", "filter-60", "punched_4x1-60", "admm-60"):
        assert 0 <= json.loads((exp / name / "score.json").read_text())["accuracy"] <= 100
        kept = json.loads((exp / name / "compress.json").read_text())["kept"]
        assert (kept == 1) == (name == "dense")
    for picture in ("trade_off.png", "block_sizes.png", "layers.png"):
        assert (tmp_path / "pictures" / "resnet32-0" / picture).read_bytes().startswith(b"\x89PNG")


def test_speaker_in_miniature(corpora, tmp_path):
    folders = {"train": "librispeech_train_clean_100_251spk", "held-out": "librispeech_dev_clean_20spk"}
    for part, folder in folders.items():
        if not (corpora / folder).is_dir():
            pytest.skip(f"no {corpora / folder}")
        speakers: dict[str, list[Path]] = {}
        for file in sorted(corpora.joinpath(folder).rglob("*-*-*.*")):
            speakers.setdefault(file.name.partition("-")[0], []).append(file)
        for file in (file for files in list(speakers.values())[:4] for file in files[:2]):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / file.name).symlink_to(file)
    done = run(
        "librispeech/speaker",
        *("--work", str(tmp_path / "work"), "--stop-stage", "5", "--window-options", "--windows.number 2"),
        *("--prepare-options", f"--train-dir {tmp_path / 'train'} --held-out-dir {tmp_path / 'held-out'}"),
        *("--train-options", "--training.steps 3 --batching.size 8 --batching.workers 0 --model.channels 8"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    exp = tmp_path / "work" / "exp" / "default"
    for name in ("test", "test_clean"):
        figures = json.loads((exp / name / "score.json").read_text())
        assert figures["speakers"] == 2 and figures.keys() >= {"cosine", "plda"}


def test_diarisation_in_miniature(mini_options, tmp_path):
    for package in ("pyannote.metrics", "pyroomacoustics", "silero_vad"):
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            pytest.skip(f"no {package}; pip install 'asrkit[meetings]'")
    done = run(
        "meetings/diarisation",
        *("--work", str(tmp_path / "work"), "--speakers", str(tmp_path / "speakers"), "--model", ""),
        *("--corpus", "mini", "--test-set", "test_unseen"),
        *("--prepare-options", "--hours 0.05 --test_utterances 240 --text_sentences 10 --jobs 1"),
        *("--train-options", "--training.steps 3 --batching.size 8 --batching.workers 0 --model.channels 8"),
        *("--simulate-options", "--simulation.speakers 2 --simulation.duration 12 --simulation.turns [1,2]"),
        *("--conditions", "walk", "--tune-conditions", "walk", "--extra-conditions", "walk"),
        *("--systems", "ahc_stationary ahc_kalman tracked pf_kalman", "--baselines", "ahc_kalman:ahc_stationary"),
        *("--tune-meetings", "2", "--test-meetings", "2", "--trials", "2", "--ami", "", "--stop-stage", "7"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    exp = tmp_path / "work" / "exp"
    for system in ("ahc_stationary", "ahc_kalman", "tracked", "pf_kalman", "found", "lag_0", "lag_2", "lag_1000"):
        score = json.loads((exp / system / "walk" / "score.json").read_text())
        assert score["meetings"] == 2 and score["azimuth"]["covered"] > 0
        assert ("baseline" in score) == (system == "ahc_kalman")
    assert read_config(DiarisationConfig, [exp / "tuned" / "pf_kalman.yaml"]).method == "particle_filter"


@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_help_is_the_head_of_the_driver(name):
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 5 and not done.stdout.startswith(("#", "Options"))
    assert all(option in done.stdout for option in ("--stage", "--stop-stage", "--work", "--train-options"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "3"], "unknown option '--stages'"),
        (["--stage", "three"], "option '--stage' is a whole number, not 'three'"),
        (["--setting", "none"], "--setting: no file"),
        (["3"], "unexpected argument '3'"),
    ],
)
def test_a_wrong_option_is_one_line(options, message):
    done = run("mini/asr", *options)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert message in line


def test_a_failing_stage_ends_the_run(tmp_path):
    done = run("mini/asr", "--work", str(tmp_path), "--prepare-options", "--hours none")
    assert done.returncode != 0
    assert "none" in done.stderr and len(done.stderr.splitlines()) == 1
    assert "stage 2" not in done.stdout


def test_the_table_has_every_recipe():
    assert {*RECIPES, *OTHERS} == {
        str(file.parent.relative_to(REPOSITORY / "egs")) for file in REPOSITORY.glob("egs/*/*/run.sh")
    }


@pytest.mark.parametrize(
    "setting",
    [str(file.parent.relative_to(REPOSITORY)) for file in sorted(REPOSITORY.glob("egs/*/*/conf/*/train.yaml"))],
)
def test_every_setting_is_complete(setting):
    read_config(ExperimentConfig, [REPOSITORY / setting / "train.yaml"])
    assert (REPOSITORY / setting / "prepare.options").is_file()


@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_every_recipe_is_short_and_explained(name):
    folder = REPOSITORY / "egs" / name
    assert os.access(folder / "run.sh", os.X_OK) and len((folder / "run.sh").read_text().splitlines()) <= 40
    assert (folder / "README.md").is_file()
    rows = read_config(Results, [folder / "results.yaml"]).rows
    if name in RECIPES:
        assert {dir for row in rows.values() for dir in row.dirs} <= set(RECIPES[name].decoded)
