"""sherpa-onnx hears what asrkit hears and, with the exported files, says the same."""

import sys

import pytest
import torch

from asrkit.data.features import Fbank, FeatureConfig
from asrkit.errors import InputError
from asrkit.export.sherpa import SherpaRecogniser, compare

REFERENCE = -4.0  # a constant among the features, so that their level shows in the probabilities


@pytest.fixture
def sherpa_onnx():
    return pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed (extra 'export')")


@pytest.fixture
def make_probe(sherpa_onnx, tmp_path):
    """A function that makes a recogniser whose logits are its features, and REFERENCE: it shows what it hears."""
    onnx = pytest.importorskip("onnx")
    helper, floats, ints = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

    def save(name, nodes, inputs, outputs, metadata):
        values = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
        model = helper.make_model(helper.make_graph(nodes, name, *values), opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        helper.set_model_props(model, metadata)
        onnx.save(model, tmp_path / f"{name}.onnx")
        return str(tmp_path / f"{name}.onnx")

    def make(config: FeatureConfig):
        bins = config.num_mel_bins
        constants = {"low": [-1000.0], "level": [REFERENCE], "zero": [0.0]}  # blank and <unk> never win
        nodes = [
            helper.make_node("Constant", [], [name], value=helper.make_tensor(name, floats, [1], value))
            for name, value in constants.items()
        ]
        nodes += [
            helper.make_node("Mul", ["decoder_out", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "low"], ["special"]),
            helper.make_node("ReduceSum", ["zeros"], ["column"], keepdims=1),
            helper.make_node("Add", ["column", "level"], ["reference"]),
            helper.make_node("Concat", ["special", "encoder_out", "reference"], ["logits"], axis=1),
        ]
        files = [
            save(
                "encoder",
                [helper.make_node("Identity", ["x"], ["out"]), helper.make_node("Identity", ["x_lens"], ["lens"])],
                [("x", floats, ["N", "T", bins]), ("x_lens", ints, ["N"])],
                [("out", floats, ["N", "T", bins]), ("lens", ints, ["N"])],
                {"model_type": "conformer"},
            ),
            save(
                "decoder",
                [helper.make_node("Cast", ["y"], ["decoder_out"], to=floats)],
                [("y", ints, ["N", 2])],
                [("decoder_out", floats, ["N", 2])],
                {"vocab_size": str(bins + 3), "context_size": "2"},
            ),
            save(
                "joiner",
                nodes,
                [("encoder_out", floats, ["N", bins]), ("decoder_out", floats, ["N", 2])],
                [("logits", floats, ["N", bins + 3])],
                {},
            ),
        ]
        symbols = ["<blk>", "<unk>", *map(str, range(bins + 1))]
        (tmp_path / "tokens.txt").write_text("".join(f"{s} {i}\n" for i, s in enumerate(symbols)))
        return sherpa_onnx.OfflineRecognizer.from_transducer(
            *files, str(tmp_path / "tokens.txt"), sample_rate=config.sampling_rate, feature_dim=bins
        )

    return make


@pytest.mark.parametrize("config", [FeatureConfig(16000, 80), FeatureConfig(8000, 40)], ids=["16 kHz", "8 kHz"])
def test_sherpa_onnx_computes_our_features(make_probe, tones, config):
    recognizer, fbank = make_probe(config), Fbank(config)
    hop = config.sampling_rate // 100
    for seed, size in enumerate((hop, 3 * hop, 100 * hop, 100 * hop + hop // 2 - 1, 100 * hop + hop // 2)):
        samples = 0.1 * tones(2.0, seed)[:size]
        stream = recognizer.create_stream()
        stream.accept_waveform(config.sampling_rate, samples.numpy())
        recognizer.decode_stream(stream)
        features = torch.nn.functional.pad(fbank(samples), (0, 1), value=REFERENCE)
        best = features.log_softmax(dim=-1).max(dim=-1)
        assert [int(token) for token in stream.result.tokens] == best.indices.tolist()  # one a frame
        torch.testing.assert_close(torch.tensor(stream.result.ys_log_probs), best.values, atol=1e-4, rtol=0)


@pytest.fixture
def utterances(tones) -> list[tuple[str, torch.Tensor]]:
    return [(f"u{seed}", tones(seconds, seed)) for seed, seconds in enumerate((2.4, 0.83, 1.22, 0.04, 1.777))]


def test_greedy_search_says_the_same(sherpa_onnx, recogniser, exported, utterances):
    sherpa = SherpaRecogniser(exported, recogniser.features, recogniser.tokenizer, beam=1)
    names, samples = map(list, zip(*utterances, strict=True))
    texts = [result.hyps[0].text for result in recogniser.recognise(samples, names)]
    assert len(set(texts)) > 3
    assert sherpa.transcribe(samples) == texts
    assert [sherpa.transcribe([x])[0] for x in samples] == texts


@pytest.mark.parametrize("beam", [1, 4])
def test_comparison(sherpa_onnx, recogniser, exported, utterances, beam):
    refs = {name: recogniser.recognise([x], [name])[0].hyps[0].text for name, x in utterances}  # the greedy result
    figures = compare(recogniser, exported, [utterances[:2], utterances[2:]], refs, beam)
    assert (figures["beam"], figures["utterances"]) == (beam, len(utterances))
    assert figures["seconds_audio"] == pytest.approx(2.4 + 0.83 + 1.22 + 0.04 + 1.777)
    assert min(figures[name]["real_time_factor"] for name in ("asrkit", "sherpa_onnx")) > 0
    if beam == 1:
        assert figures["same"] == len(utterances)
        assert figures["asrkit"]["wer"] == figures["sherpa_onnx"]["wer"] == 0.0


def test_a_missing_package_is_one_line(recogniser, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    with pytest.raises(InputError, match="sherpa_onnx is not installed"):
        SherpaRecogniser(tmp_path, recogniser.features, recogniser.tokenizer)
