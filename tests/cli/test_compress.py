import json
from pathlib import Path

import pytest

from asrkit.cli.compress import main as compress
from asrkit.cli.main import main as asrkit
from asrkit.cli.vision import main as vision
from asrkit.compress.mapping import read_mapping
from asrkit.compress.vision.networks import load_classifier

STEPS = "--training.steps 4 --training.warm_up_hours 0 --training.average 0"


@pytest.fixture(scope="module")
def experiments(tmp_path_factory) -> Path:
    """A folder with a classifier, dense, and pruned to 70%, which is then fine-tuned."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra 'vision')")
    folder = tmp_path_factory.mktemp("compress")
    dense, pruned, finetuned = (folder / name for name in ("dense", "pruned", "finetuned"))
    tiny = f"--images digits --images.size 8 --network.width 0.125 {STEPS}"
    vision(f"train --out {dense} {tiny}".split())
    compress(["map", "--model", str(dense), "--scheme", "punched 4x1", "--out", str(folder / "mapping.yaml")])
    compress(
        f"prune --model {dense} --mapping {folder}/mapping.yaml --pruning.ratio 0.7 --out {pruned} {STEPS}".split()
    )
    compress(f"finetune --model {pruned} --out {finetuned} {STEPS}".split())
    for model in (dense, finetuned):
        vision(f"test --model {model}".split())
    return folder


def zeros(folder: Path) -> dict[str, float]:
    """Return the part of the weights of each pruned layer that is zero."""
    network = load_classifier(folder).network
    mapping = read_mapping(folder / "mapping.yaml")
    return {path: float((network.get_submodule(path).weight == 0).float().mean()) for path in mapping}


def test_what_is_pruned_stays_so(experiments):
    pruned, finetuned = zeros(experiments / "pruned"), zeros(experiments / "finetuned")
    assert pruned == finetuned
    for path, entry in read_mapping(experiments / "finetuned" / "mapping.yaml").items():
        assert entry.ratio == pytest.approx(finetuned[path], abs=1e-6)
        assert (entry.ratio > 0) == (str(entry.scheme) == "punched 4x1")
    weights = load_classifier(experiments / "finetuned").state_dict()
    moved = load_classifier(experiments / "pruned").state_dict()
    assert any(not weights[name].equal(moved[name]) for name in weights)


def test_report(experiments):
    dense, finetuned = experiments / "dense", experiments / "finetuned"
    compress(["report", str(dense), str(finetuned), "--out", str(experiments / "pictures")])
    reports = [json.loads((folder / "compress.json").read_text()) for folder in (dense, finetuned)]
    assert reports[0]["speed_up"] == 1 and reports[0]["kept"] == 1 and reports[1]["kept"] < 0.5
    assert reports[1]["speed_up"] == pytest.approx(reports[0]["milliseconds"] / reports[1]["milliseconds"])
    assert reports[1]["macs_kept"] < 1 and {"torch"} <= set(reports[1]["engines_milliseconds"])
    kept = {layer["path"]: layer["kept"] for layer in reports[1]["layers"]}
    for path, part in zeros(finetuned).items():
        assert kept[path] == pytest.approx(1 - part, abs=1e-6)
    for picture in ("trade_off.png", "layers.png"):
        assert (experiments / "pictures" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("map --model dense --out x.yaml", "give --scheme, or --table with one of"),
        ("map --model dense --out x.yaml --scheme round", "round"),
        ("map --model dense --out x.yaml --table none.jsonl --speed-up 2", "none.jsonl"),
        ("map --model nothing --out x.yaml --scheme pattern", "nothing/config.yaml: No such file"),
        ("prune --model dense --mapping broken.yaml --out x", "broken.yaml"),
        ("prune --model dense --mapping other.yaml --out x", "nowhere"),
        ("prune --model dense --mapping mapping.yaml --pruning.ratio 1.5 --out x", "ratio must be from 0 to below 1"),
        ("map --model dense --out x.yaml --table none.jsonl --speed-up 0", "must be above 0"),
        ("finetune --model dense --out x", "not pruned"),
        ("finetune --model pruned --out other", "begun with another mapping"),
        ("report nothing --out x", "nothing/config.yaml: No such file"),
    ],
)
def test_wrong_use_gives_one_line(line, complaint, experiments, monkeypatch, capsys):
    monkeypatch.chdir(experiments)
    Path("broken.yaml").write_text("layers: {'0': {scheme: punched")
    Path("other").mkdir(exist_ok=True)
    Path("other/mapping.yaml").write_text("layers: {}")
    Path("other.yaml").write_text("layers: {nowhere: {scheme: pattern}}")
    status = asrkit(["compress", *line.split()])
    said = capsys.readouterr().err
    assert status == 1 and complaint in said and len(said.splitlines()) == 1, said
    assert not Path("x/model.pt").exists() and not Path("x.yaml").exists()
