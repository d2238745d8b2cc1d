"""ExecuTorch programs compute what the model does, chunk by chunk and label by label."""

import copy
import json
import sys

import pytest
import soundfile
import torch

from asrkit.data.features import SUBSAMPLING
from asrkit.errors import InputError
from asrkit.export import executorch as module
from asrkit.export.check import transcriber
from asrkit.export.onnx import Joiner
from asrkit.export.programs import TOLERANCE, Decoder
from asrkit.models.transducer import BLANK, Transducer, TransducerConfig
from asrkit.nn.decoders import PredictorConfig
from asrkit.nn.encoders import EncoderConfig
from asrkit.search.recogniser import Recogniser


@pytest.fixture(scope="module")
def recogniser(recogniser) -> Recogniser:
    """One layer of the model: to lower each one takes seconds."""
    pytest.importorskip("executorch", reason="executorch is not installed (extra 'executorch')")
    model = copy.deepcopy(recogniser.model)
    model.encoder.layers = model.encoder.layers[:1]
    return Recogniser(model, recogniser.features, recogniser.tokenizer, beam=1)


@pytest.fixture(scope="module")
def folder(recogniser, chunk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch")
    found = module.export_executorch(recogniser, folder, chunk)
    assert max(found.values()) < TOLERANCE
    return folder


@pytest.fixture(scope="module")
def programs(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in module.PROGRAMS}


@pytest.fixture(scope="module")
def utterances(tones) -> list[torch.Tensor]:
    """Less than a chunk, whole chunks, and more."""
    return [tones(seconds, seed) for seed, seconds in enumerate((0.03, 0.32, 0.56, 1.777, 2.4))]


@pytest.mark.parametrize("beam", [1, 4])
def test_streams_say_the_same(recogniser, programs, chunk, utterances, beam):
    texts = []
    for model in (recogniser.model, module.stand_in(recogniser.model, programs)):
        other = Recogniser(model, recogniser.features, recogniser.tokenizer, beam)
        texts.append(transcriber(other, chunk)(utterances))
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_differences_of_another_model(recogniser, programs, chunk, utterances):
    features = [recogniser.fbank(samples) for samples in utterances]
    assert max(module.differences(recogniser.model, programs, chunk, features).values()) < TOLERANCE
    other = copy.deepcopy(recogniser.model)
    other.joiner.output.bias.data += 0.5
    other.joiner.project_predictor.weight.data[:] = 0.0
    found = module.differences(other, programs, chunk, features)
    assert found["encoder.pte"] < TOLERANCE
    assert found["decoder.pte"] > 0.1
    assert found["joiner.pte"] == pytest.approx(0.5, abs=1e-4)


def test_frames_that_do_not_count(recogniser, programs):
    encode = module.load_method(programs["encoder.pte"]).execute
    features, state = torch.randn(1, 32, recogniser.features.num_mel_bins), recogniser.model.encoder.start(1)
    noisy = features.clone()
    noisy[:, 13:] = 100.0
    frames = -(-13 // SUBSAMPLING)
    out, noisy_out = (encode([x, torch.tensor([13]), *state])[0][:, :frames] for x in (features, noisy))
    torch.testing.assert_close(out, noisy_out)
    assert not torch.allclose(out, encode([features, torch.tensor([32]), *state])[0][:, :frames])


def test_what_the_metadata_say(recogniser, folder, chunk):
    metadata = json.loads((folder / "model.json").read_text())
    assert (metadata["sampling_rate"], metadata["num_mel_bins"]) == (16000, recogniser.features.num_mel_bins)
    assert (metadata["chunk"], metadata["shift"], metadata["final"]) == (32, 24, 6)
    model = recogniser.model
    for part, module_ in {"encoder_state": model.encoder, "decoder_state": model.predictor}.items():
        states = [torch.zeros(state["shape"], dtype=getattr(torch, state["dtype"])) for state in metadata[part]]
        assert all(map(torch.equal, states, module_.start(1)))
    assert (folder / "tokens.txt").read_text().splitlines()[:2] == ["<blk> 0", "<unk> 1"]


def test_the_readme_runs(recogniser, folder, chunk, utterances, tmp_path, monkeypatch, capsys):
    pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is not installed (extra 'dev')")
    samples = (32767 * utterances[-1]).short()
    soundfile.write(tmp_path / "a.wav", samples.numpy(), 16000)
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path / "a.wav")])
    exec(code, {})
    assert capsys.readouterr().out.strip() == transcriber(recogniser, chunk)([samples / 32768])[0]


def test_recurrent_predictor():
    pytest.importorskip("executorch", reason="executorch is not installed (extra 'executorch')")
    sizes = {"joiner_dim": 8, "vocab_size": 5, "num_mel_bins": 20}
    config = TransducerConfig(EncoderConfig(dim=16, layers=1), PredictorConfig("lstm", dim=8), **sizes)
    model = Transducer(config).eval()
    inputs = torch.tensor([[BLANK]]), *model.predictor.start(1)
    decode = module.load_method(module.to_program(Decoder(model), *inputs)).execute
    state = found_state = list(inputs[1:])
    for label in (BLANK, 3, 1, 4, 4):
        out, state = model.predictor(torch.tensor([[label]]), state)
        found, *found_state = decode([torch.tensor([[label]]), *found_state])
        torch.testing.assert_close(found, model.joiner.project_predictor(out[:, 0]), atol=1e-5, rtol=0)


def test_factored_blank():
    """Users need no more than the softmax of what the program says."""
    pytest.importorskip("executorch", reason="executorch is not installed (extra 'executorch')")
    config = TransducerConfig(EncoderConfig(dim=16, layers=1), joiner_dim=8, vocab_size=5, factored_blank=True)
    model = Transducer(config).eval()
    frame, label = torch.randn(2, 1, 8)
    (logits,) = module.load_method(module.to_program(Joiner(model), frame, label)).execute([frame, label])
    torch.testing.assert_close(logits.log_softmax(dim=-1), model.joiner.log_probs(frame, label))


def test_a_missing_package_is_one_line(recogniser, chunk, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(InputError, match=r"executorch is not installed: pip install 'asrkit\[executorch\]'"):
        module.convert(recogniser.model, chunk)
