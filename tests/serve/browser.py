"""Headless Chromium, driven through its DevTools protocol over a WebSocket."""

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self.problems: list[str] = []  # exceptions, and what the console has of errors and broken rules
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self._socket:
                self._take(json.loads(text))

    def _take(self, message: dict) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).set_result(message)
        elif message["method"] == "Runtime.exceptionThrown":
            self.problems.append(message["params"]["exceptionDetails"]["exception"]["description"])
        elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.problems.append(message["params"]["entry"]["text"])

    async def call(self, method: str, **params: Any) -> dict:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        message = await asyncio.wait_for(answer, 20)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    async def open(self, address: str) -> None:
        for domain in ("Page", "Runtime", "Log", "DOM"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)
        await self.until("document.readyState === 'complete'")

    async def value(self, expression: str) -> Any:
        """Return what JavaScript makes of an expression."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = 20.0) -> Any:
        """Wait until an expression is true, and return its value."""
        for _ in range(round(seconds / 0.02)):
            if value := await self.value(expression):
                return value
            await asyncio.sleep(0.02)
        raise TimeoutError(f"{expression}: never true; the page shows: {await self.value('document.body.innerText')}")

    async def choose(self, selector: str, file: Path) -> None:
        """Put a file into an input element."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    async def click(self, selector: str) -> None:
        """Click in the middle of an element, with the mouse."""
        place = f"document.querySelector({json.dumps(selector)})"
        x, y = await self.value(
            f"(() => {{ {place}.scrollIntoView(); const b = {place}.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def key(self, name: str) -> None:
        code = {"Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}[name]
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **text
            )

    async def picture(self) -> bytes:
        """Return the page as it looks, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@asynccontextmanager
async def browser(folder: Path, *options: str) -> AsyncIterator[Page]:
    """Start Chromium with a profile in `folder`; yields its page."""
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",  # the page is our own, and root has no sandbox
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-extensions",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        *options,
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        while b"DevTools listening on " not in (line := await asyncio.wait_for(process.stderr.readline(), 20)):
            if not line:
                raise RuntimeError("Chromium does not start")
        draining = asyncio.create_task(process.stderr.read())
        port = line.split(b":")[2].split(b"/")[0].decode()
        root = f"ws://127.0.0.1:{port}/devtools"
        identity = line.decode().rsplit("/", 1)[1].strip()
        async with connect(f"{root}/browser/{identity}", max_size=None, proxy=None) as socket:
            main = Page(socket)
            targets = (await main.call("Target.getTargets"))["targetInfos"]
            target = next(target["targetId"] for target in targets if target["type"] == "page")
            async with connect(f"{root}/page/{target}", max_size=None, proxy=None) as page_socket:
                yield Page(page_socket)
            await main.call("Browser.close")
    finally:
        if process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), 5)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
        draining.cancel()
