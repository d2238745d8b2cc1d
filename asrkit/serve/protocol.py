"""The messages of the protocol that README.md describes: strict in what comes in, plain in what goes out.

A client sends `start`, then audio, then `stop`; the server answers with `ready`, `partial`, `final`, `error`, `closed`.
"""

import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from asrkit.types import Hypothesis, NBest, Word

SAMPLE_FORMATS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
RATES = range(8000, 192_001)  # Hz
TEXT_CHARACTERS = 4096  # longest message of text
NAME_CHARACTERS = 200


class Refused(Exception):
    """The server takes no more from a client: a code for programs and one line for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def malformed(message: str) -> Refused:
    return Refused("malformed", message)


# From the client


@dataclass(frozen=True)
class Start:
    """What the audio will be."""

    rate: int
    """Samples a second (Hz) of the audio that follows; one channel."""
    format: str = "s16le"
    name: str = ""
    token: str = ""

    def __post_init__(self) -> None:
        if self.rate not in RATES:
            raise malformed(f"start: rate must be from {RATES[0]} to {RATES[-1]} Hz")
        if self.format not in SAMPLE_FORMATS:
            raise malformed(f"start: format must be one of {', '.join(SAMPLE_FORMATS)}")
        if len(self.name) > NAME_CHARACTERS or not self.name.isprintable():
            raise malformed(f"start: name must be at most {NAME_CHARACTERS} printable characters")


@dataclass(frozen=True)
class Stop:
    """No more audio comes."""


COMMANDS = {"start": Start, "stop": Stop}
JSON_TYPES = {int: "a whole number", str: "a string"}


def read_command(message: str) -> Start | Stop:
    """Read a message of text.

    Raises:
        Refused: "malformed", with a line that names what is wrong.
    """
    if len(message) > TEXT_CHARACTERS:
        raise malformed(f"a text message of more than {TEXT_CHARACTERS} characters")
    try:
        values = json.loads(message)
    except (ValueError, RecursionError):
        raise malformed("a text message that is not JSON") from None
    if not isinstance(values, dict) or not isinstance(values.get("type"), str) or values["type"] not in COMMANDS:
        raise malformed(f'a text message is an object whose "type" is one of {", ".join(COMMANDS)}')
    kind = values.pop("type")
    types = {field.name: field.type for field in fields(COMMANDS[kind])}
    for key, value in values.items():
        if key not in types:
            raise malformed(f"{kind}: unknown key {key[:40]!r}")
        if type(value) is not types[key]:  # a bool is an int to isinstance
            raise malformed(f"{kind}: {key} must be {JSON_TYPES[types[key]]}")
    if kind == "start" and "rate" not in values:
        raise malformed("start: rate is missing")
    return COMMANDS[kind](**values)


def read_samples(message: bytes, format: str) -> np.ndarray:
    """Return the samples (S,), float32 in [-1, 1], of a binary message.

    Raises:
        Refused: "malformed": no samples, part of one, or one that is not a number.
    """
    dtype = SAMPLE_FORMATS[format]
    if not message or len(message) % dtype.itemsize:
        raise malformed(f"an audio message of {len(message)} bytes: samples have {dtype.itemsize}")
    samples = np.frombuffer(message, dtype)
    if dtype.kind == "i":
        return samples / np.float32(32768)
    if not np.isfinite(samples).all():
        raise malformed("audio with samples that are not finite numbers")
    return samples.clip(-1, 1)


# To the client


def ready(name: str, seconds: float, idle: float, message_bytes: int) -> str:
    limits = {"seconds": seconds, "idle": idle, "message_bytes": message_bytes}
    return _message("ready", name=name, limits=limits)


def partial(nbest: NBest) -> str:
    return _message("partial", **_transcript(nbest))


def final(nbest: NBest, segment: int) -> str:
    return _message("final", segment=segment, **_transcript(nbest))


def error(refused: Refused) -> str:
    return _message("error", code=refused.code, message=str(refused))


def closed(name: str, duration: float, segments: int) -> str:
    return _message("closed", name=name, duration=round(duration, 3), segments=segments)


def _message(kind: str, **values: Any) -> str:
    return json.dumps({"type": kind, **values}, ensure_ascii=False)


def _transcript(nbest: NBest) -> dict[str, Any]:
    best = nbest.hyps[0] if nbest.hyps else Hypothesis((), (), (), 0.0)
    words = [_word(word) for word in best.words]
    return {"duration": round(nbest.duration, 3), "text": best.text, "words": words}


def _word(word: Word) -> dict[str, Any]:
    confidence = None if word.confidence is None else round(word.confidence, 3)
    return {"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3), "confidence": confidence}
