from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from asrkit.config import read_config, read_section, write_config
from asrkit.errors import InputError


@dataclass(frozen=True)
class Encoder:
    layers: int = 4
    kind: Literal["lstm", "conformer"] = "conformer"


@dataclass(frozen=True)
class Config:
    rate: float = 0.1
    encoder: Encoder = field(default_factory=Encoder)
    betas: tuple[float, float] = (0.9, 0.98)
    folder: Path | None = None

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError("rate must not be negative")


def yaml_file(tmp_path, text, name="a.yaml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_later_files_and_then_overrides_win(tmp_path):
    first = yaml_file(tmp_path, "rate: 1\nencoder: {layers: 2, kind: lstm}\n")
    second = yaml_file(tmp_path, "encoder: {layers: 3}\n", "b.yaml")
    made = read_config(Config, [first, second], {"rate": 0.5})
    assert made == Config(rate=0.5, encoder=Encoder(layers=3, kind="lstm"))
    assert read_config(Config) == Config()
    assert read_config(Config, [], {"encoder.layers": 7}).encoder == Encoder(layers=7)


def test_written_config_reads_back(tmp_path):
    config = Config(0.25, Encoder(1, "lstm"), (0.5, 0.6), Path("data/x"))
    write_config(config, tmp_path / "config.yaml")
    assert read_config(Config, [tmp_path / "config.yaml"]) == config


def test_section(tmp_path):
    file = yaml_file(tmp_path, "model: {layers: 2}\ntraining: {anything: 1}\nempty:\n")
    assert read_section(file, "model", Encoder) == Encoder(layers=2)
    assert read_section(file, "empty", Encoder) == Encoder()
    with pytest.raises(InputError, match="a.yaml: no section 'lm'"):
        read_section(file, "lm", Encoder)
    with pytest.raises(InputError, match="a.yaml: training: .*anything"):
        read_section(file, "training", Encoder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("rte: 1\n", "rte"),
        ("encoder: {layer: 1}\n", "layer"),
        ("encoder: {layers: two}\n", "layers"),
        ("encoder: {layers: 1.5}\n", "layers"),
        ("encoder: {kind: tdnn}\n", "kind"),
        ("rate: -1\n", "rate must not be negative"),
        ("- 1\n", "expected a mapping"),
        ("a: [1\n", "not YAML"),
        ("x: !!python/object/apply:os.system ['touch executed']\n", "not YAML"),
    ],
)
def test_mistakes_name_the_file_and_the_key_in_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read_config(Config, [yaml_file(tmp_path, text)])
    assert str(tmp_path / "a.yaml") in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_missing_file_and_wrong_override(tmp_path):
    with pytest.raises(InputError, match="none.yaml: No such file"):
        read_config(Config, [tmp_path / "none.yaml"])
    with pytest.raises(InputError, match="command line: .*layers"):
        read_config(Config, [], {"encoder.layers": "many"})
