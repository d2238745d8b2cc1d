"""A web page of one recording that needs nothing else: who spoke when and where, with the sound."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import numpy as np

from asrkit.types import Segment, Tracks

KINDS = {b"fLaC": "audio/flac", b"OggS": "audio/ogg", b"RIFF": "audio/wav", b"ID3": "audio/mpeg"}
UNKNOWN = np.iinfo(np.int16).min  # an azimuth that is not known


def page(
    recording: str,
    segments: Sequence[Segment],
    tracks: Tracks | None = None,
    audio: bytes | str | None = None,
    duration: float | None = None,
) -> str:
    """Return HTML with a timeline of each speaker, the azimuths over time, and a player that follows.

    Speakers can be given other names in it, and the segments downloaded as RTTM and SegLST. Nothing is loaded from
    elsewhere, and no text of the arguments can become markup or code.

    Args:
        recording: its name, the title.
        segments: who spoke when, of this recording, in any order.
        tracks: where the speakers of the segments are.
        audio: a file's content (FLAC, Ogg or WAV; mono at 16 kHz is enough), which is put into the page, or the path
            of a file relative to the page: better when it has tens of megabytes.
        duration: seconds of the recording; to the end of the last segment by default.
    """
    last = max((segment.end for segment in segments), default=0.0)
    data = {
        "recording": recording,
        "duration": round(max(duration or 0.0, last, 0.001), 3),
        "step": tracks.step if tracks else None,
        "audio": quote(audio) if isinstance(audio, str) else None,
        "kind": _kind(audio) if isinstance(audio, bytes) else None,
        "speakers": [_speaker(name, own, tracks) for name, own in _by_speaker(segments).items()],
    }
    style, script = (_read(f"page.{suffix}") for suffix in ("css", "js"))
    parts = {
        "title": html.escape(recording),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "sound": base64.b64encode(audio).decode() if isinstance(audio, bytes) else "",
    }
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], _read("page.html"))  # one pass: parts are not searched


# Details


def _by_speaker(segments: Sequence[Segment]) -> dict[str, list[Segment]]:
    """Return the segments of each speaker in order of time; the speakers by their first."""
    groups: dict[str, list[Segment]] = {}
    for segment in sorted(segments, key=lambda segment: (segment.start, segment.end)):
        groups.setdefault(segment.speaker, []).append(segment)
    return groups


def _speaker(name: str, segments: list[Segment], tracks: Tracks | None) -> dict[str, Any]:
    return {
        "name": name,
        "starts": [round(segment.start, 3) for segment in segments],
        "ends": [round(segment.end, 3) for segment in segments],
        "texts": [segment.text for segment in segments] if any(segment.text for segment in segments) else None,
        "track": _packed(tracks.azimuths[name]) if tracks and name in tracks.azimuths else None,
    }


def _packed(azimuths: Sequence[float]) -> str:
    """Return radians as tenths of degrees, 16 bits each, in base64: hours of a track are a few hundred kilobytes."""
    degrees = (np.degrees(np.asarray(azimuths, float)) + 180) % 360 - 180
    tenths = np.where(np.isnan(degrees), UNKNOWN, np.round(10 * degrees)).astype("<i2")
    return base64.b64encode(tenths.tobytes()).decode()


def _kind(audio: bytes) -> str:
    return next((kind for start, kind in KINDS.items() if audio.startswith(start)), "application/octet-stream")


def _policy(style: str, script: str) -> str:
    """Return what the page may do: run this script in this style and play sound, and nothing else."""
    hashes = (
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in (style, script)
    )
    styles, scripts = hashes
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; media-src 'self' blob: file:; "
        "base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return files("asrkit.diarisation").joinpath("web", name).read_text(encoding="utf-8")
