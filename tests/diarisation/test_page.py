"""The page of a recording: complete in itself, safe with names from strangers, and usable in a real browser."""

import asyncio
import base64
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import soundfile

from asrkit.data.formats import read_rttm, read_seglst, write_rttm
from asrkit.diarisation.page import page
from asrkit.types import Segment, Tracks

NASTY = '</script><script>document.title = "broken"</script>"\'&<img src=x onerror=alert(1)>{{script}}'
SEGMENTS = [
    Segment("m", 4.0, 6.5, "ann", "later"),
    Segment("m", 0.25, 3.0, "bob", "good morning"),
    Segment("m", 2.0, 5.0, "ann", "<b>first</b>"),
    Segment("m", 8.0, 9.0625, NASTY),
]
TRACKS = Tracks("m", 0.1, {"ann": [3.0, -3.0, math.nan], "bob": [0.5] * 100})


def element(text: str, name: str) -> str:
    """What is in the script element of that id."""
    return re.search(rf'id="{name}">(.*?)</script>', text, re.DOTALL)[1]


def test_data_are_in_order_and_complete():
    data = json.loads(element(page("m", SEGMENTS, TRACKS), "data"))
    assert [speaker["name"] for speaker in data["speakers"]] == ["bob", "ann", NASTY]
    bob, ann, nasty = data["speakers"]
    assert (ann["starts"], ann["ends"], ann["texts"]) == ([2.0, 4.0], [5.0, 6.5], ["<b>first</b>", "later"])
    assert nasty["track"] is None and nasty["texts"] is None
    tenths = np.frombuffer(base64.b64decode(ann["track"]), "<i2").tolist()
    assert tenths == [round(10 * math.degrees(3)), round(10 * math.degrees(-3)), -32768]
    assert data["duration"] == 9.062 and data["step"] == 0.1
    assert json.loads(element(page("m", [], duration=7.0), "data"))["duration"] == 7.0


def test_names_stay_text():
    text = page(NASTY, SEGMENTS, audio=NASTY)
    assert text.count("<script") == text.count("</script") == 3
    assert "<img" not in text and "<b>" not in text
    assert json.loads(element(text, "data"))["audio"] == quote(NASTY)


def test_nothing_is_loaded_from_elsewhere():
    text = page("m", SEGMENTS[:3], TRACKS, b"fLaC")
    assert "://" not in text and not re.search(r"<(link|img|iframe)\b|\bsrc=|@import|url\(", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}';" in policy and policy.startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("sound", "kind"), [(b"fLaC..", "audio/flac"), (b"OggS..", "audio/ogg"), (b"RIFF....WAVE", "audio/wav")]
)
def test_sound_is_embedded(sound, kind):
    text = page("m", SEGMENTS, audio=sound)
    assert base64.b64decode(element(text, "sound")) == sound and json.loads(element(text, "data"))["kind"] == kind


def test_three_hours_make_a_small_page():
    turns = [Segment("m", n, n + 0.9, str(n % 8)) for n in range(3 * 3600)]
    tracks = Tracks("m", 0.1, {str(n): np.zeros(3 * 36000) for n in range(8)})
    assert len(page("m", turns, tracks)) < 4e6


# ---- In a browser ----


def visit(text: str, folder: Path, use: Callable[[Any], Awaitable]) -> None:
    """Open the page from a file and let `use(page)` use it; the browser must have no complaints."""
    pytest.importorskip("websockets", reason="websockets is not installed (extra 'serve')")
    sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
    from browser import CHROMIUM, browser

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian package chromium)")
    (folder / "page.html").write_text(text, encoding="utf-8")

    async def scenario() -> None:
        async with browser(folder / "profile", "--autoplay-policy=no-user-gesture-required") as opened:
            await opened.open((folder / "page.html").as_uri())
            await use(opened)
            assert opened.problems == []

    asyncio.run(scenario())


def silence(seconds: float) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(round(16000 * seconds)), 16000, format="FLAC")
    return out.getvalue()


async def press(opened: Any, key: str) -> None:
    await opened.value(
        f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true}}))"
    )


