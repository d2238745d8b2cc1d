"""`asrkit diarise` and `asrkit tune diarisation`: whole commands, on bands of noise that pass for voices."""

import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import yaml
from lhotse import CutSet, Recording

from asrkit.cli import diarise
from asrkit.cli.main import main
from asrkit.cli.tune_diarisation import cross_validated, sobol_points
from asrkit.data.formats import read_rttm, read_seglst, read_tracks, write_rttm
from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.observations import load_observations
from asrkit.diarisation.plda import Plda
from asrkit.types import Segment

pytest.importorskip("pyannote.metrics", reason="pip install 'asrkit[meetings]'")

RATE = 16000
VOICES = {"anna": (300, 900), "ben": (1200, 2400), "carl": (3000, 6000)}  # Hz
SEATS = {"anna": -math.pi + 0.05, "ben": 0.3, "carl": 1.8}
TURNS = [("anna", 1, 5), ("ben", 5.5, 9), ("carl", 9.2, 13), ("ben", 13.5, 16), ("anna", 16, 20), ("carl", 21, 24)]


class BandEmbedder:
    """Hears what share of a window each voice's band has."""

    sampling_rate = RATE

    def __call__(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        windows = (samples[int(a * RATE) : int(b * RATE)] for a, b in zip(starts, ends, strict=True))
        spectra = [np.abs(np.fft.rfft(window, RATE)) for window in windows]
        bands = [[spectrum[low:high].sum() for low, high in VOICES.values()] for spectrum in spectra]
        return np.array(bands, np.float32).reshape(-1, len(VOICES))


def voice(name: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise (T,) in the band of a voice, with the ups and downs of syllables."""
    size = round(seconds * RATE)
    spectrum, frequencies = np.fft.rfft(rng.normal(0, 1, size)), np.fft.rfftfreq(size, 1 / RATE)
    low, high = VOICES[name]
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    noise = np.fft.irfft(spectrum, size)
    return 0.1 * noise / noise.std() * (1 + 0.5 * np.sin(2 * math.pi * 4 * np.arange(size) / RATE))


def at_array(samples: np.ndarray, azimuth: float) -> np.ndarray:
    """Return what the microphones (C, T) hear of a far source."""
    delays = -ArrayGeometry().positions[:, :2] @ [math.cos(azimuth), math.sin(azimuth)] / 343
    phases = np.exp(-2j * math.pi * delays[:, None] * np.fft.rfftfreq(len(samples), 1 / RATE))
    return np.fft.irfft(np.fft.rfft(samples) * phases, len(samples))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A meeting, its turns and microphones, PLDA, and what people sound like by themselves."""
    folder, rng = tmp_path_factory.mktemp("meeting"), np.random.default_rng(0)
    audio = rng.normal(0, 0.002, (7, 25 * RATE))
    for name, start, end in TURNS:
        sound = at_array(voice(name, end - start, rng), SEATS[name])
        audio[:, round(start * RATE) : round(start * RATE) + sound.shape[1]] += sound
    soundfile.write(folder / "talk.flac", audio.T, RATE)
    soundfile.write(folder / "mono.wav", audio[0], RATE)
    write_rttm([Segment("talk", start, end, name) for name, start, end in TURNS], folder / "ref.rttm")
    write_rttm([Segment("mono", start, end, name) for name, start, end in TURNS], folder / "mono.rttm")
    for name in VOICES:
        alone = np.pad(voice(name, 4, rng), RATE)
        soundfile.write(folder / f"{name}.wav", alone + rng.normal(0, 0.002, len(alone)), RATE)
    (folder / "array.yaml").write_text(yaml.safe_dump({"microphones": ArrayGeometry().positions.tolist()}))
    Plda(np.zeros(3), np.eye(3) / 0.15, np.full(3, 10.0)).save(folder / "plda.npz")
    return folder


@pytest.fixture(autouse=True)
def embedder(monkeypatch):
    monkeypatch.setattr(diarise, "load_embedder", lambda model: BandEmbedder())


def run(folder: Path, *words: str | Path) -> int:
    options = ["--model", "bands", "--plda", folder / "plda.npz", "--frontend.activity", "energy"]
    return main(["diarise", *map(str, [*words, *options])])


def der(refs: Path, hyps: Path, out: Path) -> dict:
    assert main(["der", "--refs", str(refs), "--hyps", str(hyps), "--out", str(out)]) == 0
    return json.loads((out / "score.json").read_text())


@pytest.mark.parametrize("method", ["tracked", "ahc", "particle_filter", "spectral"])
def test_from_audio_to_turns(folder, tmp_path, method):
    array = ["--array", folder / "array.yaml", "--speech", folder / "ref.rttm"]
    assert run(folder, folder / "talk.flac", *array, "--out", tmp_path, "--method", method, "--speakers", "3") == 0
    score = der(folder / "ref.rttm", tmp_path / "hyp.rttm", tmp_path)
    assert score["der"] < 12 and score["speaker_error"] == 0
    assert len(read_seglst(tmp_path / "hyp.json")) == len(read_rttm(tmp_path / "hyp.rttm"))
    page = (tmp_path / "pages" / "talk.html").read_text()
    assert "talk" in page and "base64" in page
    record = json.loads((tmp_path / "diarise.json").read_text())
    assert record["duration"] == pytest.approx(25) and record["config"]["method"] == method


def test_where_everybody_sits(folder, tmp_path):
    array = ["--array", folder / "array.yaml", "--speech", folder / "ref.rttm"]
    assert run(folder, folder / "talk.flac", *array, "--out", tmp_path) == 0
    matches = der(folder / "ref.rttm", tmp_path / "hyp.rttm", tmp_path)
    assert matches["der"] < 12
    tracks = read_tracks(tmp_path / "tracks.jsonl")["talk"]
    found = [azimuths[round(10 * start) + 5] for _, start, _ in TURNS for azimuths in tracks.azimuths.values()]
    for name, start, _ in TURNS:
        there = [
            abs(math.remainder(a[round(10 * start) + 15] - SEATS[name], 2 * math.pi)) for a in tracks.azimuths.values()
        ]
        assert min(there) < 0.1, found


def test_one_channel_has_no_places(folder, tmp_path):
    assert run(folder, folder / "mono.wav", "--out", tmp_path, "--no_pages") == 0
    assert der(folder / "mono.rttm", tmp_path / "hyp.rttm", tmp_path)["der"] < 20
    (tracks,) = read_tracks(tmp_path / "tracks.jsonl").values()
    assert all(azimuth is None or math.isnan(azimuth) for track in tracks.azimuths.values() for azimuth in track)
    assert not (tmp_path / "pages").exists()


def test_prints_rttm_with_the_names_of_who_is_enrolled(folder, capsys):
    people = [f"{name}={folder / name}.wav" for name in ("ben", "anna")]
    assert run(folder, folder / "talk.flac", "--array", folder / "array.yaml", "--enrol", *people) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    speakers = {line[7] for line in lines}
    assert {"anna", "ben"} <= speakers and "carl" not in speakers
    spoken = [line[7] for line in lines if 2 < float(line[3]) + float(line[4]) / 2 < 4.5]
    assert spoken == ["anna"] * len(spoken)


def test_observations_are_kept_and_used(folder, tmp_path, monkeypatch):
    cut = Recording.from_file(folder / "talk.flac").to_cut()
    CutSet.from_cuts([cut]).to_file(tmp_path / "meetings.jsonl.gz")
    words = [tmp_path / "meetings.jsonl.gz", "--array", folder / "array.yaml", "--observations", tmp_path / "seen"]
    assert run(folder, *words, "--out", tmp_path / "a", "--no_pages") == 0
    assert len(load_observations(tmp_path / "seen" / "talk.npz")) > 60
    monkeypatch.setattr(diarise, "observe", None)
    assert run(folder, *words, "--out", tmp_path / "b", "--no_pages") == 0
    assert (tmp_path / "a" / "hyp.rttm").read_text() == (tmp_path / "b" / "hyp.rttm").read_text()


def test_blocks_of_a_long_recording(folder, tmp_path, monkeypatch):
    words = [folder / "talk.flac", "--array", folder / "array.yaml", "--speech", folder / "ref.rttm", "--no_pages"]
    assert run(folder, *words, "--out", tmp_path / "whole", "--observations", tmp_path / "a") == 0
    monkeypatch.setattr(diarise, "BLOCK", 6.0)
    assert run(folder, *words, "--out", tmp_path / "parts", "--observations", tmp_path / "b") == 0
    whole, parts = (load_observations(tmp_path / name / "talk.npz") for name in "ab")
    np.testing.assert_allclose(parts.starts, whole.starts)
    np.testing.assert_allclose(parts.azimuths, whole.azimuths, atol=0.05)
    assert diarise.blocks([(0, 2), (3, 5), (7, 22)], 6) == [[(0, 2), (3, 5)], [(7, 13)], [(13, 19)], [(19, 22)]]
    assert diarise.blocks([], 6) == [[]]


@pytest.mark.parametrize("source", ["file", "standard input"])
def test_online(folder, tmp_path, capsys, monkeypatch, source):
    people = [f"{name}={folder / name}.wav" for name in VOICES]
    name = str(folder / "talk.flac")
    if source != "file":
        samples, _ = soundfile.read(name, dtype="int16")
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(samples.tobytes())))
        name = "-"
    assert run(folder, name, "--array", folder / "array.yaml", "--online", "--enrol", *people) == 0
    (tmp_path / "hyp.rttm").write_text(capsys.readouterr().out.replace(" stdin ", " talk "))
    assert der(folder / "ref.rttm", tmp_path / "hyp.rttm", tmp_path)["der"] < 20
    assert {segment.speaker for segment in read_rttm(tmp_path / "hyp.rttm")} == set(VOICES)


