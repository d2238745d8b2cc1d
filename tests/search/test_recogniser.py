"""The recogniser: a batch, an utterance alone, a stream and a file give the same transcript."""

import shutil
from difflib import SequenceMatcher

import pytest
import soundfile
import torch
from streams import assert_same, streamed

import asrkit
from asrkit.data.audio import read_audio, resample
from asrkit.data.formats import FORMATS
from asrkit.errors import InputError
from asrkit.search import recogniser as module
from asrkit.search.recogniser import load
from asrkit.search.streaming import FRAME_SECONDS

# Seconds of audio whose features are 4n, 4n + 1, 4n + 2, 4n + 3 frames, one encoder frame, or end inside a frame.
LENGTHS = (2.4, 2.41, 1.22, 0.83, 0.04, 1.7771)


def test_a_batch_is_its_utterances(recogniser, tones):
    utterances = [tones(seconds, seed) for seed, seconds in enumerate(LENGTHS)]
    names = [f"utt{seed}" for seed in range(len(LENGTHS))]
    together = recogniser.recognise(utterances, names)
    assert [(r.utterance, r.duration) for r in together] == [
        (name, len(samples) / 16000) for name, samples in zip(names, utterances, strict=True)
    ]
    assert len({r.hyps[0].text for r in together}) == len(LENGTHS)
    for name, samples, result in zip(names, utterances, together, strict=True):
        assert_same(recogniser.recognise([samples], [name])[0], result)


def test_chunk_size_matters_to_attention_only(recogniser, tones):
    samples = tones(2.4)
    whole, chunked = (recogniser.recognise([samples], ["a"], size)[0] for size in (0, 4))
    same = whole.hyps[0].tokens == chunked.hyps[0].tokens
    assert same == (recogniser.model.config.encoder.kind == "lstm")


@pytest.mark.parametrize("seconds", [2.9, 3.0, 3.01, 9.0])
def test_long_files_are_streamed(recogniser, tones, tmp_path, monkeypatch, seen, seconds):
    monkeypatch.setattr(module, "LONG_SECONDS", 3.0)
    monkeypatch.setattr(module, "READ_SECONDS", 0.5)
    soundfile.write(tmp_path / "a.wav", tones(seconds).numpy(), 16000, subtype="FLOAT")
    result = recogniser.transcribe(tmp_path / "a.wav")
    samples = read_audio(tmp_path / "a.wav", 16000)
    if seconds <= 3.0:
        assert len(seen) == 1
        assert_same(result, recogniser.recognise([samples], ["a"])[0])
        return
    assert max(len(chunk) for chunk in seen) <= recogniser.streaming_chunk == 8  # memory does not grow with the length
    assert result.duration == pytest.approx(seconds) and result.utterance == str(tmp_path / "a.wav")
    assert_same(result, streamed(recogniser, samples, 8, 8000, lookahead=None))


@pytest.mark.parametrize("samples", [0, 1, 60, 79, 80, 400, 641])
def test_audio_of_a_few_samples(recogniser, tones, samples):
    """Less than half a feature frame (80 samples) gives an empty transcript, also beside others in a batch."""
    short, longer = tones(1.0)[:samples], tones(1.0)
    alone = recogniser.recognise([short], ["a"])[0]
    assert_same(alone, streamed(recogniser, short, 8, 100))
    assert_same(alone, recogniser.recognise([longer, short], ["b", "a"])[1])
    assert alone.duration == samples / 16000
    assert alone.hyps[0].text == "" or samples >= 80


def test_an_empty_hypothesis(experiment, tones):
    recogniser = load(experiment)
    with torch.no_grad():
        recogniser.model.joiner.output.bias[0] = 1000.0
    result = recogniser.recognise([tones(1.0)], ["a"])[0]
    best = result.hyps[0]
    assert (best.text, best.tokens, best.token_times, best.words) == ("", (), (), ())
    assert best.score == pytest.approx(0.0, abs=1e-3)
    assert FORMATS["text"](result) == "a" and FORMATS["ctm"](result) == FORMATS["srt"](result) == ""


def test_words_and_times_agree_with_the_tokens(recogniser, tones):
    result = recogniser.recognise([tones(4.0)], ["a"])[0]
    assert len(result.hyps[0].words) > 5
    assert [hyp.score for hyp in result.hyps] == sorted((hyp.score for hyp in result.hyps), reverse=True)
    for hyp in result.hyps:
        assert hyp.text == "".join(hyp.tokens).replace("▁", " ").strip()
        assert list(hyp.token_times) == sorted(hyp.token_times) and len(hyp.token_times) == len(hyp.tokens)
        assert 0 <= hyp.token_times[0] and hyp.token_times[-1] < result.duration
        starts = [i for i, token in enumerate(hyp.tokens) if i == 0 or token.startswith("▁")]
        for word, first, end in zip(hyp.words, starts, [*starts[1:], len(hyp.tokens)], strict=True):
            assert word.text == "".join(hyp.tokens[first:end]).strip("▁")
            assert (word.start, word.end) == (hyp.token_times[first], hyp.token_times[end - 1] + FRAME_SECONDS)


def test_files_of_any_kind(experiment, tones, tmp_path):
    """Through the door that the README shows; FLAC loses nothing, MP3 and resampling little."""
    samples = (32767 * tones(3.0)).short().numpy()
    for name in ("a.wav", "a.flac", "a.mp3"):
        soundfile.write(tmp_path / name, samples, 16000)
    stereo = resample(tones(3.0).numpy(), 16000, 44100)
    soundfile.write(tmp_path / "stereo.wav", torch.stack([stereo, stereo], dim=1).numpy(), 44100)

    recogniser = asrkit.load(experiment)
    wav, flac, mp3, stereo = (
        recogniser.transcribe(str(tmp_path / name)) for name in ("a.wav", "a.flac", "a.mp3", "stereo.wav")
    )
    assert len(wav.hyps[0].tokens) > 10
    assert_same(flac, wav)
    for other in (mp3, stereo):
        assert other.duration == pytest.approx(3.0, abs=0.1)
        assert SequenceMatcher(None, other.hyps[0].tokens, wav.hyps[0].tokens).ratio() > 0.5


def test_the_directory_can_be_moved(experiment, tones, tmp_path):
    shutil.copytree(experiment, tmp_path / "first")
    before = load(tmp_path / "first").recognise([tones(1.0)], ["a"])[0]
    (tmp_path / "first").rename(tmp_path / "second")
    assert_same(load(tmp_path / "second").recognise([tones(1.0)], ["a"])[0], before)


@pytest.mark.parametrize("name", ["config.yaml", "model.pt", "lang/tokens.txt"])
def test_a_missing_file_is_named(experiment, tmp_path, name):
    copy = shutil.copytree(experiment, tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"copy/{name}: No such file or directory"):
        load(copy)


def test_a_tokenizer_of_another_model_is_named(experiment, tmp_path):
    copy = shutil.copytree(experiment, tmp_path / "copy")
    (copy / "lang" / "tokens.txt").write_text("<blk> 0\n<unk> 1\n▁a 2\na 3\n")
    with pytest.raises(InputError, match=r"copy/lang: 4 tokens, but the model has 10"):
        load(copy)
