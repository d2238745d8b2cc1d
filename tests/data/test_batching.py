import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

from asrkit.data.alignment import UNLABELLED, FrameLabels
from asrkit.data.augmentation import AugmentationConfig
from asrkit.data.batching import FRAME_STEP, BatchingConfig, BatchLoader
from asrkit.data.features import SILENCE, Fbank, FeatureConfig
from asrkit.data.manifests import save_cuts
from asrkit.data.memory import probe, worst_batches
from asrkit.errors import InputError

FEATURES = FeatureConfig(sampling_rate=8000, num_mel_bins=40)
BATCHING = BatchingConfig(max_duration=6.0, max_length=3.0, workers=0)
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def encode(text: str) -> list[int]:
    if unknown := set(text) - set(LETTERS):
        raise InputError(f"'{min(unknown)}' is unknown")
    return [LETTERS.index(letter) + 1 for letter in text]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory) -> CutSet:
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    made = []
    for number in range(31):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(int(rng.uniform(0.5, 2.0) * 8000)), 8000)
        made.append(cut_of(path, f"cut{number}", "abc"[: 1 + number % 3]))
    return CutSet(made)


def cut_of(path, name: str, text: str) -> MonoCut:
    recording = Recording.from_file(path)
    supervision = SupervisionSegment(name, recording.id, 0, recording.duration, text=text, speaker="s")
    return MonoCut(name, 0, recording.duration, 0, recording=recording, supervisions=[supervision])


def loader(cuts, augmentation=None, batching=BATCHING, **options) -> BatchLoader:
    return BatchLoader(cuts, FEATURES, batching, encode, augmentation, **options)


def ids(batches) -> list[list[str]]:
    return [[cut.id for cut in batch.cuts] for batch in batches]


def assert_same(batches, others) -> None:
    assert ids(batches) == ids(others)
    for batch, other in zip(batches, others, strict=True):
        for name in ("features", "feature_lens", "tokens", "token_lens"):
            assert torch.equal(getattr(batch, name), getattr(other, name))


def test_a_batch_holds_what_its_cuts_say(cuts):
    fbank = Fbank(FEATURES)
    batches = list(loader(cuts).epoch(0))
    assert sorted(sum(ids(batches), [])) == sorted(cut.id for cut in cuts)
    for batch in batches:
        assert max(cut.duration for cut in batch.cuts) * len(batch) <= BATCHING.max_duration
        frames = int(batch.feature_lens.max())
        assert batch.features.shape[:2] == (len(batch), math.ceil(frames / FRAME_STEP) * FRAME_STEP)
        assert (batch.features[:, frames:] == SILENCE).all()
        for row, cut in enumerate(batch.cuts):
            expected = fbank(torch.from_numpy(cut.load_audio()[0]))
            assert torch.equal(batch.features[row, : batch.feature_lens[row]], expected)
            tokens = encode(cut.supervisions[0].text)
            assert batch.tokens[row, : batch.token_lens[row]].tolist() == tokens
            assert (batch.tokens[row, len(tokens) :] == 0).all()
    hours = sum(cut.duration for cut in cuts) / 3600
    assert sum(batch.hours for batch in batches) == pytest.approx(hours)
    assert loader(cuts).hours == pytest.approx(hours)
    assert batches[0].to("meta").features.is_meta


def test_shuffling(cuts):
    data = loader(cuts)
    assert data.plan(1) == data.plan(1) == loader(cuts).plan(1)
    assert data.plan(1) != data.plan(2)
    assert data.plan(1) != loader(cuts, seed=1).plan(1)
    ordered = loader(cuts, shuffle=False)
    assert ordered.plan(0) == ordered.plan(1)
    durations = [ordered.cuts[index].duration for batch in ordered.plan(0) for index in batch]
    assert durations == sorted(durations)


@pytest.mark.parametrize("world_size", [2, 3, 4, 7, 31])
def test_every_cut_is_used_once_and_processes_get_equally_many_batches(cuts, world_size):
    shares = [loader(cuts, rank=rank, world_size=world_size) for rank in range(world_size)]
    epochs = [ids(share.epoch(0)) for share in shares]
    assert len({len(epoch) for epoch in epochs}) == 1
    used = [name for epoch in epochs for batch in epoch for name in batch]
    assert sorted(used) == sorted(cut.id for cut in cuts)


