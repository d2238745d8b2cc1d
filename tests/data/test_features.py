import math

import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch

from asrkit.data.audio import resample
from asrkit.data.features import SILENCE, Fbank, FbankStream, FeatureConfig, num_frames, pad_features

WIDE = FeatureConfig(sampling_rate=16000, num_mel_bins=80)
NARROW = FeatureConfig(sampling_rate=8000, num_mel_bins=40)


def speech_like(size: int, seed: int = 0) -> torch.Tensor:
    """Noise with a falling spectrum, moving loudness and a DC offset, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size + 21, generator=generator).unfold(0, 21, 1).mean(1)[:size]
    return (noise * torch.linspace(0, 40, size).sin() + 0.01).clamp(-1, 1)


def kaldi_fbank(samples: torch.Tensor, config: FeatureConfig) -> torch.Tensor:
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = config.sampling_rate
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = config.num_mel_bins
    options.mel_opts.high_freq = -400.0
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(config.sampling_rate, samples.tolist())
    fbank.input_finished()
    return torch.from_numpy(np.stack([fbank.get_frame(t) for t in range(fbank.num_frames_ready)]))


@pytest.mark.parametrize("config", [WIDE, NARROW, FeatureConfig(11025, 64)])
@pytest.mark.parametrize("seconds", [0.006, 0.01, 0.02, 1.2345])
def test_equals_kaldi(config, seconds):
    samples = speech_like(int(seconds * config.sampling_rate))
    expected = kaldi_fbank(samples, config)
    features = Fbank(config)(samples)
    assert features.shape == expected.shape
    assert num_frames(seconds) == pytest.approx(len(expected), abs=1)
    torch.testing.assert_close(features, expected, atol=5e-4, rtol=0)


def test_digital_silence_is_the_padding_value():
    features = Fbank(WIDE)(torch.zeros(1600))
    torch.testing.assert_close(features, torch.full((10, 80), SILENCE))


def test_no_samples_give_no_frames():
    assert Fbank(WIDE)(torch.zeros(0)).shape == (0, 80)
    assert Fbank(WIDE)(torch.zeros(79)).shape == (0, 80)


def test_neighbours_and_padding_change_nothing():
    fbank = Fbank(WIDE)
    utterances = [speech_like(size, seed=size) for size in (16000, 4321, 90, 30000)]
    features, lens = fbank.batch(utterances)
    assert features.shape == (4, max(lens), 80)
    for padded, length, samples in zip(features, lens, utterances, strict=True):
        assert torch.equal(padded[:length], fbank(samples))
        assert (padded[length:] == SILENCE).all()


@pytest.mark.parametrize("config", [WIDE, NARROW])
@pytest.mark.parametrize("size", [0, 50, 100, 281, 399, 400, 401, 2345])
@pytest.mark.parametrize("chunk", [1, 37, 160, 1000, 100000])
def test_stream_equals_the_whole(config, size, chunk):
    samples = speech_like(size)
    stream = FbankStream(config)
    for _ in range(2):  # the second utterance finds nothing of the first
        frames = [stream.accept(part) for part in samples.split(chunk)]
        streamed = torch.cat([*frames, stream.flush()])
        expected = Fbank(config)(samples)
        assert streamed.shape == expected.shape
        torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=0)


def test_stream_gives_frames_as_soon_as_their_samples_are_there():
    stream = FbankStream(WIDE)
    assert len(stream.accept(speech_like(16000))) == 99  # the last one needs the reflection of the end


def test_warp_moves_a_tone():
    """A tone of f Hz, warped by w below the bend, reads as a tone of f * w Hz."""
    times = torch.arange(16000) / 16000
    fbank = Fbank(WIDE)
    for warp in (0.9, 1.1):
        warped = fbank(0.1 * torch.sin(2 * math.pi * 1500 * times), warp)[50]
        moved = fbank(0.1 * torch.sin(2 * math.pi * 1500 * warp * times))[50]
        assert abs(int(warped.argmax()) - int(moved.argmax())) <= 1
        assert warped.argmax() != fbank(0.1 * torch.sin(2 * math.pi * 1500 * times))[50].argmax()


def test_warp_leaves_no_filter_silent():
    noise = speech_like(16000)
    assert (Fbank(WIDE)(noise, 0.85).amax(0) > SILENCE + 1).all()


def test_resampled_audio_has_the_features_of_its_band():
    times = torch.arange(44100) / 44100
    tone = (0.1 * torch.sin(2 * math.pi * 440 * times)).float()
    features = Fbank(WIDE)(resample(tone.numpy(), 44100, 16000))
    direct = Fbank(WIDE)((0.1 * torch.sin(2 * math.pi * 440 * torch.arange(16000) / 16000)).float())
    assert features.shape == direct.shape
    assert features[50].argmax() == direct[50].argmax()


def test_pad_features_lengths():
    features, lens = pad_features([torch.zeros(3, 4), torch.zeros(5, 4)])
    assert features.shape == (2, 5, 4)
    assert lens.tolist() == [3, 5]


@pytest.mark.parametrize("values", [{"sampling_rate": 100}, {"num_mel_bins": 0}])
def test_impossible_config(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        FeatureConfig(**values)
