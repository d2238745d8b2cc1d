"""The server from end to end, in one process: what clients get, and what bad ones cannot do to the others."""

import asyncio
import gc
import http.client
import json
import random
import re
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("websockets", reason="websockets is not installed (extra 'serve')")

import torch
from client import dial, pcm, replies, say, serving, transcribe, words
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asrkit.search.recogniser import Recogniser, load
from asrkit.search.streaming import Endpoint, decode_streams
from asrkit.serve import decoding
from asrkit.serve import server as module
from asrkit.serve.server import Limits, Outbox, Server
from asrkit.types import Hypothesis, NBest, Word


@pytest.fixture(scope="module")
def recogniser(experiment) -> Recogniser:
    return load(experiment, beam=2)


@pytest.fixture(scope="module")
def speech(tones) -> np.ndarray:
    """Six seconds of tones and silence, as 16-bit samples hold them."""
    samples = torch.cat([tones(2.5, 1), torch.zeros(24000), tones(2.0, 2)]).numpy()
    return np.frombuffer(pcm(samples), "<i2") / np.float32(32768)


def expected(recogniser: Recogniser, samples: np.ndarray) -> list[tuple[str, float]]:
    """The words and starts that the recogniser finds without a server."""
    stream = recogniser.stream(endpoint=Endpoint())
    stream.accept(torch.from_numpy(samples))
    stream.close()
    while stream.ready:
        decode_streams([stream])
    return [(word.text, round(word.start, 3)) for segment in stream.segments for word in segment.hyps[0].words]


def codes(messages: list[dict]) -> list[str]:
    return [message["code"] for message in messages if message["type"] == "error"]


# What clients get


def test_one_stream(recogniser, speech):
    async def scenario():
        async with serving(Server(recogniser)) as address:
            return await transcribe(address, speech, pause=0.01, name="talk")

    messages = asyncio.run(scenario())
    kinds = [message["type"] for message in messages]
    assert kinds[0] == "ready" and kinds[-1] == "closed" and set(kinds[1:-1]) == {"partial", "final"}
    limits = {"seconds": 3600.0, "idle": 30.0, "message_bytes": 262144}
    assert messages[0] == {"type": "ready", "name": "talk", "limits": limits}
    finals = [message for message in messages if message["type"] == "final"]
    assert words(messages) == expected(recogniser, speech) != []
    assert [message["segment"] for message in finals] == list(range(len(finals)))
    assert finals[-1]["duration"] == pytest.approx(len(speech) / 16000, abs=1e-3)
    closed = {"type": "closed", "name": "talk", "duration": round(len(speech) / 16000, 3), "segments": len(finals)}
    assert messages[-1] == closed


def test_many_streams_of_all_formats_and_rates(recogniser, speech):
    """Rates change samples a little, so only those of the model are compared word by word."""

    async def scenario():
        async with serving(Server(recogniser)) as address:
            same = [transcribe(address, speech, block=block) for block in (160, 777, 1600, 40000)]
            same.append(transcribe(address, speech, format="f32le"))
            others = [
                transcribe(address, np.interp(np.arange(0, 6, 1 / rate), np.arange(0, 6, 1 / 16000), speech), rate)
                for rate in (8000, 11025, 44100, 48000, 192000)
            ]
            return await asyncio.gather(*same), await asyncio.gather(*others)

    same, others = asyncio.run(scenario())
    for messages in same:
        assert words(messages) == expected(recogniser, speech)
    for messages in others:
        assert messages[-1]["type"] == "closed" and messages[-1]["duration"] == 6.0
        assert words(messages) and max(start for _, start in words(messages)) <= 6.0


def test_no_audio_and_little_audio(recogniser):
    async def scenario():
        async with serving(Server(recogniser)) as address:
            return [await transcribe(address, np.zeros(size), rate) for size in (0, 1, 500) for rate in (16000, 8000)]

    for messages in asyncio.run(scenario()):
        assert messages[-1]["type"] == "closed" and codes(messages) == []
        assert messages[-1]["duration"] > 0.001 or words(messages) == []


