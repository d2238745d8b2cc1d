"""The ONNX files compute what the model does, whatever the batch and the padding."""

import copy
import sys

import pytest
import torch

from asrkit.data.features import SILENCE, SUBSAMPLING, pad_features
from asrkit.errors import InputError
from asrkit.export import onnx as module
from asrkit.models.transducer import BLANK, Transducer, TransducerConfig
from asrkit.nn.decoders import PredictorConfig
from asrkit.nn.encoders import EncoderConfig
from asrkit.search.recogniser import load


@pytest.fixture(scope="module")
def files(exported) -> dict[str, bytes]:
    return {name: (exported / name).read_bytes() for name in module.FILES}


@pytest.fixture(scope="module")
def run(files):
    """Functions of tensors that run the files in onnxruntime, by name without suffix."""
    return sessions(files)


def sessions(files):
    return {name.removesuffix(".onnx"): module.session(contents) for name, contents in files.items()}


@pytest.fixture(scope="module")
def stream_files(exported_stream) -> dict[str, bytes]:
    return {name: (exported_stream / name).read_bytes() for name in module.FILES}


@pytest.fixture(scope="module")
def run_stream(stream_files):
    """The same of the files for streams."""
    return sessions(stream_files)


@pytest.fixture(scope="module")
def utterances(recogniser, tones) -> list[torch.Tensor]:
    """Features of 1 to 9 frames (whole encoder frames and parts), and of longer utterances."""
    return [recogniser.fbank(tones(0.01 * frames, seed=frames)) for frames in (*range(1, 10), 61, 120, 240)]


