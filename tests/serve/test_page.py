"""The page in a real browser: words appear, can be heard and are downloaded; what goes wrong is shown."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

pytest.importorskip("websockets", reason="websockets is not installed (extra 'serve')")

from browser import CHROMIUM, Page, browser
from client import serving

from asrkit.data.formats import json_text, srt
from asrkit.search.recogniser import Recogniser, load
from asrkit.search.streaming import Endpoint, decode_streams
from asrkit.serve.server import Limits, Server
from asrkit.types import NBest

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian package chromium)")
WORDS = "[...document.querySelectorAll('.word')]"
SEGMENTS = Endpoint(longest=2.0, short_pause=0.0)  # the tiny model hears something in silence, too
LISTEN = """
    window.heard = [];
    const source = AudioBufferSourceNode.prototype, { start } = source;
    source.start = function () {
      heard.push([document.querySelector(".playing").textContent, this.buffer.duration]);
      start.call(this);
    }"""
IDLE = "document.body.dataset.state === 'idle'"


@pytest.fixture(scope="module")
def recogniser(experiment) -> Recogniser:
    """The tiny model, with confidences of all levels."""
    recogniser = load(experiment, beam=1)
    plain = recogniser.nbest

    def nbest(*arguments, **options) -> NBest:
        result = plain(*arguments, **options)
        words = tuple(replace(w, confidence=(0.3, 0.7, 0.95)[i % 3]) for i, w in enumerate(result.hyps[0].words))
        return replace(result, hyps=(replace(result.hyps[0], words=words),))

    recogniser.nbest = nbest
    return recogniser


@pytest.fixture(scope="module")
def talk(tones, tmp_path_factory) -> Path:
    """A file of 5 seconds."""
    samples = tones(5.0, 1)
    file = tmp_path_factory.mktemp("audio") / "my talk.wav"
    soundfile.write(file, (32767 * samples).short().numpy(), 16000)
    return file


def expected(recogniser: Recogniser, file: Path) -> list[NBest]:
    samples, _ = soundfile.read(file, dtype="float32")
    stream = recogniser.stream(file.name, endpoint=SEGMENTS)
    stream.accept(torch.from_numpy(samples))
    stream.close()
    while stream.ready:
        decode_streams([stream])
    return stream.segments


def browse(
    server: Server, visit: Callable[[Page, str], Awaitable], folder: Path, *options: str, fragment: str = ""
) -> None:
    """Serve, open the page in a browser and let `visit(page, address)` use it; the browser must have no complaints."""

    async def scenario() -> None:
        async with serving(server) as address, browser(folder / "profile", *options) as page:
            address = address.replace("ws://", "http://").removesuffix("stream")
            await page.open(address + fragment)
            await visit(page, address)
            assert page.problems == []

    asyncio.run(scenario())


def test_a_file(recogniser, talk, tmp_path):
    segments = expected(recogniser, talk)
    words = [word for segment in segments for word in segment.hyps[0].words]
    downloads = tmp_path / "downloads"

    async def download(page: Page, kind: str) -> str:
        await page.click(f"#save-{kind}")
        file = downloads / f"my-talk.{kind}"
        for _ in range(200):
            if file.exists() and not list(downloads.glob("*.crdownload")):
                return file.read_text(encoding="utf-8")
            await asyncio.sleep(0.02)
        raise TimeoutError(f"{file} was never made")

    async def visit(page: Page, address: str) -> None:
        await page.choose("#file", talk)
        await page.until(f"{WORDS}.length === {len(words)} && {IDLE}")
        assert await page.value(f"{WORDS}.map(w => w.textContent)") == [word.text for word in words]
        assert await page.value("document.querySelectorAll('.segment').length") == len(segments) > 1
        assert await page.value("document.querySelector('#problem').hidden")
        assert await page.value("document.querySelector('#status').textContent") == f"{len(words)} words in 0:05"

        # coloured by confidence, with a legend
        kinds = await page.value(f"{WORDS}.map(w => w.classList[1])")
        assert kinds[:3] == ["unsure", "likely", "sure"]
        assert not await page.value("document.querySelector('#legend').hidden")
        colours = await page.value(f"{WORDS}.slice(0, 3).map(w => getComputedStyle(w).color)")
        assert len(set(colours)) == 3
        assert await page.value(f"{WORDS}[0].title") == f"30 % sure, {words[0].start:.2f} to {words[0].end:.2f} s"

        # a click plays the word, and only that
        await page.value(LISTEN)
        await page.click(".segment:last-child .word")
        first, second = segments[-1].hyps[0].words[:2]
        end = first.end + min(max(second.start - first.end, 0.1), 0.4)
        (heard,) = await page.until("heard.length && heard")
        assert heard == [first.text, pytest.approx(end - first.start + 0.15, abs=1e-3)]
        await page.until("!document.querySelector('.playing')")

        # so does the keyboard
        await page.key("End")
        assert await page.value(f"{WORDS}.indexOf(document.activeElement)") == len(words) - 1
        await page.key("ArrowLeft")
        await page.key("Enter")
        assert (await page.until("heard[1]"))[0] == words[-2].text

        await page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        assert await download(page, "txt") == "".join(f"{segment.hyps[0].text}\n" for segment in segments)
        rounded = tuple(replace(word, start=round(word.start, 3), end=round(word.end, 3)) for word in words)
        whole = NBest(talk.name, 5.0, (replace(segments[0].hyps[0], words=rounded),))
        assert await download(page, "srt") == srt(whole)
        assert json.loads(await download(page, "json")) == json.loads(json_text(whole))

        # another file takes its place
        await page.choose("#file", talk)
        await page.until(f"{IDLE} && document.querySelector('#status').textContent.includes('words')")
        assert await page.value(f"{WORDS}.length") == len(words)

        # one that holds no sound is named
        (tmp_path / "notes.txt").write_text("no sound")
        await page.choose("#file", tmp_path / "notes.txt")
        problem = await page.until("document.querySelector('#problem').textContent")
        assert problem == "“notes.txt” holds no sound that this browser can read."

    browse(Server(recogniser, endpoint=SEGMENTS), visit, tmp_path)


def test_the_microphone(recogniser, talk, tmp_path):
    microphone = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={talk}",
    )

    async def visit(page: Page, address: str) -> None:
        await page.click("#speak")
        await page.until(
            "document.querySelector('#partial').textContent && document.body.dataset.state === 'listening'"
        )
        assert await page.value("document.querySelector('#status').textContent") == "Listening"
        assert await page.value("document.querySelector('#clock').textContent.startsWith('0:0')")
        await page.until(f"{WORDS}.length")  # a pause has ended the first segment
        await page.click("#speak")
        await page.until(IDLE)
        assert await page.value("document.querySelector('#problem').hidden")
        assert await page.value("document.querySelector('#partial').hidden")
        await page.value(LISTEN)
        await page.click(".word")
        await page.until("heard.length")

    browse(Server(recogniser, endpoint=SEGMENTS), visit, tmp_path, *microphone)


def test_what_goes_wrong_is_shown(recogniser, talk, tmp_path):
    """A token, a limit, two recordings at a time, a server that goes away, no microphone."""
    server = Server(recogniser, Limits(seconds=3.0), token="right")

    async def problem(page: Page, part: str) -> None:
        await page.until(f"{IDLE} && document.querySelector('#problem').textContent.includes('{part}')")

    async def visit(page: Page, address: str) -> None:
        await page.choose("#file", talk)
        await problem(page, "asks for a token")
        await page.value("location.hash = '#token=right'")
        await page.choose("#file", talk)
        await problem(page, "no longer recordings")
        assert await page.value(f"{WORDS}.length") > 0
        await page.call("Browser.setPermission", permission={"name": "microphone"}, setting="granted")
        await page.click("#speak")
        await page.until("document.querySelector('#clock').textContent")
        await page.choose("#file", talk)
        await page.until("document.querySelector('#problem').textContent.startsWith('One at a time')")
        for conversation in list(server._conversations):
            conversation._socket.transport.abort()
        await problem(page, "connection to the server was lost")
        await page.call("Browser.setPermission", permission={"name": "microphone"}, setting="denied")
        await page.click("#speak")
        await problem(page, "did not allow")

    browse(server, visit, tmp_path, "--use-fake-device-for-media-stream")
