"""Many clients of one server at the speed of speech: lost words, delays, memory and processor time.

Usage:
    python tools/bench/serving.py --model exp/asr --manifest data/test.jsonl.gz    # 50 streams, 10 minutes
    python tools/bench/serving.py --model exp/asr --manifest data/test.jsonl.gz --streams 5 --seconds 20

Each client speaks utterances of the manifest in an order of its own, with pauses of half a second to two seconds, in
messages of 0.1 s. Afterwards each of these streams is decoded once more, alone and without a server: its words must be
those that the client got. The delay of a segment is from when its last audio was spoken to when its words were there;
the lookahead is part of it.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import publish
from torch import Tensor
from websockets.asyncio.client import connect

from asrkit.data.audio import read_cut
from asrkit.data.manifests import load_cuts
from asrkit.progress import progress
from asrkit.scoring.provenance import git_version, machine
from asrkit.search.recogniser import Recogniser, load
from asrkit.search.streaming import Endpoint, decode_streams

MESSAGE_SECONDS = 0.1
PAUSES = (0.5, 2.0)  # seconds between utterances
SAMPLE_SECONDS = 5.0  # between two readings of the server's memory


@dataclass
class Client:
    """One stream: its audio, and what the server said."""

    samples: Tensor  # (S,), 16-bit integers
    texts: list[str] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)  # seconds
    partials: int = 0

    async def talk(self, uri: str, rate: int, wait: float) -> None:
        """Speak all the audio at its speed, after `wait` seconds."""
        await asyncio.sleep(wait)
        async with connect(uri, max_queue=None, ping_timeout=None) as socket:
            await socket.send(json.dumps({"type": "start", "rate": rate}))
            listening = asyncio.create_task(self._listen(socket))
            self._started = time.monotonic()
            for number, block in enumerate(self.samples.split(round(MESSAGE_SECONDS * rate)), start=1):
                await asyncio.sleep(self._started + number * MESSAGE_SECONDS - time.monotonic())
                await socket.send(block.numpy().tobytes())
            await socket.send(json.dumps({"type": "stop"}))
            await listening

    async def _listen(self, socket) -> None:
        async for message in socket:
            reply = json.loads(message)
            if reply["type"] == "error":
                raise SystemExit(f"the server refused a stream: {reply['message']}")
            self.partials += reply["type"] == "partial"
            if reply["type"] == "final":
                self.texts.append(reply["text"])
                self.delays.append(time.monotonic() - self._started - reply["duration"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="experiment directory")
    parser.add_argument("--manifest", type=Path, required=True, help="what is spoken")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=600.0, help="audio of each stream")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, commit and figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table with machine and commit")
    arguments = parser.parse_args()
    recogniser = load(arguments.model)
    rate = recogniser.features.sampling_rate
    utterances = [read_cut(cut, rate) for cut in load_cuts(arguments.manifest)]
    clients = [Client(talk(utterances, arguments.seconds, rate, seed)) for seed in range(arguments.streams)]
    figures = measured(arguments, clients, rate)
    figures |= compared(recogniser, clients)
    report(figures, arguments)
    if figures["streams with other words"]:
        raise SystemExit("serving.py: words differ from those of the streams decoded alone")


def talk(utterances: list[Tensor], seconds: float, rate: int, seed: int) -> Tensor:
    """Return `seconds` of utterances with pauses as 16-bit samples (S,)."""
    draw = random.Random(seed)
    parts: list[Tensor] = []
    while sum(map(len, parts)) < seconds * rate:
        parts += [draw.choice(utterances), torch.zeros(round(draw.uniform(*PAUSES) * rate))]
    return (32767 * torch.cat(parts)[: round(seconds * rate)]).clamp(-32768, 32767).short()


def measured(arguments: argparse.Namespace, clients: list[Client], rate: int) -> dict[str, float]:
    """Start a server, let all clients talk to it, and return what that took."""
    command = [sys.executable, "-m", "asrkit.cli.main", "serve", "--model", str(arguments.model), "--port", "0"]
    command += ["--streams", str(len(clients)), "--threads", str(arguments.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        uri = server.stdout.readline().split()[-1].replace("http:", "ws:") + "stream"
        memory = asyncio.run(_together(clients, uri, rate, server.pid))
        processor_seconds = _processor_seconds(server.pid)
    finally:
        server.terminate()
        server.wait()
    audio = sum(len(client.samples) for client in clients) / rate
    delays = sorted(delay for client in clients for delay in client.delays)
    quarter = len(memory) // 4
    return {
        "streams": len(clients),
        "seconds of each": arguments.seconds,
        "segments": len(delays),
        "partial results": sum(client.partials for client in clients),
        "delay of a segment, median (s)": statistics.median(delays),
        "delay of a segment, 99 of 100 (s)": delays[int(0.99 * len(delays))],
        "delay of a segment, longest (s)": delays[-1],
        "server's processor seconds per second of audio": processor_seconds / audio,
        "server's memory after a quarter (MiB)": max(memory[: quarter + 1]),
        "server's memory, most after that (MiB)": max(memory[quarter:]),
    }


async def _together(clients: list[Client], uri: str, rate: int, pid: int) -> list[float]:
    """Let all clients talk and return the server's memory (MiB) all along."""
    draw, memory = random.Random(0), []

    async def watch() -> None:
        while True:
            memory.append(_resident(pid))
            await asyncio.sleep(SAMPLE_SECONDS)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client.talk(uri, rate, draw.uniform(0, 2)) for client in clients))
    watching.cancel()
    return [*memory, _resident(pid)]


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compared(recogniser: Recogniser, clients: list[Client]) -> dict[str, int]:
    """Decode each stream once more, alone, and count those of which the server had other words."""
    different = words = 0
    for client in progress(clients, "each alone", len(clients), "stream"):
        stream = recogniser.stream(endpoint=Endpoint())
        for block in (client.samples / 32768).split(round(recogniser.features.sampling_rate)):
            stream.accept(block)
            while decode_streams([stream]):
                pass
        alone = stream.finish().hyps[0].text
        words += len(alone.split())
        different += " ".join(filter(None, client.texts)) != alone
    return {"words": words, "streams with other words": different}


def report(figures: dict[str, float], arguments: argparse.Namespace) -> None:
    provenance = {"machine": machine(), "git": git_version(Path(__file__).parent)}
    lines = [f"serving.py at {provenance['git']} on {provenance['machine']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in figures.items()]
    publish(lines, {**provenance, "figures": figures}, arguments)


if __name__ == "__main__":
    main()