# Refusals


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([b"12"], "malformed"),
        (['{"type": "stop"}'], "malformed"),
        (['{"type": "start", "rate": 100}'], "malformed"),
        (['{"type": "start", "rate": 16000}', b"123"], "malformed"),
        (['{"type": "start", "rate": 16000}'] * 2, "malformed"),
        (['{"type": "start", "rate": 16000}', "stop"], "malformed"),
        (['{"type": "start", "rate": 16000, "token": "wrong"}'], "token"),
    ],
)
def test_a_refusal_is_one_message_and_the_end(recogniser, sent, code):
    async def scenario():
        async with serving(Server(recogniser, token="" if code == "malformed" else "right")) as address:
            async with dial(address) as socket:
                for message in sent:
                    await socket.send(message)
                return await replies(socket), socket.close_code

    messages, close_code = asyncio.run(scenario())
    assert codes(messages) == [code] and close_code == 1008
    if messages[0]["type"] == "ready":  # what was heard is decoded all the same
        assert messages[-1]["type"] == "closed"


def test_what_was_heard_before_a_mistake_is_decoded(recogniser, speech):
    async def scenario():
        async with serving(Server(recogniser)) as address, dial(address) as socket:
            await say(socket, "start", rate=16000)
            for message in (pcm(speech), "nonsense", pcm(speech), '{"type": "stop"}'):
                await socket.send(message)
            return await replies(socket)

    messages = asyncio.run(scenario())
    assert codes(messages) == ["malformed"]
    assert words(messages) == expected(recogniser, np.frombuffer(pcm(speech), "<i2") / np.float32(32768))


def test_a_token(recogniser, speech):
    async def scenario():
        async with serving(Server(recogniser, token="wörd")) as address:
            return [await transcribe(address, speech[:8000], **key) for key in ({"token": "wörd"}, {})]

    right, wrong = asyncio.run(scenario())
    assert right[-1]["type"] == "closed"
    assert [message["type"] for message in wrong] == ["error"] and codes(wrong) == ["token"]


def test_limits_of_streams_time_and_idleness(recogniser, speech):
    limits = Limits(streams=2, seconds=2.0, idle=0.6)

    async def scenario():
        async with serving(Server(recogniser, limits)) as address:
            long = asyncio.create_task(transcribe(address, speech))
            async with dial(address) as quiet:
                await say(quiet, "start", rate=16000)
                await quiet.send(pcm(speech[:8000]))
                await quiet.recv()
                async with dial(address) as third, dial(address) as fourth:
                    crowded = [codes(await replies(third)), codes(await replies(fourth))]
                idle = await replies(quiet)
            async with dial(address) as silent:
                never_started = await replies(silent)
            return await long, crowded, idle, never_started

    long, crowded, idle, never_started = asyncio.run(scenario())
    assert codes(long) == ["too_long"]
    assert long[-1]["duration"] == 2.0 and words(long) == expected(recogniser, speech[:32000])
    assert ["busy"] in crowded
    assert codes(idle) == ["idle"] and idle[-1]["type"] == "closed" and idle[-1]["duration"] == 0.5
    assert codes(never_started) == ["idle"]


def test_shutdown_gives_everybody_what_was_heard(recogniser, speech):
    async def scenario():
        async with serving(Server(recogniser)) as address:
            sockets = [await dial(address) for _ in range(3)]
            for socket in sockets[:2]:
                await say(socket, "start", rate=16000)
                await socket.send(pcm(speech))
                assert json.loads(await socket.recv())["type"] == "ready"
                await socket.recv()  # a first result
        return [await replies(socket) for socket in sockets], [socket.close_code for socket in sockets], address

    began = time.monotonic()
    (first, second, never_started), close_codes, address = asyncio.run(scenario())
    assert time.monotonic() - began < module.SHUTDOWN_SECONDS
    for messages in (first, second):
        assert codes(messages) == ["shutdown"] and messages[-1]["type"] == "closed"
        assert words(messages)[-1] == expected(recogniser, speech)[-1]
    assert [message["type"] for message in never_started] == ["error"]
    assert close_codes == [1008] * 3


def test_a_defect_ends_the_streams_it_hits_and_no_others(recogniser, speech, monkeypatch, capfd):
    def decode(streams):
        if any(stream.name == "poison" for stream in streams):
            raise RuntimeError("a defect")
        return decode_streams(streams)

    monkeypatch.setattr(decoding, "decode_streams", decode)

    async def scenario():
        async with serving(Server(recogniser)) as address:
            poisoned = await transcribe(address, speech, name="poison")
            return poisoned, await transcribe(address, speech)

    poisoned, other = asyncio.run(scenario())
    assert codes(poisoned) == ["internal"]
    assert words(other) == expected(recogniser, speech)
    assert "RuntimeError: a defect" in capfd.readouterr().err


# Hostile and unlucky clients beside a good one


