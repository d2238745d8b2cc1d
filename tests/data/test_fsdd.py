from itertools import pairwise

import numpy as np
import pytest
import soundfile

from asrkit.data.corpora import fsdd
from asrkit.data.manifests import load_cuts
from asrkit.data.validation import problems
from asrkit.errors import InputError

SPEAKERS = ("anna", "theo")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A complete corpus of two speakers; each clip is, after 10 ms of silence, a level that tells them apart."""
    folder = tmp_path_factory.mktemp("fsdd")
    (folder / "recordings").mkdir()
    for digit in range(10):
        for speaker in SPEAKERS:
            for index in range(50):
                samples = np.full(800 + 8 * index, value(digit, speaker, index))
                samples[:80] = 0
                fsdd._write_wav(folder / "recordings" / f"{digit}_{speaker}_{index}.wav", samples)
    return folder


def value(digit, speaker, index):
    return 0.1 + (digit * 100 + SPEAKERS.index(speaker) * 50 + index) / 2000


@pytest.fixture(autouse=True)
def few_test_strings(monkeypatch):
    monkeypatch.setattr(fsdd, "STRINGS", {"dev": 5, "test": 5, "test_heldout": 5})


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsdd, "STRINGS", {"dev": 30, "test": 30, "test_heldout": 30})
        fsdd.prepare(out, corpus_dir=corpus, hours=0.02)
    return out


def recordings_of(cuts):
    """(digit, speaker, index) of each word of each cut, read from the audio in the middle of the word."""
    table = {(d, s, i): value(d, s, i) for d in range(10) for s in SPEAKERS for i in range(50)}
    keys, levels = list(table), np.array(list(table.values()))
    for cut in cuts:
        samples = cut.load_audio()[0]
        for word in cut.supervisions[0].alignment["word"]:
            middle = samples[round((word.start + word.duration / 2) * 8000)]
            yield cut, word, keys[np.abs(levels - middle).argmin()]


@pytest.mark.parametrize("name", fsdd.RECORDINGS)
def test_words_speakers_and_recordings_of_each_set(prepared, name):
    cuts = load_cuts(prepared / f"{name}.jsonl.gz")
    used = set()
    for cut, word, (digit, speaker, index) in recordings_of(cuts):
        assert fsdd.WORDS[digit] == word.symbol
        assert speaker == cut.supervisions[0].speaker == ("theo" if name == "test_heldout" else "anna")
        assert index in fsdd.RECORDINGS[name]
        assert word.duration == pytest.approx(0.1 + 0.001 * index)
        used.add((digit, index))
    assert len(used) > 40
    assert {len(cut.supervisions[0].text.split()) for cut in cuts} == set(range(1, 8))
    assert list(problems(prepared / f"{name}.jsonl.gz")) == []


def test_margins_and_gaps_are_noise_and_random(prepared):
    cuts = load_cuts(prepared / "train.jsonl.gz")
    leading = [cut.supervisions[0].alignment["word"][0].start for cut in cuts]
    assert 0.1 <= min(leading) < 0.2 and 0.4 < max(leading) <= 0.5
    gaps = [
        after.start - before.end for cut in cuts for before, after in pairwise(cut.supervisions[0].alignment["word"])
    ]
    assert -0.001 < min(gaps) < 0.05 and 0.2 < max(gaps) < 0.251


def test_silence_is_not_digital_zero(write_wav, tmp_path):
    rng = np.random.default_rng(0)
    clips = [fsdd.Clip(1, "anna", 0, (0.01 * rng.standard_normal(1600)).astype(np.float32))]
    _, samples, starts = next(fsdd.digit_strings(clips, rng))
    before = samples[: round(starts[0] * 8000)]
    assert 0.005 < before.std() < 0.02
    assert np.count_nonzero(before) > 0.99 * len(before)


def test_amount_and_determinism(corpus, prepared, tmp_path, monkeypatch):
    cuts = load_cuts(prepared / "train.jsonl.gz")
    seconds = sum(cut.duration for cut in cuts)
    assert 72 <= seconds < 72 + 7
    fsdd.prepare(tmp_path / "a", corpus_dir=corpus, hours=0.01)
    texts = [cut.supervisions[0].text for cut in load_cuts(tmp_path / "a" / "train.jsonl.gz")]
    assert texts == [cut.supervisions[0].text for cut in cuts][: len(texts)]  # more hours extend fewer
    first = (prepared / "wav/train/fsdd-train-000003.wav").read_bytes()
    assert (tmp_path / "a/wav/train/fsdd-train-000003.wav").read_bytes() == first
    with monkeypatch.context() as patch:
        patch.setattr(fsdd, "read_clips", None)  # done work is not done again
        fsdd.prepare(tmp_path / "a", corpus_dir=corpus, hours=0.01)
    fsdd.prepare(tmp_path / "a", corpus_dir=corpus, hours=0.005, seed=1)
    again = load_cuts(tmp_path / "a" / "train.jsonl.gz")
    assert [cut.supervisions[0].text for cut in again] != texts[: len(again)]
    assert len(list((tmp_path / "a/wav/train").iterdir())) == len(again)  # nothing of the first run is left


def test_wrong_options_and_corpora_write_nothing(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="--held_out_speaker nobody: not in .*which has anna, theo"):
        fsdd.prepare(out, corpus_dir=corpus, held_out_speaker="nobody")
    with pytest.raises(InputError, match="--hours 0: must be positive"):
        fsdd.prepare(out, corpus_dir=corpus, hours=0)
    with pytest.raises(InputError, match="none: no such directory"):
        fsdd.prepare(out, corpus_dir=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: not the complete corpus"):
        fsdd.prepare(out, corpus_dir=tmp_path / "empty")
    partial = tmp_path / "partial" / "recordings"
    partial.mkdir(parents=True)
    soundfile.write(partial / "0_anna_0.wav", np.ones(800), 8000)
    with pytest.raises(InputError, match="partial: not the complete corpus: no recordings/0_anna_1.wav"):
        fsdd.prepare(out, corpus_dir=tmp_path / "partial")
    soundfile.write(partial / "0_anna_0.wav", np.ones(800), 16000)
    with pytest.raises(InputError, match="0_anna_0.wav: expected 8 kHz mono"):
        fsdd.prepare(out, corpus_dir=tmp_path / "partial")
    (partial / "0_anna_0.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="0_anna_0.wav: cannot be read"):
        fsdd.prepare(out, corpus_dir=tmp_path / "partial")
    assert not out.exists()


def test_without_a_corpus_or_network_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("ASRKIT_CORPORA", raising=False)
    monkeypatch.setattr(fsdd, "URL", "http://127.0.0.1:9/fsdd.tar.gz")
    with pytest.raises(InputError, match=r"^http://127.0.0.1:9/fsdd.tar.gz: download failed .*--corpus_dir$"):
        fsdd.prepare(tmp_path / "out")


def test_download_from_the_origin(corpus, tmp_path, monkeypatch):
    import tarfile

    with tarfile.open(tmp_path / "fsdd.tar.gz", "w:gz") as tar:
        tar.add(corpus, "free-spoken-digit-dataset-26eb9aa")
    monkeypatch.setattr(fsdd, "URL", (tmp_path / "fsdd.tar.gz").as_uri())
    monkeypatch.delenv("ASRKIT_CORPORA", raising=False)
    for _ in range(2):  # the second time the copy is there
        fsdd.prepare(tmp_path / "out", hours=0.001)
        assert load_cuts(tmp_path / "out" / "train.jsonl.gz")
        (tmp_path / "fsdd.tar.gz").unlink(missing_ok=True)


def test_damaged_download_is_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "fsdd.tar.gz").write_bytes(b"not an archive")
    monkeypatch.setattr(fsdd, "URL", (tmp_path / "fsdd.tar.gz").as_uri())
    monkeypatch.delenv("ASRKIT_CORPORA", raising=False)
    with pytest.raises(InputError, match="fsdd.tar.gz: cannot be unpacked"):
        fsdd.prepare(tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_real_corpus(corpora, tmp_path, monkeypatch):
    monkeypatch.setenv("ASRKIT_CORPORA", str(corpora))
    fsdd.prepare(tmp_path, hours=0.01)
    for name in fsdd.RECORDINGS:
        cuts = load_cuts(tmp_path / f"{name}.jsonl.gz")
        assert {cut.sampling_rate for cut in cuts} == {8000}
        assert ({cut.supervisions[0].speaker for cut in cuts} == {"theo"}) == (name == "test_heldout")
        assert list(problems(tmp_path / f"{name}.jsonl.gz")) == []
