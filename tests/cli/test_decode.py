"""`asrkit decode`: every kind of input and output, and what happens to bad ones."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import wave
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
import yaml

from asrkit.cli import decode as module
from asrkit.cli.main import main
from asrkit.data.audio import read_cut
from asrkit.data.corpora.kaldi import write_kaldi_directory
from asrkit.data.formats import read_nbest, read_text
from asrkit.data.manifests import save_cuts
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.search.recogniser import load
from asrkit.search.streaming import Endpoint, decode_streams
from asrkit.types import NBest


@pytest.fixture(scope="module")
def audio(tmp_path_factory, tones) -> Path:
    """A folder of three files, one of them further down, beside something else."""
    folder = tmp_path_factory.mktemp("audio")
    (folder / "more").mkdir()
    for seed, (name, seconds) in enumerate({"a.wav": 1.5, "b.flac": 2.31, "more/c.wav": 0.7}.items()):
        soundfile.write(folder / name, (32767 * tones(seconds, seed)).short().numpy(), 16000)
    (folder / "notes.txt").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def expected(audio, experiment) -> dict[str, NBest]:
    recogniser = load(experiment)
    return {name: recogniser.transcribe(audio / name) for name in ("a.wav", "b.flac", "more/c.wav")}


@pytest.fixture(scope="module")
def cuts(audio) -> list:
    """Utterances of different lengths, some of them parts of one recording."""
    a, b, c = (read_recording(audio / name, name[0]) for name in ("a.wav", "b.flac", "more/c.wav"))
    spans = {"u1": (c, 0, None), "u2": (b, 0.5, 2.1), "u3": (b, 0.0, 0.9), "u4": (a, 0.0, None), "u5": (a, 0.2, 0.6)}
    return [utterance_cut(recording, name, "a b", "s", *span) for name, (recording, *span) in spans.items()]


@pytest.fixture
def decode(experiment, capsys):
    """A function that runs the command and returns its exit status, standard output and lines of error messages."""

    def call(*words, model=experiment) -> tuple[int, str, list[str]]:
        try:
            status = main(["decode", *map(str, words), "--model", str(model)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, [line for line in err.splitlines() if line.startswith("asrkit decode: ")]

    return call


@pytest.mark.parametrize("options", [[], ["--beam", "1"], ["--streaming"]])
def test_bf16(decode, audio, expected, tmp_path, options):
    assert decode(audio / "a.wav", "--bf16", "--out", tmp_path / "out", *options)[0] == 0
    (result,) = read_nbest(tmp_path / "out" / "nbest.jsonl")
    assert result.duration == expected["a.wav"].duration and result.hyps
    assert json.loads((tmp_path / "out" / "decode.json").read_text())["bf16"]
    if not options:  # close to float32, but not equal
        score, exact = result.hyps[0].score, expected["a.wav"].hyps[0].score
        assert score == pytest.approx(exact, rel=0.1) and score != exact


@pytest.fixture
def copy(experiment, tmp_path) -> Path:
    """An experiment directory to be damaged."""
    return shutil.copytree(experiment, tmp_path / "copy")


def text_lines(results: dict[str, NBest]) -> str:
    return "".join(f"{name} {result.hyps[0].text}\n" for name, result in results.items())


def test_files_in_their_order(decode, audio, expected):
    names = [audio / "b.flac", audio / "a.wav"]
    status, out, errors = decode(*names)
    assert (status, errors) == (0, [])
    assert out == text_lines({str(audio / name): expected[name] for name in ("b.flac", "a.wav")})
    assert len(set(out.split())) > 10


def test_a_folder_is_its_audio_files(decode, audio, expected, tmp_path):
    assert decode(audio)[:2] == (0, text_lines({str(audio / name): result for name, result in expected.items()}))
    assert decode(tmp_path) == (1, "", [f"asrkit decode: {tmp_path}: no audio files in this folder"])


def test_a_manifest_in_its_order_however_batched(decode, cuts, tmp_path, monkeypatch):
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    status, out, _ = decode(tmp_path / "cuts.jsonl.gz")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [cut.id for cut in cuts]
    monkeypatch.setattr(module, "WINDOW", 2)
    assert decode(tmp_path / "cuts.jsonl.gz")[1] == out
    monkeypatch.setattr(module, "BATCH_SECONDS", 0.1)
    assert decode(tmp_path / "cuts.jsonl.gz")[1] == out


def test_a_whole_recording_of_a_manifest_is_its_file(decode, cuts, expected, tmp_path):
    save_cuts([cut for cut in cuts if cut.id in ("u1", "u4")], tmp_path / "cuts.jsonl")
    out = decode(tmp_path / "cuts.jsonl")[1]
    assert out == text_lines({"u1": expected["more/c.wav"], "u4": expected["a.wav"]})


def test_a_kaldi_directory_is_its_manifest(decode, cuts, tmp_path):
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    write_kaldi_directory(cuts, tmp_path / "kaldi")
    (tmp_path / "kaldi" / "text").unlink()  # what is to be found out need not be known
    assert decode(tmp_path / "kaldi")[:2] == decode(tmp_path / "cuts.jsonl")[:2]


@pytest.mark.parametrize("start", [0.1, 0.123])
def test_long_cuts_are_streamed(decode, audio, tmp_path, monkeypatch, experiment, start):
    """In stretches that together are the cut, also where its length is a multiple of theirs but for rounding."""
    cut = utterance_cut(read_recording(audio / "b.flac", "b"), "u", "a", "s", start, start + 2.1)
    save_cuts([cut], tmp_path / "cuts.jsonl")
    monkeypatch.setattr(module, "LONG_SECONDS", 0.7)
    stream = load(experiment).stream("u")
    stream.accept(read_cut(cut, 16000))
    assert decode(tmp_path / "cuts.jsonl")[1] == text_lines({"u": stream.finish()})


def test_raw_samples_on_standard_input(decode, audio, expected, monkeypatch):
    with wave.open(str(audio / "a.wav")) as file:
        pcm = file.readframes(file.getnframes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm)))
    assert decode("-")[:2] == (0, text_lines({"-": expected["a.wav"]}))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert decode("-") == (1, "", ["asrkit decode: standard input: no audio"])


def test_a_live_stream_shows_partial_results(experiment, audio):
    """Through a real pipe: partial results on standard error, each longer than the one before; the final one apart."""
    with wave.open(str(audio / "a.wav")) as file:
        pcm = file.readframes(file.getnframes())
    command = [sys.executable, "-m", "asrkit.cli.main", "decode", "--streaming", "-", "--model", str(experiment)]
    done = subprocess.run(command, input=pcm, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0
    stream = load(experiment).stream("-")
    stream.accept(torch.from_numpy(np.frombuffer(pcm, "<i2") / np.float32(32768)))
    assert done.stdout.decode() == text_lines({"-": stream.finish()})
    seconds = [float(line.split()[1].removesuffix("s:")) for line in done.stderr.decode().splitlines()]
    # The first chunk is of 0.32 s; those that follow hear the last 0.16 s of the one before again.
    assert seconds[0] == 0.32 and seconds[-1] == 1.5
    assert all(round(100 * time) in (*range(32, 150, 16), 150) for time in seconds)


def test_streaming_files(audio, capsys, experiment):
    file = str(audio / "b.flac")
    samples = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
    result = load(experiment).recognise([samples], [file], chunk_size=4)[0]
    assert (
        main(["decode", "--streaming", "--chunk-size", "4", "--lookahead", "0", file, "--model", str(experiment)]) == 0
    )
    out, err = capsys.readouterr()
    assert out == text_lines({file: result})
    partial = [line.removeprefix(f"{file} ").split(": ") for line in err.splitlines()]
    times, texts = [float(time.removesuffix("s")) for time, _ in partial], [text for _, text in partial]
    assert all(time == pytest.approx(0.16 * round(time / 0.16)) for time in times[:-1]) and times[-1] == 2.31
    assert all(text != following for text, following in pairwise(texts))


def test_streams_together_are_each_alone(decode, audio, cuts, experiment, tmp_path):
    """Many sources at once; partials.jsonl says when what was known, and ends with the final result."""
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    assert decode("--streaming", tmp_path / "cuts.jsonl", audio / "a.wav", "--out", tmp_path / "out")[0] == 0
    results = list(read_nbest(tmp_path / "out" / "nbest.jsonl"))
    assert [result.utterance for result in results] == [*(cut.id for cut in cuts), str(audio / "a.wav")]
    recogniser = load(experiment)
    records = [json.loads(line) for line in (tmp_path / "out" / "partials.jsonl").read_text().splitlines()]
    for result, record, cut in zip(results, records, cuts, strict=False):
        stream = recogniser.stream(cut.id)
        stream.accept(read_cut(cut, 16000))
        assert stream.finish().hyps[0].text == result.hyps[0].text
        assert record["utterance"] == result.utterance
        times, texts = zip(*record["partials"], strict=True)
        assert list(times) == sorted(set(times)) and times[-1] <= result.duration + 1e-3
        assert texts[-1] == result.hyps[0].text
    assert json.loads((tmp_path / "out" / "decode.json").read_text())["together"] == module.WINDOW


def test_a_compiled_encoder(decode, audio, experiment, tmp_path):
    folder = tmp_path / "c"
    options = ["--format", "c", "--chunk-size", "8", "--lookahead", "2", "--out", str(folder)]
    assert main(["export", "--model", str(experiment), *options]) == 0
    decode()  # what the export has printed is read
    expected = decode("--streaming", "--chunk-size", 8, "--lookahead", 2, audio)
    assert decode("--streaming", "--compiled", folder, audio) == expected
    assert len(set(expected[1].split())) > 10
    assert decode("--streaming", "--compiled", folder, audio, "--out", tmp_path / "out")[0] == 0
    told = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert (told["chunk_size"], told["lookahead"]) == (8, 2)
    for wrong, message in {
        ("--streaming", "--chunk-size", 4): "chunk size 4, lookahead 2: this encoder was compiled for 8 and 2",
        (): "--compiled: needs --streaming",
    }.items():
        assert decode("--compiled", folder, *wrong, audio) == (1, "", [f"asrkit decode: {message}"])


class FakeMicrophone:
    """sounddevice, as far as it is used: hears `audio`, then somebody presses Ctrl-C."""

    PortAudioError = RuntimeError

    def __init__(self, audio: torch.Tensor) -> None:
        self.audio = audio

    def InputStream(self, samplerate, channels, dtype):  # noqa: N802
        if (samplerate, channels, dtype) != (16000, 1, "float32"):
            raise self.PortAudioError("Invalid sample rate")
        return nullcontext(self)

    def read(self, size):
        if len(self.audio) == 0:
            raise KeyboardInterrupt
        block, self.audio = self.audio[:size], self.audio[size:]
        return block.numpy()[:, None], False


def test_the_microphone_until_it_is_interrupted(decode, tones, experiment, monkeypatch):
    """Segments are printed as they end, and the last words are not lost."""
    samples = tones(3.05)
    monkeypatch.setitem(sys.modules, "sounddevice", FakeMicrophone(samples))
    monkeypatch.setattr(module, "Endpoint", lambda: Endpoint(pause=0.12))
    stream = load(experiment).stream("microphone", endpoint=Endpoint(pause=0.12))
    stream.accept(samples)
    stream.close()
    while decode_streams([stream]):
        pass
    lines = [f"microphone {text}\n" for text in (segment.hyps[0].text for segment in stream.segments) if text]
    assert len(lines) > 2
    assert decode("--streaming", "microphone")[:2] == (0, "".join(lines))


def test_no_microphone(decode, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    status, out, (error,) = decode("--streaming", "microphone")
    assert (status, out) == (1, "") and "pip install 'asrkit[microphone]'" in error
    microphone = FakeMicrophone(torch.zeros(0))
    microphone.read = Mock(side_effect=microphone.PortAudioError("Error querying device -1"))
    monkeypatch.setitem(sys.modules, "sounddevice", microphone)
    assert decode("--streaming", "microphone")[2] == ["asrkit decode: microphone: Error querying device -1"]


def test_formats_tell_the_same(decode, audio, expected):
    files, results = [audio / name for name in expected], list(expected.values())
    best = [result.hyps[0] for result in results]

    def printed(name):
        status, out, errors = decode(*files, "--format", name)
        assert (status, errors) == (0, [])
        return out

    found = [json.loads(line) for line in printed("nbest").splitlines()]
    assert [[hyp["text"] for hyp in one["hyps"]] for one in found] == [[h.text for h in r.hyps] for r in results]
    assert [one["hyps"][0]["tokens"] for one in found] == [list(hyp.tokens) for hyp in best]

    reader, rest = json.JSONDecoder(), printed("json")
    for file, result in zip(files, results, strict=True):
        record, end = reader.raw_decode(rest)
        rest = rest[end:].lstrip()
        assert (record["utterance"], record["text"]) == (str(file), result.hyps[0].text)
        assert [word["start"] for word in record["words"]] == [word.start for word in result.hyps[0].words]
    assert rest == ""

    lines = [line.split() for line in printed("ctm").splitlines()]
    assert [line[4] for line in lines] == [word.text for hyp in best for word in hyp.words]
    assert [float(line[2]) for line in lines] == pytest.approx([word.start for hyp in best for word in hyp.words])

    subtitles = [line for line in printed("srt").splitlines() if line and "-->" not in line and not line.isdigit()]
    assert " ".join(subtitles) == " ".join(hyp.text for hyp in best)


@pytest.mark.parametrize(("name", "nothing"), [("text", "a.wav\n"), ("ctm", ""), ("srt", "")])
def test_nothing_heard_is_no_line(decode, copy, audio, name, nothing, monkeypatch):
    weights = torch.load(copy / "model.pt", weights_only=True)
    weights["model"]["joiner.output.bias"][0] = 1000.0
    torch.save(weights, copy / "model.pt")
    monkeypatch.chdir(audio)
    assert decode("a.wav", "--format", name, model=copy) == (0, nothing, [])


def test_an_output_directory(decode, cuts, tmp_path):
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    text = decode(tmp_path / "cuts.jsonl")[1]
    out = tmp_path / "new" / "out"
    assert decode(tmp_path / "cuts.jsonl", "--out", out, "--beam", 3) == (0, "", [])
    assert sorted(file.name for file in out.iterdir()) == ["ctm", "decode.json", "nbest.jsonl", "text"]
    results = list(read_nbest(out / "nbest.jsonl"))
    assert [(r.utterance, len(r.hyps)) for r in results] == [(cut.id, 3) for cut in cuts]
    assert [r.duration for r in results] == pytest.approx([cut.duration for cut in cuts])
    assert read_text(out / "text") == {r.utterance: r.hyps[0].text for r in results}
    assert len((out / "ctm").read_text().splitlines()) == sum(len(r.hyps[0].words) for r in results)
    summary = json.loads((out / "decode.json").read_text())
    assert summary["beam"] == 3 and summary["chunk_size"] is None and summary["threads"] == torch.get_num_threads()
    assert summary["seconds_audio"] == pytest.approx(sum(cut.duration for cut in cuts), abs=0.01)
    assert summary["real_time_factor"] > 0
    assert set(text.split()) & set((out / "text").read_text().split())


# What cannot be read


@pytest.mark.parametrize("options", [[], ["--streaming"]], ids=["whole", "streaming"])
def test_a_bad_file_is_named_and_left_out(decode, audio, expected, tmp_path, damage, options):
    for name in ("a.wav", "b.flac"):
        shutil.copy(audio / name, tmp_path)
    bad = shutil.copy(audio / "a.wav", tmp_path / "bad.wav")
    damage(bad)
    status, out, errors = decode(tmp_path / "a.wav", bad, tmp_path / "b.flac", *options)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()] == [str(tmp_path / "a.wav"), str(tmp_path / "b.flac")]
    assert len(errors) == 1 and errors[0].startswith(f"asrkit decode: {bad}: ")


def test_bad_cuts_are_named_and_left_out_of_the_output(decode, cuts, audio, tmp_path):
    gone = tmp_path / "gone.wav"
    shutil.copy(audio / "a.wav", gone)
    bad = utterance_cut(read_recording(gone, "gone"), "u0", "a", "s", 0, None)
    save_cuts([cuts[0], bad, cuts[1]], tmp_path / "cuts.jsonl")
    gone.unlink()
    status, _, errors = decode(tmp_path / "cuts.jsonl", "--out", tmp_path / "out")
    assert (status, errors) == (1, [f"asrkit decode: cut u0: {gone}: no such file"])
    assert list(read_text(tmp_path / "out" / "text")) == ["u1", "u2"]
    assert (tmp_path / "out" / "decode.json").exists()


def test_a_cut_past_the_end_of_its_recording(decode, cuts, tmp_path):
    record = cuts[1].to_dict() | {"duration": 9.0}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(record) + "\n")
    status, _, (error,) = decode(tmp_path / "cuts.jsonl")
    assert status == 1 and "cuts.jsonl: line 1: cut u2 ends at 9.5 s, its recording at 2.31 s" in error


def test_an_empty_manifest(decode, tmp_path):
    (tmp_path / "cuts.jsonl").write_text("")
    assert decode(tmp_path / "cuts.jsonl") == (1, "", [f"asrkit decode: {tmp_path}/cuts.jsonl: no cuts"])


def test_an_output_that_cannot_be_written(decode, audio, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, (error,) = decode(audio / "a.wav", "--out", tmp_path / "file" / "out")
    assert status == 1 and f"{tmp_path}/file/out/nbest.jsonl: cannot be written: Not a directory" in error


@pytest.mark.parametrize("option", ["--beam", "--chunk-size", "--threads"])
def test_numbers_are_positive(decode, audio, option):
    assert decode(audio / "a.wav", option, 0) == (1, "", [f"asrkit decode: {option} 0: must be positive"])


# Models that are none, or another one


class Payload:
    """Makes a file when unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


