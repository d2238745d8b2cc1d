"""Speech with exact word and phone times from espeak-ng, called through its C library.

The shared library and its voices come with the `espeakng-loader` wheel; nothing is installed on the system and no
process is started, so one core speaks several hundred times faster than real time. C interface: `speak_lib.h` of
espeak-ng.
"""

import _ctypes
import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asrkit.errors import InputError

SAMPLING_RATE = 22050
ACCENTS = {  # accent: its voice in espeak-ng; a path, where it has no capitals, spares a search of 2 ms
    "en-us": "en-us",
    "en-gb": "gmw/en",
    "en-gb-scotland": "en-gb-scotland",
    "en-gb-x-rp": "en-gb-x-rp",  # Received Pronunciation
    "en-gb-x-gbclan": "en-gb-x-gbclan",  # Lancaster
    "en-gb-x-gbcwmd": "en-gb-x-gbcwmd",  # West Midlands
    "en-us-nyc": "en-us-nyc",  # New York City
    "en-029": "gmw/en-029",  # Caribbean
}

# Named as in speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS, _INITIALIZE_PHONEME_IPA = 1, 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARS_UTF8 = 1
_PHONEMES_IPA = 2
_EVENT_WORD, _EVENT_PHONEME = 1, 7

# Sounds like a space, but keeps espeak-ng from speaking the word pairs of its dictionary ("in the") as one word.
_SEPARATOR = "\N{ZERO WIDTH JOINER}"


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Voice:
    """How a speaker sounds.

    `accent` is one of `ACCENTS`, `variant` the name of a file in espeak-ng's `voices/!v`. `pitch` and `pitch_range` run
    from 0 to 100 around 50, `rate` is in words a minute (80 to 450).
    """

    accent: str = "en-us"
    variant: str = "m3"
    pitch: int = 50
    pitch_range: int = 50
    rate: int = 175


class Interval(NamedTuple):
    """A word or a phone from `start` to `end`, in seconds from the first sample."""

    symbol: str
    start: float
    end: float


class Speech(NamedTuple):
    """`samples` (int16, at `SAMPLING_RATE`) with one interval a word and the phones of all words in order."""

    samples: np.ndarray
    words: list[Interval]
    phones: list[Interval]


def synthesise(words: list[str], voice: Voice, seed: int = 0) -> Speech:
    """Speak `words` (plain lower-case words without digits or punctuation) in one breath.

    The same arguments always give the same samples, in any process and after any history. Phones are IPA symbols
    without stress and tile their word. The closure of a stop belongs to the stop at the beginning of a word, but to the
    phone before it inside a word, because espeak-ng reports the burst. Audio after the last phone is cut off.

    Raises:
        InputError: espeak-ng is not installed, does not know the voice, or does not speak word by word.
    """
    with _engine(seed) as (library, data):
        _set_voice(library, data, voice)
        chunks: list[bytes] = []
        events: list[tuple[int, int, str]] = []  # type, sample, symbol

        def collect(samples, count, event) -> int:
            if count > 0:
                chunks.append(ctypes.string_at(samples, 2 * count))
            for i in range(1_000_000):  # the list ends with an event of type 0
                e = event[i]
                if e.type == 0:
                    return 0
                if e.type in (_EVENT_WORD, _EVENT_PHONEME):
                    symbol = e.id.string.decode() if e.type == _EVENT_PHONEME else ""
                    events.append((e.type, e.sample, symbol))
            return 1

        callback = _Callback(collect)  # must outlive the call
        library.espeak_SetSynthCallback(callback)
        text = _SEPARATOR.join(map(_respell, words)).encode()
        library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
    samples = np.frombuffer(b"".join(chunks), np.int16)
    word_intervals, phone_intervals = _align(words, [*events, (0, len(samples), "")])
    return Speech(samples[: round(word_intervals[-1].end * SAMPLING_RATE)], word_intervals, phone_intervals)


