"""`asrkit serve`: recognise speech for web pages and programs, live, over WebSockets.

Usage:
    asrkit serve --model exp/asr                                # then open http://127.0.0.1:8000
    asrkit serve --model exp/asr --host 0.0.0.0 --token-file token.txt --streams 20

The page and the protocol are described in asrkit/serve/README.md.
"""

import asyncio
import ipaddress
import math
import signal
import sys
from pathlib import Path

import torch

from asrkit.cli.main import run
from asrkit.compress.export import use_encoder
from asrkit.errors import InputError
from asrkit.search.recogniser import load
from asrkit.serve.server import Limits, Server


def serve(
    *,
    model: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    beam: int = 4,
    chunk_size: int | None = None,
    compiled: Path | None = None,
    threads: int | None = None,
    streams: int = 64,
    seconds: float = 3600.0,
    idle: float = 30.0,
    message_bytes: int = 262144,
) -> None:
    """Serve a web page to speak or drop a file into, and the WebSocket that it uses, until Ctrl-C or SIGTERM.

    Audio is decoded as it arrives, all streams together. Nothing that clients send is written to disk or logged.

    Args:
        model: experiment directory.
        host: address to listen at; the default one is reached from this machine only.
        port: 0 takes any free one.
        token_file: file with a word that clients must know.
        beam: hypotheses kept by the search; 1 is greedy search.
        chunk_size: encoder frames (40 ms) in a chunk; the model's own by default.
        compiled: what `asrkit export --format c` made of the model, whose encoder then takes the place of the model's
            own, with its chunks: faster, the same to rounding, on one thread.
        threads: processor threads; all by default.
        streams: most clients at a time.
        seconds: longest stream.
        idle: seconds without a message after which a stream ends.
        message_bytes: largest message.
    """
    limits = {"streams": streams, "seconds": seconds, "idle": idle, "message_bytes": message_bytes}
    for name, value in {"beam": beam, "chunk-size": chunk_size, "threads": threads, **limits}.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be positive and finite")
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: must be from 0 to 65535")
    if threads is not None:
        torch.set_num_threads(threads)
    token = _read_token(token_file) if token_file else ""
    if not token and not _is_local(host):
        print(f"warning: everybody who reaches {host} may use this server: no --token-file", file=sys.stderr)
    recogniser = load(model, beam)
    if compiled:
        use_encoder(recogniser, compiled)
    recogniser.stream(chunk_size=chunk_size)  # which may not go with the encoder
    server = Server(recogniser, Limits(**limits), token, chunk_size)
    asyncio.run(_serve(server, host, port, "#token=…" if token else ""))


async def _serve(server: Server, host: str, port: int, fragment: str) -> None:
    """Serve until the first SIGINT or SIGTERM; a second one kills as usual."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        stopped.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with server.listening(host, port) as port:
        name = f"[{host}]" if ":" in host else host
        print(f"listening at http://{name}:{port}/{fragment}", flush=True)
        await stopped.wait()


def _read_token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {getattr(error, 'strerror', 'not UTF-8 text')}") from error
    if not token or not token.isprintable() or " " in token:
        raise InputError(f"{file}: must hold one word, the token")
    return token


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: list[str]) -> None:
    run(serve, argv)