@torch.inference_mode()
def test_encoder_in_any_batch(recogniser, run, utterances):
    model = recogniser.model
    together, lens = run["encoder"](*pad_features(utterances))
    for n, features in enumerate(utterances):
        expected, expected_lens = model.encoder(features[None], torch.tensor([len(features)]), 0)
        expected = model.joiner.project_encoder(expected)[0]  # (T, J)
        alone, alone_lens = run["encoder"](features[None], torch.tensor([len(features)]))
        assert lens[n] == alone_lens[0] == expected_lens[0] == len(expected)
        torch.testing.assert_close(alone[0], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(together[n, : len(expected)], expected, atol=1e-4, rtol=0)


def test_what_is_in_the_padding_changes_nothing(run, utterances):
    x, lens = pad_features(utterances[-3:])
    noisy = x.clone()
    for row, length in zip(noisy, lens, strict=True):
        row[length:] = 100.0
    (clean_out, out_lens), (noisy_out, _) = run["encoder"](x, lens), run["encoder"](noisy, lens)
    for n, length in enumerate(out_lens):
        assert torch.equal(clean_out[n, :length], noisy_out[n, :length])


@torch.inference_mode()
def test_decoder_starts_a_sentence_and_goes_on(recogniser, run):
    model = recogniser.model
    state = model.predictor.start(1)
    window = [-1] * (model.config.predictor.context - 1) + [BLANK]  # as sherpa-onnx starts
    for label in (BLANK, 3, 1, 7, 7):
        if label != BLANK:
            window = [*window[1:], label]
        predictor_out, state = model.predictor(torch.tensor([[label]]), state)
        expected = model.joiner.project_predictor(predictor_out[:, 0])
        (found,) = run["decoder"](torch.tensor([window, window]))
        torch.testing.assert_close(found, expected.expand(2, -1), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_joiner(recogniser, run):
    frame, label = torch.randn(2, 5, recogniser.model.config.joiner_dim)
    (logits,) = run["joiner"](frame, label)
    torch.testing.assert_close(logits, recogniser.model.joiner.combine(frame, label), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_logits_of_a_factored_blank(run):
    sizes = {"joiner_dim": 8, "vocab_size": 5, "num_mel_bins": 20}
    model = Transducer(TransducerConfig(EncoderConfig(dim=16, layers=1), factored_blank=True, **sizes)).eval()
    frame, label = torch.randn(2, 3, 8)
    found = module.session(module.convert(model)["joiner.onnx"])(frame, label)[0]
    torch.testing.assert_close(found.log_softmax(dim=1), model.joiner.log_probs(frame, label), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_streams_in_one_batch(recogniser, chunk, run_stream, tones):
    """Two streams meet, one of them a chunk ahead, and go on together."""
    model, keep = recogniser.model, chunk.size - chunk.lookahead
    features = [recogniser.fbank(tones(2.0, seed)) for seed in (1, 2)]
    expected, states = ([], []), [model.encoder.start(1), model.encoder.start(1)]
    for n, x in enumerate(features):
        for first in range(0, len(x) - chunk.frames, chunk.shift):
            part = x[None, first : first + chunk.frames]
            encoder_out, states[n] = model.encoder.step(part, states[n], keep=keep)
            expected[n].append(model.joiner.project_encoder(encoder_out[0, :keep]))
    packed = [torch.zeros(s.shape) for s in module.StreamingEncoder(model, chunk).pack(model.encoder.start(1))]
    out, *ahead = run_stream["encoder"](features[1][None, : chunk.frames], *packed)
    torch.testing.assert_close(out[0, :, :-1], expected[1][0], atol=1e-4, rtol=0)
    state = [torch.cat(parts, dim=1) for parts in zip(packed, ahead, strict=True)]
    for i in range(len(expected[0]) - 1):
        starts = (i * chunk.shift, (i + 1) * chunk.shift)
        part = torch.stack([x[first : first + chunk.frames] for x, first in zip(features, starts, strict=True)])
        out, *state = run_stream["encoder"](part, *state)
        torch.testing.assert_close(out[0, :, :-1], expected[0][i], atol=1e-4, rtol=0)
        torch.testing.assert_close(out[1, :, :-1], expected[1][i + 1], atol=1e-4, rtol=0)
        assert not out[..., -1].any()


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 8, 15, 30])
def test_digital_silence_is_no_audio(recogniser, chunk, run_stream, tones, frames):
    model, keep = recogniser.model, chunk.size - chunk.lookahead
    x = recogniser.fbank(tones(0.5))[: chunk.frames]
    x[frames + 1 :] = SILENCE  # frame `frames` is half silence
    inside = (torch.arange(chunk.frames) < frames)[None]
    expected, _ = model.encoder.step(x[None], model.encoder.start(1), inside)
    expected = model.joiner.project_encoder(expected[0, : -(-frames // SUBSAMPLING)])[:keep]
    start = [torch.zeros(s.shape) for s in module.StreamingEncoder(model, chunk).pack(model.encoder.start(1))]
    encoder_out = run_stream["encoder"](x[None], *start)[0][0]
    torch.testing.assert_close(encoder_out[: len(expected), :-1], expected, atol=1e-4, rtol=0)
    assert encoder_out[:, -1].tolist() == [float(t >= len(expected)) for t in range(keep)]
    for predicted in torch.randn(9, model.config.joiner_dim):
        logits = run_stream["joiner"](encoder_out, predicted.expand(len(encoder_out), -1))[0]
        probability = logits.softmax(dim=1)[:, BLANK]
        torch.testing.assert_close(
            logits[: len(expected)], model.joiner.combine(expected, predicted), atol=1e-4, rtol=0
        )
        assert (probability[len(expected) :] > 0.999999).all()


def test_what_is_heard():
    patterns = {
        "++++ ++++": "++++ ++++",
        "++++ ++..": "++++ +...",  # the last one before silence does not count
        "++++ +...": "++++ ....",
        "+++. .+++": "++.. ++++",  # silence before others counts
        ".... ...+": ".... ++++",
        ".... ....": ".... ....",
    }
    for pattern, expected in patterns.items():
        x = torch.tensor([[0.0 if c == "+" else SILENCE] for c in pattern if c != " "])
        found = "".join("+" if frame else "." for frame in module.heard(x[None])[0])
        assert found == expected.replace(" ", ""), pattern


def test_what_sherpa_onnx_reads(recogniser, files, exported):
    onnx = pytest.importorskip("onnx")
    encoder, decoder, _ = (onnx.load_from_string(contents) for contents in files.values())
    assert {entry.key: entry.value for entry in decoder.metadata_props} == {
        "vocab_size": str(recogniser.tokenizer.vocab_size),
        "context_size": str(recogniser.model.config.predictor.context),
    }
    assert [entry.name for entry in encoder.graph.input] == ["x", "x_lens"]
    assert (exported / "tokens.txt").read_text().splitlines()[:2] == ["<blk> 0", "<unk> 1"]


def test_what_sherpa_onnx_reads_of_streams(chunk, stream_files):
    onnx = pytest.importorskip("onnx")
    encoder = onnx.load_from_string(stream_files["encoder.onnx"])
    metadata = {entry.key: entry.value for entry in encoder.metadata_props}
    sizes = {entry.name: entry.type.tensor_type.shape.dim for entry in (*encoder.graph.input, *encoder.graph.output)}
    sizes = {name: [dim.dim_value or dim.dim_param for dim in dims] for name, dims in sizes.items()}
    assert metadata["model_type"] == "lstm"
    assert list(sizes) == ["x", "hidden", "cell", "encoder_out", "new_hidden", "new_cell"]
    assert sizes["x"] == ["N", int(metadata["T"]), 20] and metadata["T"] == str(4 * chunk.size)
    assert metadata["decode_chunk_len"] == str(4 * (chunk.size - chunk.lookahead))
    assert sizes["encoder_out"][:2] == ["N", chunk.size - chunk.lookahead]
    assert sizes["hidden"] == [int(metadata["num_encoder_layers"]), "N", int(metadata["d_model"])]
    assert sizes["cell"] == [int(metadata["num_encoder_layers"]), "N", int(metadata["rnn_hidden_size"])]


def test_files_tell_nothing_of_the_machine(files):
    package = module.__file__.rpartition("/asrkit/")[0]
    for contents in files.values():
        assert package.encode() not in contents


def test_differences_of_another_model(recogniser, files, utterances):
    other = copy.deepcopy(recogniser.model)
    other.joiner.output.bias.data += 0.5
    other.joiner.project_predictor.weight.data[:] = 0.0
    found = module.differences(other, files, utterances)
    assert found["encoder.onnx"] < 1e-4
    assert found["decoder.onnx"] > 0.1
    assert found["joiner.onnx"] == pytest.approx(0.5, abs=1e-4)


def test_a_wrong_file_is_not_written(recogniser, files, tmp_path, monkeypatch):
    other = copy.deepcopy(recogniser)
    other.model.joiner.output.bias.data += 0.5
    monkeypatch.setattr(module, "convert", lambda model, chunk: files)
    with pytest.raises(InputError, match="joiner.onnx: differs from the model by 0.5; it is not written"):
        module.export_onnx(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_differences_of_other_streams(recogniser, stream_files, utterances):
    other = copy.deepcopy(recogniser.model)
    other.encoder.layers[1].attention.qkv.weight.data *= 1.5  # shows when the keys come back from the state
    other.joiner.output.bias.data += 0.5
    found = module.differences(other, stream_files, utterances)
    assert found["encoder.onnx"] > 1e-3
    assert found["decoder.onnx"] < 1e-4
    assert found["joiner.onnx"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("chunk", [None, module.Chunk(6, 1), module.Chunk(4, 0)], ids=str)
def test_recurrent_encoder(make_experiment, exported, tmp_path, chunk):
    recogniser = load(make_experiment(tmp_path / "experiment", "lstm"), beam=1)
    assert max(module.export_onnx(recogniser, tmp_path / "onnx", chunk).values()) < 1e-4


def test_recurrent_predictor_is_refused():
    sizes = {"joiner_dim": 8, "vocab_size": 5, "num_mel_bins": 20}
    config = TransducerConfig(EncoderConfig(dim=16, layers=1), PredictorConfig(kind="lstm", dim=8), **sizes)
    with pytest.raises(InputError, match="predictor.kind 'lstm': sherpa-onnx runs stateless predictors only"):
        module.convert(Transducer(config).eval())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(recogniser, monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnxruntime":
        monkeypatch.setattr(module, "convert", lambda model, chunk: dict.fromkeys(module.FILES, b""))
    else:
        pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match=rf"{package} is not installed: pip install 'asrkit\[export\]'"):
        module.export_onnx(recogniser, tmp_path)
