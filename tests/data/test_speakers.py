"""Crops of speakers: balanced, the same whenever asked, shared out, and bad manifests."""

from random import Random

import numpy as np
import pytest
import torch
from lhotse import MonoCut, SupervisionSegment

from asrkit.data.augmentation import AugmentationConfig
from asrkit.data.features import FeatureConfig
from asrkit.data.speakers import SpeakerBatchingConfig, SpeakerLoader, by_speaker, random_part
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.errors import InputError

RATE = 8000
FEATURES = FeatureConfig(RATE, 10)
AUGMENTATION = AugmentationConfig(speed=0.0, warp=0.0)


@pytest.fixture
def cuts(tmp_path, write_wav) -> list[MonoCut]:
    """Three speakers with one, two and three utterances of different loudness."""
    made = []
    for speaker in range(3):
        for number in range(speaker + 1):
            samples = 0.01 * 10**speaker * np.random.default_rng(number).standard_normal(round(RATE * (0.3 + number)))
            path = write_wav(tmp_path / f"{speaker}-{number}.flac", rate=RATE, samples=samples.clip(-1, 1))
            made.append(utterance_cut(read_recording(path), path.stem, "", f"speaker-{speaker}"))
    return made


def loader(cuts, augmentation=AUGMENTATION, **options) -> SpeakerLoader:
    batching = {"size": 8, "length": (0.4, 0.8), "crops": 4, "speeds": (0.9, 1.0), "workers": 0}
    place = {name: options.pop(name) for name in ("seed", "rank", "world_size") if name in options}
    return SpeakerLoader(cuts, FEATURES, SpeakerBatchingConfig(**{**batching, **options}), augmentation, **place)


def equal(ours, theirs) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a.features, b.features) and torch.equal(a.speakers, b.speakers) for a, b in pairs)


def test_an_epoch_has_as_many_crops_of_each_speaker(cuts):
    data = loader(cuts)
    batches = list(data.epoch(2))
    assert data.speakers == 6
    assert torch.cat([batch.speakers for batch in batches]).bincount().tolist() == [4] * 6
    assert sum(batch.hours for batch in batches) == pytest.approx(data.hours, rel=0.4)
    for batch in batches:
        frames = batch.features.shape[1]
        assert 40 <= frames <= 80 and batch.features.shape == (len(batch.speakers), frames, 10)
        assert (batch.speakers.view(-1, 2)[:, 0] == batch.speakers.view(-1, 2)[:, 1]).all()
        assert [cut.supervisions[0].speaker for cut in batch.cuts] == [f"speaker-{n // 2}" for n in batch.speakers]
    assert len({cut.id for batch in batches for cut in batch.cuts}) == 24


def test_epochs_differ_but_repeat(cuts):
    data = loader(cuts)
    first = list(data.epoch(0))
    assert equal(first, loader(cuts, workers=2).epoch(0)) and equal(first[1:], data.epoch(0, skip=1))
    for other in (data.epoch(1), loader(cuts, seed=1).epoch(0)):
        assert [batch.speakers.tolist() for batch in other] != [batch.speakers.tolist() for batch in first]


def test_processes_share_an_epoch(cuts):
    parts = [list(loader(cuts, rank=rank, world_size=2).epoch(0)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    batches = [batch for part in parts for batch in part]
    assert torch.cat([batch.speakers for batch in batches]).bincount().tolist() == [4] * 6
    assert all((batch.speakers.view(-1, 2)[:, 0] == batch.speakers.view(-1, 2)[:, 1]).all() for batch in batches)


def test_evaluation_is_always_the_same_and_knows_no_other_speeds(cuts):
    data = loader(cuts, augmentation=None)
    assert data.speakers == 3 and equal(data.epoch(0), data.epoch(7))


def test_a_short_cut_is_heard_again(cuts):
    batch = next(loader(cuts, augmentation=None, length=(0.8, 0.8)).epoch(0))
    crop = batch.features[batch.speakers == 0][0]  # its only cut is 0.3 s long
    torch.testing.assert_close(crop[5:25], crop[35:55])


def test_a_part_of_a_file_is_that_of_the_whole(tmp_path, write_wav):
    parts = []
    for suffix in ("flac", "ogg"):  # one is read in part, the other whole
        samples = 0.5 * np.sin(np.arange(3 * RATE) ** 1.5 / 3000)
        path = write_wav(tmp_path / f"a.{suffix}", rate=RATE, samples=samples)
        cut, part = random_part([utterance_cut(read_recording(path), "a", "", "s")], 0.5, RATE, Random(1))
        assert cut.id == "a" and len(part) == RATE // 2
        parts.append(part)
    assert torch.corrcoef(torch.stack(parts))[0, 1] > 0.95


def test_speeds_are_other_speakers(cuts):
    slow = next(loader(cuts, speeds=(0.8,)).epoch(0))
    usual = next(loader(cuts, speeds=(1.0,)).epoch(0))
    assert slow.features.shape == usual.features.shape and not torch.equal(slow.features, usual.features)


def test_bad_manifests(cuts, tmp_path):
    with pytest.raises(InputError, match="no cuts"):
        by_speaker([])
    with pytest.raises(InputError, match="all cuts are of one speaker"):
        loader(cuts[:1])
    cuts[3].supervisions[0].speaker = None
    with pytest.raises(InputError, match=f"cut {cuts[3].id}: no speaker"):
        loader(cuts)
    cuts[3].supervisions = [SupervisionSegment("x", cuts[3].recording_id, 0, 0.1, speaker=name) for name in "ab"]
    with pytest.raises(InputError, match=f"cut {cuts[3].id}: several speakers"):
        loader(cuts)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_audio_is_one_line(cuts, tmp_path, workers):
    (tmp_path / "1-0.flac").write_bytes(b"no audio")
    with pytest.raises(InputError, match=r"1-0\.flac: no readable audio"):
        list(loader(cuts, workers=workers).epoch(0))


@pytest.mark.parametrize("wrong", [{"length": (2.0, 1.0)}, {"size": 1}, {"speeds": ()}, {"speeds": (3.0,)}])
def test_wrong_batching(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpeakerBatchingConfig(**wrong)