def test_what_cannot_be_read_is_left_out(folder, tmp_path, capsys, damage):
    damaged = tmp_path / "damaged.wav"
    damaged.write_bytes((folder / "mono.wav").read_bytes())
    damage(damaged)
    with pytest.raises(SystemExit, match="1"):
        run(folder, damaged, folder / "mono.wav", "--out", tmp_path / "out", "--no_pages")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("asrkit diarise:")]
    assert "damaged" in line
    assert {segment.recording for segment in read_rttm(tmp_path / "out" / "hyp.rttm")} == {"mono"}


def test_silence_has_no_speakers(folder, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros((3 * RATE, 7)), RATE)
    words = [tmp_path / "silence.wav", "--array", folder / "array.yaml", "--out", tmp_path]
    assert run(folder, *words) == 0
    assert (tmp_path / "hyp.rttm").read_text() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mono.wav", "--array", "array.yaml"], "1 channel, but the array has 7 microphones"),
        (["talk.flac", "--speakers", "0"], "--speakers 0: must be positive"),
        (["talk.flac", "--min_speakers", "3", "--max_speakers", "2"], "--max-speakers 2: below --min-speakers 3"),
        (["talk.flac", "--enrol", "anna"], "--enrol anna: must be name=file"),
        (["talk.flac", "--speech", "mono.rttm"], "nothing of 'talk'"),
        (["talk.flac", "--method", "magic"], "magic"),
        (["talk.flac", "mono.wav", "--online"], "--online takes one recording"),
        (["talk.flac", "--online", "--lag", "-1"], "lag must not be below 0"),
        (["talk.flac", "--conf", "ref.rttm"], "ref.rttm"),
        (["talk.flac", "--array", "plda.npz"], "plda.npz"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    try:
        status = run(folder, *words)
    except SystemExit as error:
        status = error.code
    assert status == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("asrkit")]
    assert message in line


