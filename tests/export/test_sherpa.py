"""sherpa-onnx hears what asrkit hears and, with the exported files, says the same."""

import math
import re
import sys

import pytest
import soundfile
import torch

from asrkit.data.features import Fbank, FeatureConfig
from asrkit.errors import InputError
from asrkit.export.check import transcriber
from asrkit.export.sherpa import SherpaRecogniser, SherpaStreamer, sherpa
from asrkit.models.transducer import BLANK

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


@pytest.fixture
def streamer(sherpa_onnx, recogniser, exported_stream):
    """A function of the beam."""
    return lambda beam: sherpa(exported_stream, recogniser.features, recogniser.tokenizer, beam)


def test_greedy_search_of_streams_says_the_same(streamer, recogniser, chunk, tones):
    hop = 160
    sizes = [*range(36 * hop, 61 * hop, hop), 0, 3 * hop, 99 * hop + 40, 99 * hop + 79, 240 * hop]
    samples = [tones(3.0, seed)[:size] for seed, size in enumerate(sizes)]  # ends at every place of a chunk
    for x in samples:
        x[-80:] = 0.0  # behind the end we hear a mirror image, sherpa-onnx nothing
    ours, theirs = transcriber(recogniser, chunk), streamer(1)
    assert isinstance(theirs, SherpaStreamer)
    texts = ours(samples)
    assert len(set(texts)) > 20
    assert theirs.transcribe(samples) == texts
    assert [theirs.transcribe([x])[0] for x in samples[-5:]] == texts[-5:]


def test_words_in_silence_are_none(streamer, tones):
    theirs, samples = streamer(1), tones(1.5)
    silence = torch.zeros(16000)
    text = theirs.transcribe([samples])[0]
    assert theirs.transcribe([torch.cat([samples, silence])])[0] == text
    assert theirs.transcribe([silence])[0] == ""


def test_states_outlive_an_endpoint(streamer, tones):
    theirs, samples = streamer(1), tones(2.5)

    def tokens(reset: int) -> list[str]:
        stream, chunks, tokens = theirs.recognizer.create_stream(), 0, []
        stream.accept_waveform(16000, theirs.padded(samples).numpy())
        stream.input_finished()
        while theirs.recognizer.is_ready(stream):
            theirs.recognizer.decode_stream(stream)
            chunks += 1
            if chunks == reset:
                tokens = theirs.recognizer.tokens(stream)
                theirs.recognizer.reset(stream)
        return tokens + theirs.recognizer.tokens(stream)

    assert len(tokens(reset=2)) > 10
    assert tokens(reset=2) == tokens(reset=4) == tokens(reset=-1)


@torch.inference_mode()
def sherpa_search(model, encoder_out: torch.Tensor, beam: int) -> list[int]:
    """The search of sherpa-onnx for encoder_out (T, D), written out.

    Unlike ours it prunes before it merges equal hypotheses, and counts the context before the first label in their
    length.
    """
    context = model.config.predictor.context
    hyps = {(BLANK,) * context: 0.0}
    for frame in model.joiner.project_encoder(encoder_out):
        labels = torch.tensor([key[-context:] for key in hyps])
        predicted = model.predictor(labels[:, -1:], [labels[:, :-1]])[0][:, 0]
        scores = model.joiner.log_probs(frame[None], model.joiner.project_predictor(predicted)).double()
        scores += torch.tensor(list(hyps.values()))[:, None]
        keys, hyps = list(hyps), {}
        for score, index in zip(*(x.tolist() for x in scores.flatten().topk(beam)), strict=True):
            key, label = keys[index // scores.shape[1]], index % scores.shape[1]
            key += (label,) * (label != BLANK)
            hyps[key] = math.log(math.exp(hyps[key]) + math.exp(score)) if key in hyps else score
    return list(max(hyps, key=lambda key: hyps[key] / len(key))[context:])


def test_beam_search(sherpa_onnx, recogniser, exported, utterances):
    theirs = SherpaRecogniser(exported, recogniser.features, recogniser.tokenizer, beam=4)
    for _, samples in utterances:
        features = recogniser.fbank(samples)
        encoder_out, _ = recogniser.model.encoder(features[None], torch.tensor([len(features)]), 0)
        expected = sherpa_search(recogniser.model, encoder_out[0], beam=4)
        assert theirs.transcribe([samples]) == [recogniser.tokenizer.decode(expected)]


@pytest.mark.parametrize("name", ["exported", "exported_stream"])
def test_the_call_in_the_readme(sherpa_onnx, recogniser, tones, tmp_path, monkeypatch, capsys, request, name):
    folder, samples = request.getfixturevalue(name), 0.5 * tones(1.9)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall("```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)
    exec(code, {})
    text = capsys.readouterr().out.splitlines()[-1]
    expected = sherpa(folder, recogniser.features, recogniser.tokenizer).transcribe([samples])
    assert [text.strip()] == expected and text


def test_a_missing_package_is_one_line(recogniser, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    with pytest.raises(InputError, match="sherpa_onnx is not installed"):
        SherpaRecogniser(tmp_path, recogniser.features, recogniser.tokenizer)
