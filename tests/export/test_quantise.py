"""8-bit files compute about what float ones do, are smaller, and load in sherpa-onnx."""

import copy
from difflib import SequenceMatcher

import pytest
import torch
from torch import nn

from asrkit.data.features import pad_features
from asrkit.errors import InputError
from asrkit.export import quantise as module
from asrkit.export.check import transcriber
from asrkit.export.onnx import FILES, convert, session
from asrkit.export.sherpa import sherpa

DYNAMIC, STATIC = "DynamicQuantizeLinear", "QuantizeLinear"


@pytest.fixture(scope="module", params=["whole", "stream"])
def files(request, exported, exported_stream) -> dict[str, bytes]:
    folder = exported if request.param == "whole" else exported_stream
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def speech(recogniser, tones) -> list[torch.Tensor]:
    return [recogniser.fbank(tones(2.0, seed)) for seed in range(4)]


def graph(contents: bytes):
    return pytest.importorskip("onnx").load_from_string(contents)


def signal_to_error(recogniser, files, quantised, speech) -> float:
    """Of the encoder's output, in dB."""
    feeds = module.recorded_feeds(recogniser.model, files, speech)["encoder.onnx"]
    expected, found = (torch.from_numpy(module._outputs(f["encoder.onnx"], feeds)) for f in (files, quantised))
    return float(10 * torch.log10(expected.var() / (found - expected).square().mean()))


def test_layers_are_known_by_name(recogniser, files):
    linear = {name for name, layer in recogniser.model.named_modules() if isinstance(layer, nn.Linear)}
    found = [set(module.linear_layers(recogniser.model, contents)) for contents in files.values()]
    encoder = {name for name in linear if name.startswith("encoder.")}
    assert found == [encoder | {"joiner.project_encoder"}, {"joiner.project_predictor"}, {"joiner.output"}]


@pytest.mark.parametrize("kind", [DYNAMIC, STATIC])
def test_products_are_of_8_bits_and_close(recogniser, files, speech, kind):
    quantised = module.quantise_files(recogniser.model, files, [], speech if kind == STATIC else None)
    assert quantised["decoder.onnx"] == files["decoder.onnx"]
    for name in module.QUANTISED:
        was, now = graph(files[name]), graph(quantised[name])
        assert {entry.key: entry.value for entry in was.metadata_props}.items() <= {
            entry.key: entry.value for entry in now.metadata_props
        }.items()
        kinds = [node.op_type for node in now.graph.node]
        assert (DYNAMIC in kinds, STATIC in kinds) == (kind == DYNAMIC, kind == STATIC)
        int8 = sum(tensor.data_type == 3 and len(tensor.dims) == 2 for tensor in now.graph.initializer)
        assert int8 == len(module.linear_layers(recogniser.model, files[name])) - (name == "encoder.onnx")
    assert 20 < signal_to_error(recogniser, files, quantised, speech) < 60


def test_static_scales_are_the_same_in_any_company(recogniser, exported, speech):
    files = {name: (exported / name).read_bytes() for name in FILES}
    encode = session(module.quantise_files(recogniser.model, files, [], speech)["encoder.onnx"])
    alone, _ = encode(speech[0][None], torch.tensor([len(speech[0])]))
    together, lens = encode(*pad_features([speech[0], 3 * torch.cat(speech)]))
    torch.testing.assert_close(together[0, : lens[0]], alone[0], atol=1e-4, rtol=0)


def test_sherpa_onnx_runs_them(recogniser, files, chunk, speech, tones, tmp_path):
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed (extra 'export')")
    for name, contents in module.quantise_files(recogniser.model, files, [], speech).items():
        (tmp_path / name).write_bytes(contents)
    symbols = recogniser.tokenizer.symbols
    (tmp_path / "tokens.txt").write_text("".join(f"{symbol} {i}\n" for i, symbol in enumerate(symbols)))
    utterances = [tones(1.5, seed) for seed in range(4)]
    found = sherpa(tmp_path, recogniser.features, recogniser.tokenizer, beam=1).transcribe(utterances)
    streams = chunk if module.Chunk.of(files["encoder.onnx"]) else None
    expected = transcriber(recogniser, streams)(utterances)
    assert len(set(found)) == 4
    assert SequenceMatcher(None, " ".join(found), " ".join(expected)).ratio() > 0.7  # the weights are random


def test_layers_that_are_kept(recogniser, files, speech):
    kept = module.quantise_files(recogniser.model, files, ["encoder.layers.1", "joiner.output"], None)
    assert kept["joiner.onnx"] == files["joiner.onnx"]
    left = module.linear_layers(recogniser.model, kept["encoder.onnx"])  # the float ones
    assert {name.rpartition(".")[0] for name in left if name.startswith("encoder.layers")} == {
        f"encoder.layers.1.{part}" for part in ("attention", "convolution", "feedforward1", "feedforward2")
    }
    assert module.quantise_files(recogniser.model, files, ["encoder", "joiner"], speech) == files
    with pytest.raises(
        InputError, match="--keep-float encoder.layers.2: no such layer.* encoder.layers.1.attention.qkv"
    ):
        module.quantise_files(recogniser.model, files, ["encoder.layers.2"], None)


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_layer_that_loses_most_is_named(recogniser, speech, calibrated):
    bad = "encoder.layers.0.convolution.out"
    model = copy.deepcopy(recogniser.model)
    weight = model.get_submodule(bad).weight.data
    weight[:, 0] = 100 * weight.abs().max()  # one large weight of each output leaves few steps to the others
    files = convert(model)
    kept = ["encoder.subsampling", "encoder.layers.1", "encoder.layers.0.attention"]
    losses = module.layer_losses(model, files, kept, speech, calibrated)
    assert set(losses) == {
        name
        for contents in (files["encoder.onnx"], files["joiner.onnx"])
        for name in module.linear_layers(model, contents)
        if not name.startswith((*kept, "joiner.project"))
    }
    (worst, ratio), (_, second), *_ = losses.items()
    assert worst == bad
    assert ratio < second - 10