def test_the_page_in_a_browser(tmp_path):
    async def use(opened) -> None:
        value, until = opened.value, opened.until
        assert await value("document.title") == NASTY
        assert await value("document.querySelector('h1').textContent") == NASTY
        assert await value("document.querySelector('#summary').textContent") == "3 speakers, 4 turns, 0:10"
        names = "[...document.querySelectorAll('#legend input')].map(input => input.value)"
        assert await value(names) == ["bob", "ann", NASTY]
        assert await value("document.querySelectorAll('*').length") < 90

        # each speaker's row has its colour where it speaks and nothing where it is silent
        await until("turns.width > 300 && !drawing")
        pixel = (
            "((x, row) => [...turns.getContext('2d').getImageData(x * turns.width / 10, (row + 0.5) * 40, 1, 1).data])"
        )
        assert (await value(f"{pixel}(1, 0)"))[:3] != (await value(f"{pixel}(5.5, 1)"))[:3]
        assert (await value(f"{pixel}(1, 0)"))[3] == 255 == (await value(f"{pixel}(8.5, 2)"))[3]
        assert (await value(f"{pixel}(5.5, 0)"))[3] == 0 == (await value(f"{pixel}(1.5, 1)"))[3]

        # a click jumps there, the player follows, and those who speak are shown
        await until("audio.duration > 9")
        await opened.click("#azimuths")
        assert await value("position") == pytest.approx(5, abs=0.05)
        await until("Math.abs(audio.currentTime - position) < 0.1")
        await until("document.querySelector('#now').textContent === 'ann: <b>first</b>' || position >= 5")
        await value("seek(2.5)")
        assert await value("document.querySelector('#now').textContent") == "bob: good morningann: <b>first</b>"
        assert await value("[...document.querySelectorAll('.speaking input')].map(i => i.value)") == ["bob", "ann"]

        # the line follows the player, which the keyboard rules
        await press(opened, "ArrowRight")
        assert await value("position") == pytest.approx(7.5)
        await press(opened, "ArrowLeft")
        await press(opened, " ")
        await until("!audio.paused && position > 2.7")
        await press(opened, " ")
        assert await value("audio.paused")
        await press(opened, "Home")
        assert await value("position") == 0

        # zoom is about the position, and moving on shows the next part
        await press(opened, "+")
        await press(opened, "+")
        shown = await value("[view.start, view.end]")
        assert shown[0] == 0 and shown[1] == pytest.approx(10 / 1.6**2)
        await value("seek(9)")
        assert await value("view.start < 9 && view.end >= 9 && view.end <= 10")

        # it can be dragged along, which is no click, and the wheel zooms where the pointer is
        x, y, width = await value(
            "(() => { turns.scrollIntoView(); const { x, y, width } = turns.getBoundingClientRect();"
            "return [x, y + 9, width]; })()"
        )
        mouse = {"y": y, "button": "left", "buttons": 1, "clickCount": 1}
        start, end = await value("[view.start, view.end]")
        await opened.call("Input.dispatchMouseEvent", type="mousePressed", x=x + width / 4, **mouse)
        await opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + width / 2, **mouse)
        await opened.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + width / 2, **mouse)
        assert await value("view.start") == pytest.approx(start - (end - start) / 4, abs=0.02)
        assert await value("position") == 9
        wheel = "new WheelEvent('wheel', {deltaY: -100, ctrlKey: true, cancelable: true})"
        await value(f"turns.dispatchEvent({wheel})")
        assert await value("view.end - view.start") == pytest.approx((end - start) / math.exp(0.5))
        await press(opened, "0")
        assert await value("[view.start, view.end]") == [0, 10]

        # a speaker's new name is everywhere, also in the files
        await value(
            "(() => { const input = document.querySelector('#legend input'); input.value = 'Bob Brown';"
            "input.dispatchEvent(new Event('input')); seek(1); })()"
        )
        assert await value("document.querySelector('#now').textContent") == "Bob Brown: good morning"
        (tmp_path / "page.rttm").write_text(await value("rttm()"), encoding="utf-8")
        (tmp_path / "page.json").write_text(await value("seglst()"), encoding="utf-8")

    visit(page(NASTY, SEGMENTS, TRACKS, silence(10), duration=10), tmp_path, use)
    renamed = [
        Segment(NASTY, s.start, round(s.end, 3), "Bob Brown" if s.speaker == "bob" else s.speaker, s.text)
        for s in sorted(SEGMENTS, key=lambda s: s.start)
    ]
    assert read_seglst(tmp_path / "page.json") == renamed
    write_rttm(renamed, tmp_path / "ours.rttm")
    assert (tmp_path / "page.rttm").read_text() == (tmp_path / "ours.rttm").read_text()
    assert len(read_rttm(tmp_path / "page.rttm")) == 4


def test_sound_beside_the_page_and_sound_that_is_missing(tmp_path):
    (tmp_path / "my talk #1.flac").write_bytes(silence(2))

    async def hear(opened) -> None:
        await opened.until("audio.duration === 2")

    visit(page("m", SEGMENTS, audio="my talk #1.flac"), tmp_path, hear)

    async def miss(opened) -> None:
        await opened.until("!document.querySelector('#problem').hidden")
        assert "no such.flac" in await opened.value("document.querySelector('#problem').textContent")
        opened.problems.clear()  # the browser tells, too

    visit(page("m", SEGMENTS, audio="no such.flac"), tmp_path, miss)


def test_nobody_speaks(tmp_path):
    async def use(opened) -> None:
        assert await opened.value("document.querySelector('#summary').textContent") == "0 speakers, 0 turns, 0:05"
        assert await opened.value("audio.hidden && document.querySelector('#azimuths').offsetHeight === 0")
        await opened.value("seek(3)")
        assert await opened.value("rttm()") == ""

    visit(page("m", [], duration=5), tmp_path, use)
