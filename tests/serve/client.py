"""A client of the protocol, as the tests need it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from asrkit.serve.server import Server


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    """Serve at a free port; yields the address of the WebSocket."""
    async with server.listening("127.0.0.1", 0) as port:
        yield f"ws://127.0.0.1:{port}/stream"


def dial(address: str, **options) -> connect:
    return connect(address, compression=None, proxy=None, close_timeout=1, **options)


async def say(socket: ClientConnection, kind: str, **values) -> None:
    await socket.send(json.dumps({"type": kind, **values}))


def pcm(samples: np.ndarray, format: str = "s16le") -> bytes:
    return samples.astype("<f4").tobytes() if format == "f32le" else (samples * 32767).astype("<i2").tobytes()


async def replies(socket: ClientConnection) -> list[dict]:
    """Everything that the server says until it closes."""
    found = []
    with suppress(ConnectionClosed):
        async for message in socket:
            found.append(json.loads(message))
    return found


async def transcribe(
    address: str, samples: np.ndarray, rate: int = 16000, pause: float = 0.0, block: int = 1600, **start
) -> list[dict]:
    """Send samples (S,) block by block and return all replies."""
    async with dial(address) as socket:
        await say(socket, "start", rate=rate, **start)
        listening = asyncio.create_task(replies(socket))
        with suppress(ConnectionClosed):
            for i in range(0, len(samples), block):
                await socket.send(pcm(samples[i : i + block], start.get("format", "s16le")))
                await asyncio.sleep(pause)
            await say(socket, "stop")
        return await listening


def words(messages: list[dict]) -> list[tuple[str, float]]:
    """The words of the final segments, with their starts."""
    return [(word["text"], word["start"]) for m in messages if m["type"] == "final" for word in m["words"]]