def nonsense(seed: int) -> list[str | bytes]:
    """Messages that break the protocol somewhere, perhaps after a good start."""
    draw = random.Random(seed)
    start = json.dumps({"type": "start", "rate": draw.choice([8000, 16000, 44100])})
    bad_rate = json.dumps({"type": "start", "rate": draw.choice([-1, 0, 7999, 10**9, 1e3, "16000", None, [], {}])})
    garbage = "".join(chr(draw.randrange(32, 0x2FFF)) for _ in range(draw.randrange(200)))
    odd = draw.randbytes(2 * draw.randrange(1000) + 1)
    truncated = start[: draw.randrange(len(start))]
    infinite = [json.dumps({"type": "start", "rate": 16000, "format": "f32le"}), b"\x00\x00\x80\x7f" * 9]
    return draw.choice(
        [
            [bad_rate],
            [garbage],
            [odd],
            [truncated],
            [start, odd],
            [start, garbage],
            [start, start],
            infinite,
            ["[" * 999],
        ]
    )


def test_hostile_clients_do_not_harm_the_others(recogniser, speech):
    long = np.tile(speech, 4)

    async def malformed(address: str, seed: int) -> list[str]:
        async with dial(address) as socket:
            for message in nonsense(seed):
                await socket.send(message)
            return codes(await replies(socket))

    async def vanish(address: str, seed: int) -> None:
        """Break off in the middle, without a word to the server."""
        socket = await dial(address)
        if seed % 3:
            await say(socket, "start", rate=16000)
            await socket.send(pcm(speech[: 16000 * (seed % 5)] if seed % 5 else speech[:1]))
        if seed % 2:
            await asyncio.sleep(0.01)
        socket.transport.abort()

    async def oversized(address: str) -> int:
        async with dial(address) as socket:
            await say(socket, "start", rate=16000)
            with suppress(ConnectionClosed):
                await socket.send(bytes(1 << 20))
            await replies(socket)
            return socket.close_code

    async def handshake(address: str, request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.split(":")[2].split("/")[0]))
        writer.write(request)
        await asyncio.wait_for(reader.read(), 5)
        writer.close()

    async def round(address: str, server: Server, seeds: range) -> None:
        for start in range(seeds.start, seeds.stop, 20):
            found = await asyncio.gather(*(malformed(address, seed) for seed in range(start, start + 20)))
            assert found == [["malformed"]] * 20
        await asyncio.gather(*(vanish(address, seed) for seed in range(40)))
        assert await asyncio.gather(*(oversized(address) for _ in range(5))) == [1009] * 5
        await handshake(address, b"\x16\x03\x01 not HTTP\r\n\r\n")
        await handshake(address, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")

    async def scenario():
        server = Server(recogniser, Limits(streams=64))
        async with serving(server) as address:
            good = asyncio.create_task(transcribe(address, long, pause=0.02))
            await round(address, server, range(0, 500))
            gc.collect()
            before = resident()
            await round(address, server, range(500, 1000))
            messages = await good
            assert await empty(server)
            gc.collect()
            return messages, resident() - before

    messages, growth = asyncio.run(scenario())
    assert words(messages) == expected(recogniser, long) and codes(messages) == []
    assert growth < 8 << 20


async def empty(server: Server) -> bool:
    """Whether the server forgets all its clients within five seconds."""
    for _ in range(100):
        if not server._conversations and not server._decoder._feeds:
            return True
        await asyncio.sleep(0.05)
    return False


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(("messages", "seconds"), [(30, 30.0), (10**6, 0.3)])
def test_a_client_that_does_not_read_is_dropped(recogniser, speech, monkeypatch, messages, seconds):
    """Long results fill the buffers of the network; then the partial ones are replaced and the final ones wait."""
    long = "word " * 20000

    def many_segments(streams):
        decode_streams(streams)
        for stream in streams:
            if stream.name == "slow":
                stream.segments = [NBest("", 1.0, (Hypothesis((), (), (Word(long, 0.0, 1.0),), 0.0),))] * 20

    monkeypatch.setattr(decoding, "decode_streams", many_segments)
    monkeypatch.setattr(module, "WAITING_MESSAGES", messages)
    monkeypatch.setattr(module, "READ_SECONDS", seconds)

    async def scenario():
        server = Server(recogniser)
        async with serving(server) as address:
            slow = await dial(address, max_queue=1)
            await say(slow, "start", rate=16000, name="slow")
            with suppress(ConnectionClosed):
                for i in range(0, len(speech), 16000):
                    await slow.send(pcm(speech[i : i + 16000]))
                    await asyncio.sleep(0.1)
            assert await empty(server)
            monkeypatch.undo()
            return await transcribe(address, speech)

    messages = asyncio.run(scenario())
    assert words(messages) == expected(recogniser, speech)


def test_the_outbox_keeps_results_and_the_latest_partial_one():
    class Socket:
        def __init__(self):
            self.got, self.open = [], asyncio.Event()

        async def send(self, message):
            await self.open.wait()
            self.got.append(message)

    async def scenario():
        outbox, socket = Outbox(), Socket()
        sending = asyncio.create_task(outbox.send(socket))
        outbox.put_partial("a")
        await asyncio.sleep(0)  # on its way
        for partial in ("b", "c"):
            outbox.put_partial(partial)
        outbox.put("A")
        for partial in ("d", "e"):
            outbox.put_partial(partial)
        socket.open.set()
        await asyncio.sleep(0.01)
        outbox.put("B")
        outbox.put_partial("f")
        outbox.put("C")
        outbox.close()
        await sending
        return socket.got

    assert asyncio.run(scenario()) == ["a", "A", "e", "B", "C"]


def test_a_client_far_ahead_of_the_decoder_is_held_back(recogniser, speech, monkeypatch):
    """Its audio waits at its own end, not in the server's memory."""
    minute = np.tile(speech, 6)
    most = 0.0

    def slowly(streams):
        nonlocal most
        most = max(most, *(sum(map(len, feed.waiting)) / feed.rate for feed in server._decoder._feeds))
        time.sleep(0.003)
        return decode_streams(streams)

    monkeypatch.setattr(decoding, "decode_streams", slowly)
    server = Server(recogniser)

    async def scenario():
        async with serving(server) as address:
            return await transcribe(address, minute, block=32000)

    messages = asyncio.run(scenario())
    assert messages[-1]["duration"] == len(minute) / 16000
    assert 2.0 < most <= module.BACKLOG_SECONDS + 2 * 2.0


def test_the_client_of_the_readme(recogniser, speech, tmp_path):
    readme = Path(module.__file__).with_name("README.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    soundfile.write(tmp_path / "a.wav", speech, 16000, subtype="PCM_16")

    async def scenario():
        async with serving(Server(recogniser)) as address:
            code = script.replace("ws://127.0.0.1:8000/stream", address)
            command = (sys.executable, "-c", code, str(tmp_path / "a.wav"))
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            return (await process.communicate())[0].decode(), process.returncode

    printed, status = asyncio.run(scenario())  # a line for each segment
    assert (printed.split(), status) == ([word for word, _ in expected(recogniser, speech)], 0)


# HTTP


def test_the_page_and_its_headers(recogniser):
    async def scenario():
        async with serving(Server(recogniser)) as address:
            port = int(address.split(":")[2].split("/")[0])
            return await asyncio.to_thread(fetch_all, port)

    def fetch_all(port):
        found = {}
        for path in ("/", "/app.js", "/style.css", "/capture.js", "/?a=b", "/none", "/../server.py", "/stream"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            response = connection.getresponse()
            found[path] = (response.status, response.headers, response.read().decode())
        return found

    found = asyncio.run(scenario())
    status = {path: answer[0] for path, answer in found.items()}
    assert [status[path] for path in ("/", "/app.js", "/style.css", "/capture.js", "/?a=b")] == [200] * 5
    assert (status["/none"], status["/../server.py"], status["/stream"]) == (404, 404, 426)
    headers = found["/"][1]
    assert headers["Content-Type"] == "text/html; charset=utf-8" and "server" not in headers
    policy = dict(part.split(maxsplit=1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/", "/style.css", "/app.js", "/capture.js"):  # nothing from elsewhere
        assert re.findall(r"(?:src|href|from|url|import)\W+(?:\w+:)?//", found[path][2]) == []


@pytest.mark.parametrize(
    ("origin", "opens"), [(None, True), ("own", True), ("https://elsewhere.example", False), ("null", False)]
)
def test_only_our_own_page_may_connect(recogniser, origin, opens):
    async def scenario():
        async with serving(Server(recogniser)) as address:
            if origin == "own":
                own = address.replace("ws://", "http://").removesuffix("/stream")
            try:
                async with dial(address, origin=own if origin == "own" else origin) as socket:
                    await say(socket, "start", rate=16000)
                    return json.loads(await socket.recv())["type"]
            except InvalidStatus as error:
                return error.response.status_code

    assert asyncio.run(scenario()) == ("ready" if opens else 403)