def test_processes_share_the_batches_of_one(cuts):
    alone, (first, second) = loader(cuts).plan(0), (loader(cuts, rank=r, world_size=2).plan(0) for r in range(2))
    assert first == second
    whole = len(alone) // 2 * 2
    assert first[:whole] == alone[:whole]


def test_too_few_cuts_for_the_processes(cuts):
    with pytest.raises(InputError, match="31 cuts are too few for 32 processes"):
        loader(cuts, rank=0, world_size=32)


def test_workers_change_nothing(cuts):
    augmentation = AugmentationConfig(noise=0.5, reverberation=0.5)
    epochs = [list(loader(cuts, augmentation, replace(BATCHING, workers=workers)).epoch(5)) for workers in (0, 1, 2)]
    assert_same(epochs[0], epochs[1])
    assert_same(epochs[0], epochs[2])


def test_skipping_gives_the_tail_and_reads_no_audio(cuts, tmp_path):
    data = loader(cuts, AugmentationConfig())
    batches = list(data.epoch(2))
    assert_same(list(data.epoch(2, skip=3)), batches[3:])
    assert list(data.epoch(2, skip=len(batches))) == []
    lost = [replaced_source(cut, tmp_path / "lost.wav") for cut in cuts]
    assert list(loader(CutSet(lost)).epoch(2, skip=len(batches))) == []


def test_augmentation_depends_on_the_cut_not_on_its_batch(cuts):
    def features(max_duration: float, epoch: int) -> dict:
        data = loader(cuts, AugmentationConfig(), replace(BATCHING, max_duration=max_duration))
        return {
            cut.id: batch.features[row, : batch.feature_lens[row]]
            for batch in data.epoch(epoch)
            for row, cut in enumerate(batch.cuts)
        }

    small, large, next_epoch = features(3.0, 1), features(20.0, 1), features(20.0, 2)
    assert all(torch.equal(small[name], large[name]) for name in small)
    assert not any(torch.equal(large[name], next_epoch[name]) for name in small)


