"""Take the picture of the page that the READMEs show: the real page with a trained model.

Usage:
    python tests/serve/screenshot.py --model egs/mini/asr/exp/default --out asrkit/serve/pictures/page.png a.wav b.wav
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from browser import Page, browser
from client import serving

from asrkit.data.audio import read_audio
from asrkit.search.recogniser import load
from asrkit.serve.server import Server

PAUSE = 1.6  # seconds between the files
WIDTH = 960  # pixels of the page


async def take(model: Path, audio: list[Path], out: Path, scheme: str) -> None:
    recogniser = load(model)
    rate = recogniser.features.sampling_rate
    pause = np.zeros(round(PAUSE * rate), np.float32)
    parts = [part for file in audio for part in (read_audio(file, rate).numpy(), pause)]
    with tempfile.TemporaryDirectory() as folder:
        talk = Path(folder) / "notes.wav"
        soundfile.write(talk, np.concatenate(parts), rate)
        async with serving(Server(recogniser)) as address, browser(Path(folder) / "profile") as page:
            await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            await _resize(page, 600)
            await page.open(address.replace("ws://", "http://").removesuffix("stream"))
            await page.choose("#file", talk)
            await page.until("document.querySelector('.word') && document.body.dataset.state === 'idle'", 60)
            await _resize(page, await page.value("document.querySelector('main').offsetHeight"))
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(await page.picture())


async def _resize(page: Page, height: int) -> None:
    await page.call(
        "Emulation.setDeviceMetricsOverride", width=WIDTH, height=height, deviceScaleFactor=1.5, mobile=False
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    options = parser.parse_args()
    asyncio.run(take(options.model, options.audio, options.out, options.scheme))