def phones(word: str, accent: str = "en-us") -> tuple[str, ...]:
    """The phones of `word` spoken alone, in the symbols of `synthesise`: `phones("light") == ("l", "aɪ", "t")`."""
    return lexicon([word], accent)[word]


def lexicon(words: Iterable[str], accent: str = "en-us") -> dict[str, tuple[str, ...]]:
    """The `phones` of many words, a hundred times faster than one by one.

    Raises:
        InputError: espeak-ng is not installed, or does not know the accent.
    """
    with _engine() as (library, data):
        _set_voice(library, data, Voice(accent=accent))
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        entries = {}
        for word in words:
            text = ctypes.c_char_p(_respell(word).encode())
            pieces = library.espeak_TextToPhonemes(ctypes.byref(text), _CHARS_UTF8, _PHONEMES_IPA | ord("_") << 8)
            symbols = (_without_stress(piece) for piece in pieces.decode().strip().split("_"))
            entries[word] = tuple(symbol for symbol in symbols if symbol)
        return entries


@contextmanager
def _engine(seed: int = 0) -> Iterator[tuple[ctypes.CDLL, Path]]:
    """A freshly loaded library, and the folder of its voices.

    espeak-ng keeps oscillator phases and echo in static variables that no call resets; loading anew (a millisecond)
    makes each utterance independent of those before it.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise InputError("espeak-ng is not installed: pip install espeakng-loader") from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_PHONEME_IPA
        data = Path(espeakng_loader.get_data_path())
        if library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 200, str(data).encode(), options) != SAMPLING_RATE:
            raise InputError("espeak-ng does not start: pip install --force-reinstall espeakng-loader")
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        ctypes.CDLL(None).srand(seed)  # the breath of the Klatt voices comes from rand()
        yield library, data
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def _set_voice(library: ctypes.CDLL, data: Path, voice: Voice) -> None:
    name = f"{ACCENTS.get(voice.accent)}+{voice.variant}"
    # espeak-ng silently speaks without a variant that it does not have.
    if not (data / "voices" / "!v" / voice.variant).is_file() or library.espeak_SetVoiceByName(name.encode()) != 0:
        raise InputError(f"espeak-ng has no voice of accent {voice.accent} and variant {voice.variant}")
    for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)


def _respell(word: str) -> str:
    return "eh" if word == "a" else word  # "a" is the letter here; espeak-ng would read the article


def _without_stress(symbol: str) -> str:
    return symbol.replace("ˈ", "").replace("ˌ", "")


def _align(words: list[str], events: list[tuple[int, int, str]]) -> tuple[list[Interval], list[Interval]]:
    """Turns events (type, sample, symbol), which mark beginnings, into intervals."""
    groups: list[list[tuple[str, int, int]]] = []  # the phones of each word: symbol, first sample, end
    for (kind, begin, symbol), (_, end, _) in pairwise(events):
        if kind == _EVENT_WORD:
            groups.append([])
            word_begin = begin
        elif symbol:  # a pause has none
            phones_of_word = groups[-1]
            if not phones_of_word and len(groups) > 1:
                begin = word_begin  # closure or glottal stop in front of the first phone
            if phones_of_word and begin == end:  # a final nasal or "l", reported late: it lies in the phone before it
                before, before_begin, _ = phones_of_word.pop()
                begin = (before_begin + end) // 2
                phones_of_word.append((before, before_begin, begin))
            phones_of_word.append((_without_stress(symbol), begin, end))
    if len(groups) != len(words) or not all(groups):
        raise InputError(f"espeak-ng does not speak word by word: {' '.join(words)}")
    intervals = [[Interval(s, begin / SAMPLING_RATE, end / SAMPLING_RATE) for s, begin, end in own] for own in groups]
    words_in_time = [Interval(word, own[0].start, own[-1].end) for word, own in zip(words, intervals, strict=True)]
    return words_in_time, [phone for own in intervals for phone in own]