def test_frame_labels_follow_the_speed(cuts):
    second_half = [
        replaced_alignment(cut, [AlignmentItem("b", cut.duration / 2, cut.duration / 2)])
        for cut in cuts.subset(first=9)
    ]
    augmentation = AugmentationConfig(speed=0.3)
    units = FrameLabels("word", ("<sil>", "a", "b"))
    batches = list(loader(CutSet(second_half), augmentation, frame_labels=units).epoch(0))
    for batch in batches:
        lens = (batch.feature_lens + 3) // 4
        assert batch.frame_labels.shape == (len(batch), batch.features.shape[1] // 4)
        for labels, length in zip(batch.frame_labels, lens, strict=True):
            assert (labels[length:] == UNLABELLED).all()
            assert (labels == 2).sum() == pytest.approx(int(length) / 2, abs=1)
    without_times = loader(cuts, frame_labels=units).epoch(0)
    assert all((batch.frame_labels == UNLABELLED).all() for batch in without_times)


def test_global_random_state_is_left_alone(cuts):
    before = torch.random.get_rng_state()
    list(loader(cuts, AugmentationConfig()).epoch(0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_length_filter_reports(cuts, tmp_path, caplog):
    soundfile.write(tmp_path / "short.wav", np.zeros(400), 8000)
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 4), 8000)
    soundfile.write(tmp_path / "dense.wav", np.zeros(8000), 8000)
    extra = [
        cut_of(tmp_path / "short.wav", "short", "a"),
        cut_of(tmp_path / "long.wav", "long", "a"),
        cut_of(tmp_path / "dense.wav", "dense", "a" * 26),
        cut_of(tmp_path / "dense.wav", "just", "a" * 25),
    ]
    with caplog.at_level(logging.INFO):
        data = loader(CutSet([*cuts, *extra]))
    assert [cut.id for cut in data.cuts] == [*(cut.id for cut in cuts), "just"]
    assert len(caplog.records) == 1
    for reason in ("32 cuts", "1 shorter than 0.1 s", "1 longer than 3.0 s", "1 with fewer encoder frames than labels"):
        assert reason in caplog.text


def test_empty_manifest_is_named(tmp_path):
    save_cuts([], tmp_path / "train.jsonl.gz")
    with pytest.raises(InputError, match=r"train\.jsonl\.gz: no cuts"):
        loader(tmp_path / "train.jsonl.gz")


def test_nothing_left(cuts):
    with pytest.raises(InputError, match="no cuts to make batches of; left out: 31 shorter"):
        loader(cuts, batching=BatchingConfig(min_length=10.0, workers=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_audio_is_one_line(cuts, tmp_path, workers):
    lost = CutSet([replaced_source(cut, tmp_path / "lost.wav") if cut.id == "cut7" else cut for cut in cuts])
    with pytest.raises(InputError) as error:
        list(loader(lost, batching=replace(BATCHING, workers=workers)).epoch(0))
    assert str(error.value) == f"cut cut7: {tmp_path / 'lost.wav'}: no such file"


def test_cut_past_the_end_of_its_file(cuts):
    longer = [replace(cut, duration=cut.duration + 0.5) for cut in cuts]
    with pytest.raises(InputError, match=r"cut cut\d+: .*wav: holds"):
        list(loader(CutSet(longer)).epoch(0))


@pytest.mark.parametrize("text", ["a7", "", None])
def test_bad_transcript_names_its_cut(cuts, text):
    changed = [replaced_text(cut, text) if cut.id == "cut3" else cut for cut in cuts]
    reason = "'7' is unknown" if text else "no transcript"
    with pytest.raises(InputError, match=f"cut cut3: {reason}"):
        loader(CutSet(changed))


def test_the_same_cut_twice(cuts):
    with pytest.raises(InputError, match="cut cut0 is in the manifest twice"):
        loader(CutSet([*cuts, next(iter(cuts))]))


def test_impossible_config():
    with pytest.raises(ValueError, match="max_duration"):
        BatchingConfig(max_duration=10.0, max_length=20.0)
    with pytest.raises(ValueError, match="workers"):
        BatchingConfig(workers=-1)


def test_worst_batches(cuts):
    data = loader(cuts, AugmentationConfig(speed=0.1))
    worst = worst_batches(data)
    heard = list(data.epoch(0))
    assert 1 <= len(worst) <= 3
    for measure in (
        lambda b: b.features.shape[0] * b.features.shape[1],
        lambda b: b.tokens.numel(),
        lambda b: b.tokens.numel() * b.features.shape[1],
    ):
        assert max(map(measure, worst)) >= max(map(measure, heard))
    assert all(batch.features.shape[2] == 40 for batch in worst)


class Summing(torch.nn.Module):
    def __init__(self, most_frames: int):
        super().__init__()
        self.linear = torch.nn.Linear(40, 1)
        self.norm = torch.nn.BatchNorm1d(1)
        self.most_frames = most_frames

    def forward(self, batch, hours):
        if batch.features.shape[1] > self.most_frames:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9e15 bytes")
        out = self.norm(self.linear(torch.nn.functional.dropout(batch.features)).transpose(1, 2))
        return {"loss": out.sum(), "weight": batch.token_lens.sum()}


def test_probe_leaves_no_trace(cuts):
    model = Summing(most_frames=1000)
    before, random_state = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    probe(model, worst_batches(loader(cuts)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_probe_names_the_batch(cuts):
    with pytest.raises(InputError, match=r"not enough memory for a batch of \d+ utterances.*cut\d+.*max_duration"):
        probe(Summing(most_frames=50), worst_batches(loader(cuts)))


def replaced_source(cut: MonoCut, path) -> MonoCut:
    source = replace(cut.recording.sources[0], source=str(path))
    return replace(cut, recording=replace(cut.recording, sources=[source]))


def replaced_alignment(cut: MonoCut, words: list[AlignmentItem]) -> MonoCut:
    return replace(cut, supervisions=[replace(cut.supervisions[0], alignment={"word": words})])


def replaced_text(cut: MonoCut, text) -> MonoCut:
    return replace(cut, supervisions=[replace(cut.supervisions[0], text=text)])
