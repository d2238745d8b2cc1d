"""The protocol: what is taken, and the one line that says why something is not."""

import json

import numpy as np
import pytest

from asrkit.serve import protocol
from asrkit.serve.protocol import Refused, Start, Stop, read_command, read_samples
from asrkit.types import Hypothesis, NBest, Word


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ('{"type": "start", "rate": 16000}', Start(16000)),
        (' {"rate":8000,"type":"start","format":"f32le"} ', Start(8000, "f32le")),
        ('{"type": "start", "rate": 192000, "name": "Besprechung Nº 1", "token": "t"}',
         Start(192000, "s16le", "Besprechung Nº 1", "t")),
        ('{"type": "stop"}', Stop()),
    ],
)  # fmt: skip
def test_commands(message, command):
    assert read_command(message) == command


BAD_COMMANDS = {
    "": "not JSON",
    "hello": "not JSON",
    '{"type": "start", "rate": 16000': "not JSON",
    "[" * 4000: "not JSON",
    "1" * 4096: '"type"',
    '{"type": 1' + "0" * 4000 + "}": '"type"',
    "1" * 4097: "more than 4096 characters",
    "null": '"type"',
    "[]": '"type"',
    "7": '"type"',
    "{}": '"type"',
    '{"type": null}': '"type"',
    '{"type": ["start"], "rate": 16000}': '"type"',
    '{"type": "Start", "rate": 16000}': '"type" is one of start, stop',
    '{"type": "start"}': "rate is missing",
    '{"type": "start", "rate": "16000"}': "rate must be a whole number",
    '{"type": "start", "rate": 16000.0}': "rate must be a whole number",
    '{"type": "start", "rate": true}': "rate must be a whole number",
    '{"type": "start", "rate": NaN}': "rate must be a whole number",
    '{"type": "start", "rate": 0}': "rate must be from 8000 to 192000",
    '{"type": "start", "rate": -16000}': "rate must be from",
    '{"type": "start", "rate": 1' + "0" * 300 + "}": "rate must be from",
    '{"type": "start", "rate": 16000, "format": "mp3"}': "format must be one of s16le, f32le",
    '{"type": "start", "rate": 16000, "format": 16}': "format must be a string",
    '{"type": "start", "rate": 16000, "name": "' + "n" * 201 + '"}': "name must be",
    '{"type": "start", "rate": 16000, "name": "a\\nb"}': "name must be",
    '{"type": "start", "rate": 16000, "name": "\\ud800"}': "name must be",
    '{"type": "start", "rate": 16000, "channels": 2}': "unknown key 'channels'",
    '{"type": "start", "rate": 16000, "' + "k" * 999 + '": 2}': "unknown key 'kkk",
    '{"type": "stop", "rate": 16000}': "unknown key 'rate'",
}


@pytest.mark.parametrize(("message", "line"), BAD_COMMANDS.items(), ids=range(len(BAD_COMMANDS)))
def test_bad_commands_are_one_line(message, line):
    with pytest.raises(Refused) as caught:
        read_command(message)
    assert caught.value.code == "malformed"
    assert line in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_samples():
    assert read_samples(np.array([0, 16384, -32768], "<i2").tobytes(), "s16le").tolist() == [0.0, 0.5, -1.0]
    floats = read_samples(np.array([0.25, -3.0, 1e30], "<f4").tobytes(), "f32le")
    assert floats.tolist() == [0.25, -1.0, 1.0] and floats.dtype == np.float32


@pytest.mark.parametrize(
    ("message", "format", "line"),
    [
        (b"", "s16le", "0 bytes"),
        (b"abc", "s16le", "3 bytes: samples have 2"),
        (b"abcdef", "f32le", "6 bytes: samples have 4"),
        (np.array([0.0, np.nan], "<f4").tobytes(), "f32le", "not finite"),
        (np.array([np.inf], "<f4").tobytes(), "f32le", "not finite"),
    ],
)
def test_bad_samples(message, format, line):
    with pytest.raises(Refused, match=line):
        read_samples(message, format)


def test_replies():
    words = (Word("größer", 0.36000000000000004, 0.7, 0.98765), Word("b", 1.0, 1.04))
    nbest = NBest("n", 1.2, (Hypothesis(("a", "b"), (0.36, 1.0), words, -1.0),))
    transcript = {
        "duration": 1.2,
        "text": "größer b",
        "words": [
            {"text": "größer", "start": 0.36, "end": 0.7, "confidence": 0.988},
            {"text": "b", "start": 1.0, "end": 1.04, "confidence": None},
        ],
    }
    assert json.loads(protocol.partial(nbest)) == {"type": "partial"} | transcript
    assert json.loads(protocol.final(nbest, 3)) == {"type": "final", "segment": 3} | transcript
    nothing = {"duration": 2.0, "text": "", "words": []}
    assert json.loads(protocol.final(NBest("n", 2.0, ()), 0)) == {"type": "final", "segment": 0} | nothing
    assert json.loads(protocol.error(Refused("idle", "why"))) == {"type": "error", "code": "idle", "message": "why"}
