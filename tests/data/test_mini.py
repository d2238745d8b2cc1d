"""The embedded corpus: its voices, sentences, times and bytes."""

import gzip
import json
import random
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="pip install espeakng-loader")

from asrkit.data import espeak
from asrkit.data.corpora import mini
from asrkit.data.corpora.mini_grammar import DOMAINS, sample_sentence, vocabulary
from asrkit.data.corpora.mini_speech import VARIANTS, Task, make_speakers, speak
from asrkit.errors import InputError

OPTIONS = dict(hours=0.03, test_utterances=20, text_sentences=50, seed=3)
TEST_SETS = ("dev", "test_seen", "test_unseen")
SETS = ("train", *TEST_SETS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    mini.prepare(out, jobs=2, **OPTIONS)
    return out


def read(out: Path, name: str) -> list[dict]:
    with gzip.open(out / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sentences(out: Path, name: str) -> list[str]:
    return [cut["supervisions"][0]["text"] for cut in read(out, name)]


def contents(out: Path) -> dict[str, bytes]:
    """All files but the manifests, and the manifests without the path of the folder."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in SETS:
        files[f"{name}.jsonl.gz"] = json.dumps(read(out, name)).replace(str(out), "").encode()
    return files


def test_same_bytes_for_any_number_of_jobs(corpus, tmp_path):
    mini.prepare(tmp_path, jobs=1, **OPTIONS)
    assert contents(tmp_path) == contents(corpus)


def test_more_hours_extend_the_training_set(corpus, tmp_path):
    mini.prepare(tmp_path, jobs=1, **{**OPTIONS, "hours": 0.01})
    few, many = contents(tmp_path), contents(corpus)
    del few["mini.json"], few["train.jsonl.gz"]
    assert few.items() <= many.items()
    train = read(tmp_path, "train")
    assert [cut["id"] for cut in train] == [cut["id"] for cut in read(corpus, "train")][: len(train)]
    assert len(list((tmp_path / "audio" / "train").rglob("*.wav"))) == len(train)  # none spoken ahead is left
    assert sum(cut["duration"] for cut in train[:-1]) < 36 <= sum(cut["duration"] for cut in train)


def test_other_seed_other_sentences(corpus, tmp_path):
    mini.prepare(tmp_path, jobs=1, **{**OPTIONS, "seed": 4, "hours": 0.001, "test_utterances": 3})
    assert set(sentences(tmp_path, "dev")) != set(sentences(corpus, "dev")[:3])


def test_finished_preparation_is_not_redone(corpus):
    before = (corpus / "train.jsonl.gz").stat().st_mtime_ns
    mini.prepare(corpus, jobs=1, **OPTIONS)
    assert (corpus / "train.jsonl.gz").stat().st_mtime_ns == before


def test_killed_preparation_is_redone(tmp_path, monkeypatch):
    options = {**OPTIONS, "hours": 0.001, "test_utterances": 3}
    with monkeypatch.context() as patch:
        patch.setattr(mini, "_write_texts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mini.prepare(tmp_path, jobs=1, **options)
    leftover = tmp_path / "audio" / "train" / "leftover.wav"
    leftover.touch()
    mini.prepare(tmp_path, jobs=1, **options)
    assert not leftover.exists() and (tmp_path / "text" / "travel.txt").exists()


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "mine.wav").touch()
    with pytest.raises(InputError, match="not of the corpus mini"):
        mini.prepare(tmp_path, **OPTIONS)
    assert (tmp_path / "audio" / "mine.wav").exists()


def test_unseen_voices_are_unseen(corpus):
    speakers = {name: {cut["supervisions"][0]["speaker"] for cut in read(corpus, name)} for name in SETS}
    variants = {name: {speaker.split("-")[0] for speaker in speakers[name]} for name in SETS}
    assert not variants["test_unseen"] & (variants["train"] | variants["dev"] | variants["test_seen"])
    assert variants["test_seen"] <= set(VARIANTS["train"])
    unseen = [cut["supervisions"][0]["speaker"].split("-")[0] in VARIANTS["dev"] for cut in read(corpus, "dev")]
    assert sum(unseen) == len(unseen) / 2
    everyone = sum(VARIANTS.values(), [])
    assert len(everyone) == len(set(everyone))


def test_speakers_differ_in_more_than_the_name():
    speakers = make_speakers(VARIANTS["train"], ("en-us", "en-gb"), 300)
    assert len({speaker.voice for speaker in speakers}) == len({speaker.id for speaker in speakers}) == 300
    assert {speaker.gender for speaker in speakers} == {"F", "M"}


def test_test_sentences_are_unseen(corpus):
    tests = [sentence for name in TEST_SETS for sentence in sentences(corpus, name)]
    texts = [(corpus / "text" / f"{domain}.txt").read_text().splitlines() for domain in DOMAINS]
    assert [len(text) for text in texts] == [50] * len(DOMAINS)
    assert len(tests) == len(set(tests)) == 60
    assert set(tests).isdisjoint(sentences(corpus, "train"))
    assert set(tests).isdisjoint(sum(texts, []))


def test_small_domain_that_runs_out(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "sample_sentence", lambda domain, rng: ["hello"])
    with pytest.raises(InputError, match="too few sentences"):
        mini.prepare(tmp_path, **OPTIONS)


def test_random_share(corpus):
    domains = [cut["supervisions"][0]["custom"]["domain"] for cut in read(corpus, "train")]
    assert 0.2 < domains.count("random") / len(domains) < 0.8
    assert {cut["supervisions"][0]["custom"]["domain"] for cut in read(corpus, "dev")} == set(DOMAINS)


@pytest.mark.parametrize("name", SETS)
def test_times_cover_the_words(corpus, name):
    for cut in read(corpus, name):
        supervision = cut["supervisions"][0]
        words, phones = supervision["alignment"]["word"], supervision["alignment"]["phone"]
        assert [symbol for symbol, *_ in words] == supervision["text"].split()
        for items in (words, phones):
            assert all(duration > 0.004 for _, _, duration, _ in items)
            ends = [start + duration for _, start, duration, _ in items]
            assert all(start >= end - 2e-4 for end, (_, start, _, _) in zip(ends[:-1], items[1:], strict=True))
            assert 0.05 <= items[0][1] and ends[-1] <= cut["duration"] - 0.09
        word_starts = {start for _, start, _, _ in words}
        assert word_starts <= {start for _, start, _, _ in phones}  # a word begins where its first phone begins


def test_audio_is_speech_at_the_given_times(corpus):
    for cut in read(corpus, "test_unseen"):
        with wave.open(cut["recording"]["sources"][0]["source"]) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
            samples = np.frombuffer(file.readframes(-1), np.int16) / 32768
        assert len(samples) == cut["recording"]["num_samples"] == round(cut["duration"] * 16000)
        words = cut["supervisions"][0]["alignment"]["word"]
        start, end = (round(t * 16000) for t in (words[0][1], words[-1][1] + words[-1][2]))
        level = [np.sqrt(np.mean(part**2)) for part in (samples[:start], samples[start:end], samples[end:])]
        assert level[1] > 30 * level[0] > 0 and level[1] > 10 * level[2] > 0
        assert 0.2 < np.abs(samples).max() <= 1


def test_noise_has_the_wanted_ratio(tmp_path):
    speakers = make_speakers(VARIANTS["train"], ("en-us",), 10)
    task = Task(tmp_path / "clean.wav", "travel", ["hello", "oslo"], speakers[0], 5, None, speakers)
    for seed in range(6):  # meets each kind of noise
        audio = []
        for snr in (None, 10.0):
            utterance = speak(task._replace(seed=seed, snr=snr, wav=tmp_path / f"{seed}{snr}.wav"))
            with wave.open(str(tmp_path / f"{seed}{snr}.wav")) as file:
                audio.append(np.frombuffer(file.readframes(-1), np.int16) / 32768)
        clean, noisy = audio
        speech = clean[round(utterance.words[0].start * 16000) : round(utterance.words[-1].end * 16000)]
        noisy = noisy * (clean @ clean) / (clean @ noisy)  # it was scaled down if it was too loud
        assert 10 * np.log10(np.mean(speech**2) / np.mean((noisy - clean) ** 2)) == pytest.approx(10, abs=1.5)


def test_vocabulary_without_homophones():
    assert 300 <= len(vocabulary()) <= 500
    for accent in ("en-us", "en-gb"):
        lexicon = espeak.lexicon(vocabulary(), accent)
        assert all(lexicon.values())
        same = {phones: word for word, phones in lexicon.items()}
        assert not [(word, same[phones]) for word, phones in lexicon.items() if same[phones] != word]


@pytest.mark.parametrize("domain", DOMAINS)
def test_domains_have_entropy(domain):
    rng = random.Random(0)
    drawn = [tuple(sample_sentence(domain, rng)) for _ in range(2000)]
    assert len(set(drawn)) > 1000
    assert {word for sentence in drawn for word in sentence} <= set(vocabulary())
    assert max(map(len, drawn)) <= 16


def test_phones_in_time_are_those_of_the_lexicon():
    """But for what neighbours change: "the" before a vowel, linking r, flaps."""
    rng = random.Random(1)
    lexicons = {accent: espeak.lexicon(vocabulary(), accent) for accent in ("en-us", "en-gb")}
    agree = total = 0
    for speaker in make_speakers(VARIANTS["train"], ("en-us", "en-gb"), 40):
        speech = espeak.synthesise(sample_sentence("random", rng), speaker.voice)
        lexicon = lexicons[speaker.voice.accent]
        assert {phone.symbol for phone in speech.phones} <= set().union(*lexicon.values())
        for word in speech.words:
            spoken = tuple(p.symbol for p in speech.phones if word.start <= p.start < word.end)
            agree += spoken == lexicon[word.symbol]
            total += 1
    assert agree / total > 0.9


def test_word_pairs_stay_apart():
    words = "out of the oven we should have been in the garage".split()
    for accent in espeak.ACCENTS:
        assert [word.symbol for word in espeak.synthesise(words, espeak.Voice(accent)).words] == words


def test_phones_of_a_word():
    assert espeak.phones("light") == ("l", "aɪ", "t")
    assert espeak.phones("a") == ("eɪ",)  # the letter, not the article
    assert espeak.phones("car", "en-gb") != espeak.phones("car", "en-us")


def test_synthesis_has_no_history():
    for variant in ("f2", "m3", "klatt4", "adam", "Marco"):  # echo, flutter and both synthesisers
        voice = espeak.Voice("en-us", variant)
        first = espeak.synthesise(["hello", "tokyo"], voice).samples
        espeak.synthesise(["good", "morning"], espeak.Voice("en-gb", "f5"))
        assert np.array_equal(espeak.synthesise(["hello", "tokyo"], voice).samples, first)


def test_missing_wheel(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match="pip install espeakng-loader"):
        mini.prepare(tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option, message",
    [
        ({"domains": ["sports"]}, "--domains: no domain sports; there are smart_home"),
        ({"accents": ["fr"]}, "--accents: no accent fr; there are en-us"),
        ({"hours": -1}, "--hours -1"),
        ({"voices": 0}, "--voices 0"),
        ({"domains": []}, "--domains"),
        ({"random_share": 1.5}, "--random_share 1.5: must be between 0 and 1"),
    ],
)
def test_wrong_options(tmp_path, option, message):
    with pytest.raises(InputError, match=message):
        mini.prepare(tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_unknown_voice():
    with pytest.raises(InputError, match="variant nobody"):
        espeak.synthesise(["hello"], espeak.Voice("en-us", "nobody"))


def test_unwritable_audio(tmp_path):
    (tmp_path / "audio").touch()  # a file where a folder should be
    speakers = make_speakers(VARIANTS["train"], ("en-us",), 1)
    task = Task(tmp_path / "audio" / "a.wav", "travel", ["hello"], speakers[0], 0, None, speakers)
    with pytest.raises(InputError, match="cannot be written"):
        speak(task)
