"""A transducer in C computes what the model does, in Python and in a C program of its own."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from asrkit.compress import export as module
from asrkit.compress.codegen import TARGETS, native_target
from asrkit.compress.codegen.target import BASE_FLAGS, find_compiler
from asrkit.errors import InputError
from asrkit.export.check import transcriber
from asrkit.export.onnx import Chunk
from asrkit.export.programs import TOLERANCE
from asrkit.models.transducer import Transducer, TransducerConfig
from asrkit.nn.decoders import PredictorConfig
from asrkit.nn.encoders import EncoderConfig
from asrkit.search.recogniser import Recogniser, load
from asrkit.search.streaming import decode_streams, partial_results
from asrkit.types import NBest

CHUNK = Chunk(8, 2)


@pytest.fixture(scope="module")
def recogniser(experiment) -> Recogniser:
    """One layer of the model, whose compilation takes seconds."""
    recogniser = load(experiment, beam=1)
    recogniser.model.encoder.layers = recogniser.model.encoder.layers[:1]
    return recogniser


@pytest.fixture(scope="module")
def folder(recogniser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    found = module.export_c(recogniser, folder, CHUNK)
    assert list(found) == list(module.NETWORKS) and max(found.values()) < TOLERANCE
    return folder


@pytest.fixture(scope="module")
def utterances(tones) -> list[torch.Tensor]:
    """Less than a chunk, whole chunks, and more."""
    return [tones(seconds, seed) for seed, seconds in enumerate((0.03, 0.32, 0.56, 1.777, 2.4))]


@pytest.mark.parametrize("beam", [1, 4])
def test_streams_say_the_same(recogniser, folder, utterances, beam):
    texts = []
    for model in (recogniser.model, module.stand_in(recogniser.model, folder)):
        other = Recogniser(model, recogniser.features, recogniser.tokenizer, beam)
        texts.append(transcriber(other, CHUNK)(utterances))
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def streamed(recogniser: Recogniser, utterances: list[torch.Tensor], chunk: tuple) -> list[NBest]:
    """The partial and the final results of streams that are decoded together."""
    streams = [recogniser.stream(str(i), *chunk) for i in range(len(utterances))]
    results = []
    for start in range(0, 48000, 3000):
        for stream, samples in zip(streams, utterances, strict=True):
            if start < len(samples):
                stream.accept(samples[start : start + 3000])
        while moved := decode_streams(streams):
            results += partial_results(moved)
    assert all((stream.chunk_size, stream.lookahead) == (CHUNK.size, CHUNK.lookahead) for stream in streams)
    return [*results, *(stream.finish() for stream in streams)]


@pytest.mark.parametrize("beam", [1, 4])
def test_the_encoder_alone(recogniser, folder, utterances, beam):
    """A recogniser whose streams go through it says what the model says, with the same times and confidences."""
    ours, other = (Recogniser(recogniser.model, recogniser.features, recogniser.tokenizer, beam) for _ in range(2))
    module.use_encoder(other, folder)
    results, others = streamed(ours, utterances, (CHUNK.size, CHUNK.lookahead)), streamed(other, utterances, ())
    assert len(results) > 15 and len({result.hyps[0].text for result in results}) > 10
    for expected, found in zip(results, others, strict=True):
        assert (found.utterance, found.duration) == (expected.utterance, expected.duration)
        for hyp, same in zip(found.hyps, expected.hyps, strict=True):
            assert (hyp.tokens, hyp.token_times) == (same.tokens, same.token_times)
            assert hyp.score == pytest.approx(same.score, abs=1e-3)
            assert [w.confidence for w in hyp.words] == pytest.approx([w.confidence for w in same.words], abs=1e-3)


def test_encoders_that_do_not_fit(recogniser, folder, tmp_path):
    def attempt(folder, *chunk):
        other = Recogniser(recogniser.model, recogniser.features, recogniser.tokenizer)
        module.use_encoder(other, folder)
        return other.stream("", *chunk)

    attempt(folder, CHUNK.size, CHUNK.lookahead)
    for chunk in ((4,), (8, 1), (16, 2)):
        with pytest.raises(InputError, match=r"lookahead \d: this encoder was compiled for 8 and 2"):
            attempt(folder, *chunk)
    norm = recogniser.model.encoder.layers[0].norm.weight
    norm.data *= 1.01
    with pytest.raises(InputError, match="was not made of this model; export it again"):
        attempt(folder)
    norm.data /= 1.01
    with pytest.raises(InputError, match="model.json: No such file"):
        attempt(tmp_path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(InputError, match="model.json: damaged"):
        attempt(tmp_path)


def test_states_keep_their_type(recogniser, folder):
    """The count of frames and the last labels are whole numbers to the search, and floats in C."""
    other = module.stand_in(recogniser.model, folder)
    for part in (other.encoder, other.predictor):
        start = part.start(2)
        first = torch.zeros(2, 32, 20) if part is other.encoder else torch.tensor([[3], [4]])
        _, state = part.step(first, start, torch.ones(2, 32)) if part is other.encoder else part(first, start)
        assert [(x.dtype, x.shape) for x in state] == [(x.dtype, x.shape) for x in start]
    assert state[0].tolist() == [[3], [4]]


def test_differences_of_another_model(recogniser, folder, utterances):
    features = [recogniser.fbank(samples) for samples in utterances]
    assert max(module.differences(recogniser.model, folder, CHUNK, features).values()) < TOLERANCE
    weight, bias = recogniser.model.joiner.project_predictor.weight, recogniser.model.joiner.output.bias
    kept = weight.data.clone()
    weight.data[:], bias.data[:] = 0.0, bias.data + 0.5
    found = module.differences(recogniser.model, folder, CHUNK, features)
    weight.data[:], bias.data[:] = kept, bias.data - 0.5
    assert found["encoder"] < TOLERANCE < 0.1 < found["decoder"]
    assert found["joiner"] == pytest.approx(0.5, abs=1e-4)


def test_the_program_says_the_same(recogniser, folder, utterances, tmp_path):
    """stream.c, which is all three networks in one program, with features as input."""
    sources = [folder / "stream.c", *(folder / name / f"{name}.c" for name in module.NETWORKS)]
    target = native_target()
    command = [find_compiler(target), *BASE_FLAGS, *target.flags, "-Wall", "-Werror", f"-I{folder}"]
    hosted = [flag for flag in command if flag != "-ffreestanding"]
    subprocess.run([*hosted, "-o", tmp_path / "stream", *sources], check=True)
    texts = transcriber(recogniser, CHUNK)(utterances)
    for samples, text in zip(utterances, texts, strict=True):
        features = np.asarray(recogniser.fbank(samples), np.float32).tobytes()
        said = subprocess.run([tmp_path / "stream", folder], input=features, capture_output=True, check=True)
        assert said.stdout.decode().strip() == text
    assert subprocess.run([tmp_path / "stream", folder], input=b"", capture_output=True).stdout == b"\n"
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "joiner" / "weights.bin").write_bytes(b"")
    failed = subprocess.run([tmp_path / "stream", damaged], input=b"", capture_output=True)
    assert (failed.returncode, failed.stderr) == (1, b"joiner/weights.bin: damaged, or of another network\n")


def test_what_goes_with_the_networks(recogniser, folder):
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["CMakeLists.txt", "README.md", *sorted(module.NETWORKS), "model.json", "stream.c", "tokens.txt"]
    metadata = json.loads((folder / "model.json").read_text())
    assert (metadata["chunk"], metadata["shift"], metadata["final"]) == (32, 24, 6)
    assert "@" not in (folder / "stream.c").read_text()
    assert set(module.network_seconds(folder)) == set(module.NETWORKS)


def test_for_another_machine(recogniser, tmp_path):
    """Written, but neither built nor compared."""
    target = TARGETS["portable" if native_target().name == "neon" else "neon"]
    if target.name == "portable":
        pytest.skip("this machine runs all that it can make")
    assert module.export_c(recogniser, tmp_path, CHUNK, target) == {}
    assert not list(tmp_path.rglob("*.so")) and (tmp_path / "tokens.txt").exists()
    with pytest.raises(InputError, match="no library for this machine"):
        module.stand_in(recogniser.model, tmp_path)


def test_factored_blank_and_longer_contexts(recogniser, tmp_path):
    sizes = {"joiner_dim": 8, "vocab_size": recogniser.tokenizer.vocab_size, "num_mel_bins": 20}
    encoder, predictor = EncoderConfig(dim=16, layers=1), PredictorConfig(dim=8, context=3)
    model = Transducer(TransducerConfig(encoder, predictor, factored_blank=True, **sizes))
    other = Recogniser(model, recogniser.features, recogniser.tokenizer, beam=1)
    assert max(module.export_c(other, tmp_path, Chunk(2, 0)).values()) < TOLERANCE


def test_an_lstm_is_refused(recogniser, tmp_path):
    config = TransducerConfig(EncoderConfig(dim=16, layers=1), PredictorConfig("lstm", dim=8), vocab_size=5)
    other = Recogniser(Transducer(config), recogniser.features, recogniser.tokenizer)
    with pytest.raises(InputError, match="predictor.kind 'lstm': --format c has stateless predictors only; train with"):
        module.export_c(other, tmp_path, CHUNK)