def test_tuning(folder, tmp_path, capsys):
    seen = tmp_path / "seen"
    words = [folder / "talk.flac", "--array", folder / "array.yaml", "--speech", folder / "ref.rttm", "--no_pages"]
    assert run(folder, *words, "--observations", seen, "--out", tmp_path) == 0
    (seen / "again.npz").write_bytes((seen / "talk.npz").read_bytes())
    refs = (folder / "ref.rttm").read_text()
    (tmp_path / "ref.rttm").write_text(refs + refs.replace(" talk ", " again "))
    (tmp_path / "ahc.yaml").write_text("method: ahc\nahc: {threshold: 100.0}\n")
    paths = {
        "observations": seen,
        "refs": tmp_path / "ref.rttm",
        "plda": folder / "plda.npz",
        "conf": tmp_path / "ahc.yaml",
    }
    options = [word for name, value in paths.items() for word in (f"--{name}", str(value))]
    options += ["--options", "ahc.threshold", "--trials", "8", "--folds", "2", "--out", str(tmp_path / "tuned.yaml")]
    assert main(["tune", "diarisation", *options]) == 0
    trials = [json.loads(line) for line in (tmp_path / "tuned.jsonl").read_text().splitlines()]
    assert len(trials) == 9 and trials[0]["options"] == {"ahc.threshold": 100.0}
    tuned = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    best = min(trials, key=lambda trial: trial["der"])
    assert tuned["method"] == "ahc" and tuned["ahc"]["threshold"] == best["options"]["ahc.threshold"]
    assert f"{best['der']:.2f} now" in capsys.readouterr().out


def test_the_points_of_tuning():
    points = sobol_points({"a": 2.0, "b": 0.0}, reach=6.0, number=16)
    assert points == sobol_points({"a": 2.0, "b": 0.0}, reach=6.0, number=16)
    a, b = np.array([[point["a"], point["b"]] for point in points]).T
    assert a.min() >= 2 / 6 and a.max() <= 12 and (a < 2).sum() == 8
    assert np.abs(b).max() <= 12 and (b < 0).sum() == 8


def test_cross_validation_chooses_by_other_meetings():
    errors = np.array([[0.0, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 0.0]])  # each option is good for two meetings
    assert cross_validated(errors, ["a", "a", "b", "b"], folds=2) == 9.0
    assert cross_validated(errors, ["a", "b", "a", "b"], folds=2) == 4.5