def payload_in_zip(copy):
    torch.save({"model": Payload(copy / "trace")}, copy / "model.pt")


def plain_pickle(copy):
    (copy / "model.pt").write_bytes(pickle.dumps({"model": Payload(copy / "trace")}, protocol=2))


def no_model(copy):
    (copy / "model.pt").unlink()


def half_a_model(copy):
    (copy / "model.pt").write_bytes((copy / "model.pt").read_bytes()[:5000])


def other_model(copy):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["encoder"]["layers"] = 3
    (copy / "config.yaml").write_text(yaml.safe_dump(config))


def unknown_key(copy):
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("joiner_dim:", "joiner_dims:"))


def wrong_type(copy):
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("joiner_dim: 16", "joiner_dim: many"))


def no_config(copy):
    (copy / "config.yaml").unlink()


def no_yaml(copy):
    (copy / "config.yaml").write_text("model: [1")


def code_in_yaml(copy):
    trace = copy / "trace"
    (copy / "config.yaml").write_text(f"features: !!python/object/apply:pathlib.Path.touch [{trace}]\nmodel: {{}}\n")


def no_tokens(copy):
    (copy / "lang" / "tokens.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (payload_in_zip, "model.pt: not a plain model file, or a damaged one"),
        (plain_pickle, "model.pt: not a plain model file, or a damaged one"),
        (half_a_model, "model.pt: not a plain model file, or a damaged one"),
        (no_model, "model.pt: No such file or directory"),
        (other_model, "model.pt: weights of another model: 'encoder.layers.2.feedforward1.0.weight' is missing"),
        (unknown_key, "joiner_dims"),
        (wrong_type, "joiner_dim"),
        (no_config, "config.yaml: No such file or directory"),
        (no_yaml, "config.yaml: not YAML"),
        (code_in_yaml, "config.yaml: not YAML"),
        (no_tokens, "lang/tokens.txt: No such file or directory"),
    ],
)
def test_a_bad_model_directory_is_one_line(decode, audio, copy, damage, message):
    damage(copy)
    status, out, (error,) = decode(audio / "a.wav", model=copy)
    assert (status, out) == (1, "")
    assert message in error and str(copy) in error
    assert not (copy / "trace").exists()  # nothing in it was executed
