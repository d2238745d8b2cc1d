from random import Random

import numpy as np
import pytest
import soundfile
import torch

from asrkit.data.augmentation import AugmentationConfig, Augmenter, mask
from asrkit.data.features import Fbank, FeatureConfig
from asrkit.errors import InputError

FEATURES = FeatureConfig()
NOTHING = {
    "speed": 0.0, "warp": 0.0, "gain": 0.0, "noise": 0.0, "reverberation": 0.0, "time_masks": 0, "frequency_masks": 0,
}  # fmt: skip


def samples(seconds: float = 1.5) -> torch.Tensor:
    noise = torch.randn(int(seconds * 16000), generator=torch.Generator().manual_seed(1))
    return 0.1 * noise * torch.linspace(0, 30, len(noise)).sin()


def augment(seed: int = 0, **changes):
    return Augmenter(AugmentationConfig(**{**NOTHING, **changes}), FEATURES)(samples(), Random(seed))


def snr(noisy: torch.Tensor, clean: torch.Tensor) -> float:
    return float(10 * torch.log10(clean.square().mean() / (noisy - clean).square().mean()))


def test_nothing_switched_on_changes_nothing():
    features, speed = augment()
    assert speed == 1.0
    torch.testing.assert_close(features, Fbank(FEATURES)(samples()))


@pytest.mark.parametrize(
    "change",
    [
        {"speed": 0.1}, {"warp": 0.1}, {"gain": 6.0}, {"noise": 1.0}, {"reverberation": 1.0},
        {"time_masks": 2}, {"frequency_masks": 2},
    ],
)  # fmt: skip
def test_each_kind_works_and_follows_the_seed(change):
    first, speed = augment(3, **change)
    again, _ = augment(3, **change)
    other, _ = augment(5, **change)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert torch.isfinite(first).all()
    assert len(first) == pytest.approx(150 / speed, abs=1)


def test_defaults_are_finite_on_silence_and_on_short_utterances():
    augmenter = Augmenter(AugmentationConfig(noise=1.0, reverberation=1.0), FEATURES)
    for size in (400, 16000):
        features, _ = augmenter(torch.zeros(size), Random(0))
        assert len(features) and torch.isfinite(features).all()


def test_speed_stays_in_its_range():
    speeds = [augment(seed, speed=0.1)[1] for seed in range(20)]
    assert 0.9 <= min(speeds) < 0.95 and 1.05 < max(speeds) <= 1.1


def test_noise_has_the_chosen_ratio(monkeypatch):
    made = []
    monkeypatch.setattr(Fbank, "__call__", lambda self, noisy, warp: made.append(noisy) or torch.zeros(10, 80))
    for seed in range(6):
        augment(seed, noise=1.0, snr=(10.0, 10.0))
    assert all(snr(noisy, samples()) == pytest.approx(10.0, abs=0.01) for noisy in made)
    assert not torch.equal(made[0], made[1])


def test_reverberation_keeps_loudness_and_the_beginning(monkeypatch):
    made = []
    monkeypatch.setattr(Fbank, "__call__", lambda self, wet, warp: made.append(wet) or torch.zeros(10, 80))
    augment(reverberation=1.0)
    torch.testing.assert_close(made[0].norm(), samples().norm())
    correlation = torch.nn.functional.conv1d(made[0][None, None], samples()[None, None, 50:-50])[0, 0]
    assert correlation.argmax() == 50  # the direct sound comes without delay


def test_noises_and_rooms_from_a_folder(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Fbank, "__call__", lambda self, wet, warp: made.append(wet) or torch.zeros(10, 80))
    room = np.zeros(1000, np.float32)
    room[[300, 700]] = 0.5, 0.25  # 300 samples before the direct sound, then one echo
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "room.wav", room, 16000)
    augment(reverberation=1.0, rooms=str(tmp_path / "rooms"))
    echo = samples().clone()
    echo[400:] += 0.5 * samples()[:-400]
    torch.testing.assert_close(made[0], echo * (samples().norm() / echo.norm()), atol=1e-4, rtol=0)

    (tmp_path / "noises" / "deep").mkdir(parents=True)
    for seconds in (0.2, 20.0):
        noise = np.random.default_rng(0).standard_normal(int(seconds * 8000)) * 0.1
        soundfile.write(tmp_path / "noises" / "deep" / f"{seconds}.flac", noise, 8000)
    for seed in range(4):
        augment(seed, noise=1.0, noises=str(tmp_path / "noises"), snr=(3.0, 3.0))
    assert all(snr(noisy, samples()) == pytest.approx(3.0, abs=0.01) for noisy in made[1:])


def test_only_the_first_channel_of_a_room_is_heard(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Fbank, "__call__", lambda self, wet, warp: made.append(wet) or torch.zeros(10, 80))
    room = np.zeros((500, 2), np.float32)
    room[0, 0], room[[100, 200], 1] = 0.5, 0.9
    soundfile.write(tmp_path / "room.wav", room, 16000)
    augment(reverberation=1.0, rooms=str(tmp_path))
    torch.testing.assert_close(made[0], samples(), atol=1e-4, rtol=0)


def test_damaged_noise_is_named(tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"noise\.wav: no readable audio"):
        Augmenter(AugmentationConfig(noises=str(tmp_path)), FEATURES)


@pytest.mark.parametrize("key", ["noises", "rooms"])
def test_folder_without_audio(tmp_path, key):
    with pytest.raises(InputError, match=str(tmp_path)):
        Augmenter(AugmentationConfig(**{key: str(tmp_path)}), FEATURES)


def test_masks_are_no_larger_than_asked_and_leave_the_input():
    config = AugmentationConfig(time_masks=1, time_mask=0.1, frequency_masks=1, frequency_mask=0.25)
    features = torch.randn(200, 80, generator=torch.Generator().manual_seed(0))
    original = features.clone()
    widths = []
    for seed in range(50):
        changed = mask(features, config, Random(seed)) != features
        widths.append((int(changed.all(1).sum()), int(changed.all(0).sum())))
    assert torch.equal(features, original)
    assert max(time for time, _ in widths) in range(15, 21)
    assert max(band for _, band in widths) in range(15, 21)


@pytest.mark.parametrize("values", [{"noise": 1.5}, {"speed": 0.9}, {"snr": (10.0, 0.0)}])
def test_impossible_config(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        AugmentationConfig(**values)
