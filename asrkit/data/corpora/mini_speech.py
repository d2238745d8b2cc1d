"""The voices of the corpus `mini`, and one utterance at a time as audio.

Worker processes import this module and no more, so that they start at once.
"""

import random
import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from asrkit.data import espeak
from asrkit.data.corpora.mini_grammar import sample_sentence
from asrkit.errors import InputError

SAMPLING_RATE = 16000

# Variants of espeak-ng that sound human (no robots, no whisper), without near copies: speaking the same phones, any two
# differ by 0.6 or more in log-mel energy (RMS over bands and phones). A variant of an unseen set is in no other set.
VARIANTS = {
    "train": """
        f2 m3 Alicia Alex aunty m1 Andrea Michael f3 john belinda klatt4 f5 Denis Annie Diogo steph Gene shelby m4 anika
        Jacky grandma m5 Marco Mike m6 Nguyen Storm m7 Tweaky adam m8 antonio boris david ed edward edward2 grandpa
        gustave iven iven3 klatt3 marcelo mike2 miguel norbert paul pedro robert sandro travis victor AnxiousAndy
    """.split(),
    "dev": "f4 pablo iven4 Andy".split(),
    "test_unseen": "f1 linda quincy Mario m2 max".split(),
}
_FEMALE = "Alicia Andrea Annie anika aunty belinda f1 f2 f3 f4 f5 grandma linda shelby steph".split()


@dataclass(frozen=True)
class Speaker:
    id: str
    gender: str  # "F" or "M"
    voice: espeak.Voice


def make_speakers(variants: Sequence[str], accents: Sequence[str], number: int) -> list[Speaker]:
    """Take the variants in turn; each speaker has an accent, and a pitch, pitch range and rate of his own."""
    speakers = []
    for index in range(number):
        lap, place = divmod(index, len(variants))
        variant, accent = variants[place], accents[(lap + place) % len(accents)]
        name = f"{variant}-{accent}-{lap // len(accents)}"
        rng = random.Random(name)
        voice = espeak.Voice(accent, variant, rng.randint(35, 65), rng.randint(35, 75), rng.randint(145, 205))
        speakers.append(Speaker(name, "F" if variant in _FEMALE else "M", voice))
    return speakers


class Task(NamedTuple):
    """An utterance to be spoken, with noise at `snr` dB if that is given."""

    wav: Path
    domain: str
    words: list[str]
    speaker: Speaker
    seed: int
    snr: float | None
    babblers: Sequence[Speaker]


class Utterance(NamedTuple):
    """What was written to the audio file: its length in samples, and its words and phones in time."""

    num_samples: int
    words: list[espeak.Interval]
    phones: list[espeak.Interval]


def speak_all(tasks: Sequence[Task]) -> list[Utterance]:
    return [speak(task) for task in tasks]


def speak(task: Task) -> Utterance:
    """Write `task.wav`: 16 bit, 16 kHz, silence around the speech, but never digital zero.

    The same task gives the same bytes.

    Raises:
        InputError: the file cannot be written.
    """
    rng = random.Random(task.seed)
    noise_rng = np.random.default_rng(task.seed)
    samples, words, phones = _synthesise(task.words, task.speaker, rng)
    samples *= 10 ** (-rng.uniform(1, 12) / 20) / np.abs(samples).max()
    power = np.mean(samples**2)
    before, after = round(rng.uniform(0.05, 0.5) * SAMPLING_RATE), round(rng.uniform(0.1, 0.4) * SAMPLING_RATE)
    samples = np.pad(samples, (before, after))
    if task.snr is not None:
        noise = _noise(len(samples), task.babblers, rng, noise_rng)
        samples += noise * np.sqrt(power / np.mean(noise**2) / 10 ** (task.snr / 10))
        samples /= max(1.0, np.abs(samples).max())
    samples += 10 ** (rng.uniform(-85, -70) / 20) * noise_rng.standard_normal(len(samples), np.float32)
    _write_wav(task.wav, samples)
    offset = before / SAMPLING_RATE
    return Utterance(
        len(samples),
        [espeak.Interval(word, start + offset, end + offset) for word, start, end in words],
        [espeak.Interval(phone, start + offset, end + offset) for phone, start, end in phones],
    )


def _write_wav(path: Path, samples: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLING_RATE, len(samples), "NONE", ""))
            file.writeframes(np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _synthesise(words: list[str], speaker: Speaker, rng: random.Random) -> espeak.Speech:
    """Speech at `SAMPLING_RATE` in float32; nobody speaks twice with exactly the same pitch and rate."""
    voice = speaker.voice
    voice = replace(voice, pitch=voice.pitch + rng.randint(-4, 4), rate=round(voice.rate * rng.uniform(0.94, 1.06)))
    speech = espeak.synthesise(words, voice, seed=rng.getrandbits(31))
    return speech._replace(samples=soxr.resample(np.float32(speech.samples), espeak.SAMPLING_RATE, SAMPLING_RATE))


def _noise(length: int, babblers: Sequence[Speaker], rng: random.Random, noise_rng: np.random.Generator) -> np.ndarray:
    """White, pink or babble noise of some power."""
    kind = rng.choice(["white", "pink", "babble"])
    if kind == "babble":
        noise = np.zeros(length, np.float32)
        for speaker in rng.sample(babblers, min(4, len(babblers))):
            talk = _synthesise(sample_sentence("random", rng), speaker, rng).samples
            noise += np.resize(np.roll(talk / talk.std(), rng.randrange(len(talk))), length)
        return noise
    noise = noise_rng.standard_normal(length, np.float32)
    if kind == "pink":  # power falls with 1/f
        noise = np.fft.irfft(np.fft.rfft(noise) / np.sqrt(np.arange(length // 2 + 1) + 1), n=length)
    return noise
