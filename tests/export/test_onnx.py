"""The ONNX files compute what the model does, whatever the batch and the padding."""

import copy
import sys

import pytest
import torch

from asrkit.data.features import pad_features
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
    return {name.removesuffix(".onnx"): module._session(contents) for name, contents in files.items()}


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


def test_what_sherpa_onnx_reads(recogniser, files, exported):
    onnx = pytest.importorskip("onnx")
    encoder, decoder, _ = (onnx.load_from_string(contents) for contents in files.values())
    assert {entry.key: entry.value for entry in decoder.metadata_props} == {
        "vocab_size": str(recogniser.tokenizer.vocab_size),
        "context_size": str(recogniser.model.config.predictor.context),
    }
    assert [entry.name for entry in encoder.graph.input] == ["x", "x_lens"]
    assert (exported / "tokens.txt").read_text().splitlines()[:2] == ["<blk> 0", "<unk> 1"]
    assert f"sample_rate=16000, feature_dim={recogniser.features.num_mel_bins}" in (exported / "README.md").read_text()


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
    monkeypatch.setattr(module, "convert", lambda model: files)
    with pytest.raises(InputError, match="joiner.onnx: differs from the model by 0.5; it is not written"):
        module.export_onnx(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_recurrent_encoder(make_experiment, exported, tmp_path):
    recogniser = load(make_experiment(tmp_path / "experiment", "lstm"), beam=1)
    assert max(module.export_onnx(recogniser, tmp_path / "onnx").values()) < 1e-4


def test_recurrent_predictor_is_refused():
    sizes = {"joiner_dim": 8, "vocab_size": 5, "num_mel_bins": 20}
    config = TransducerConfig(EncoderConfig(dim=16, layers=1), PredictorConfig(kind="lstm", dim=8), **sizes)
    with pytest.raises(InputError, match="predictor.kind 'lstm': sherpa-onnx runs stateless predictors only"):
        module.convert(Transducer(config).eval())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(recogniser, monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnxruntime":
        monkeypatch.setattr(module, "convert", lambda model: dict.fromkeys(module.FILES, b""))
    else:
        pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match=rf"{package} is not installed: pip install 'asrkit\[export\]'"):
        module.export_onnx(recogniser, tmp_path)
