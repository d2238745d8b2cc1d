"""The server: one conversation for each client, all of them decoded by one thread.

Everything here runs in one asyncio loop, which never waits for the decoding. What a client sends lives in memory only,
and no part of it is logged.
"""

import asyncio
import hmac
import logging
import traceback
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from asrkit.errors import InputError
from asrkit.search.recogniser import Recogniser
from asrkit.search.streaming import Endpoint
from asrkit.serve import protocol
from asrkit.serve.decoding import Decoder, Feed, Update
from asrkit.serve.protocol import Refused, Start

try:
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed

    from asrkit.serve.pages import respond
except ImportError as problem:
    raise InputError("websockets is not installed: pip install 'asrkit[serve]'") from problem

BACKLOG_SECONDS = 10.0  # audio of a client that may wait for the decoder before the server stops reading from it
WAITING_MESSAGES = 256  # results that may wait for a client to read them before it is dropped
READ_SECONDS = 30.0  # that a client may take to read one
CLOSE_SECONDS = 3.0  # for the closing handshake
SHUTDOWN_SECONDS = 10.0  # for decoding what was heard when the server is told to end


@dataclass(frozen=True)
class Limits:
    """What one server and one client may take."""

    streams: int = 64
    seconds: float = 3600.0  # of audio in a stream
    idle: float = 30.0  # seconds without a message
    message_bytes: int = 1 << 18


class Outbox:
    """The messages on their way to one client: each result, and the latest of the partial ones."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._partial = ""
        self._closed = False
        self._news = asyncio.Event()

    @property
    def full(self) -> bool:
        return len(self._waiting) >= WAITING_MESSAGES

    def put(self, message: str) -> None:
        self._waiting.append(message)
        self._partial = ""  # older than this
        self._news.set()

    def put_partial(self, message: str) -> None:
        self._partial = message
        self._news.set()

    def close(self) -> None:
        """Nothing follows."""
        self._closed = True
        self._news.set()

    async def send(self, socket: ServerConnection) -> None:
        """Send until the outbox is closed and empty, at the speed of the client.

        Raises:
            ConnectionClosed: the client has gone.
            asyncio.TimeoutError: it does not read.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                await asyncio.wait_for(socket.send(self._waiting.popleft()), READ_SECONDS)
            if self._closed:
                return
            if self._partial:
                message, self._partial = self._partial, ""
                await asyncio.wait_for(socket.send(message), READ_SECONDS)


class Conversation:
    """One client, from its first message to its last."""

    def __init__(self, socket: ServerConnection, decoder: Decoder, limits: Limits, token: str) -> None:
        self._socket, self._decoder, self._limits, self._token = socket, decoder, limits, token
        self._outbox = Outbox()
        self._start: Start | None = None
        self._feed: Feed | None = None
        self._room = asyncio.Event()  # set when audio has left the backlog
        self._backlog = 0.0  # seconds of audio that wait for the decoder
        self._samples = 0  # taken from the client
        self._segments = 0  # sent to it
        self._ended = False  # it has stopped or was refused: nothing it sends counts any more
        self._close_code = 1000

    async def hold(self) -> None:
        """Talk until everything is said or the client goes away."""
        listening = asyncio.create_task(self._listen())
        sending = asyncio.create_task(self._outbox.send(self._socket))
        try:
            await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                await self._socket.close(self._close_code)
            else:
                listening.result()
        except asyncio.TimeoutError:
            self._socket.transport.abort()
        finally:
            if self._feed:
                self._decoder.drop(self._feed)
            for task in (listening, sending):
                task.cancel()
            await asyncio.gather(listening, sending, return_exceptions=True)

    def end(self, refused: Refused | None = None) -> None:
        """Take no more; what was heard is still decoded and sent."""
        if self._ended:
            return
        self._ended = True
        if refused:
            self._close_code = 1008
            self._outbox.put(protocol.error(refused))
        if self._feed:
            self._decoder.end(self._feed)
        else:
            self._outbox.close()

    async def _listen(self) -> None:
        """Take the client's messages. It is read to the end, or the closing handshake would not get through.

        Raises:
            ConnectionClosed: the client has gone.
        """
        while True:
            try:
                message = await asyncio.wait_for(self._socket.recv(), self._limits.idle)
                if not self._ended:
                    await self._hear(message)
            except Refused as refused:
                self.end(refused)
            except asyncio.TimeoutError:
                self.end(Refused("idle", f"nothing came for {self._limits.idle:g} s"))

    async def _hear(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            if self._feed is None:
                raise protocol.malformed("audio before the message 'start'")
            await self._hear_audio(message)
            return
        command = protocol.read_command(message)
        if isinstance(command, Start) != (self._feed is None):
            raise protocol.malformed("the order of messages is: start, audio, stop")
        if isinstance(command, Start):
            self._open(command)
        else:
            self.end()

    def _open(self, start: Start) -> None:
        expected, given = (token.encode("utf-8", "surrogatepass") for token in (self._token, start.token))
        if self._token and not hmac.compare_digest(expected, given):
            raise Refused("token", "the token is missing or wrong")
        loop = asyncio.get_running_loop()
        self._start = start
        self._feed = Feed(start.name, start.rate, lambda update: loop.call_soon_threadsafe(self._take, update))
        self._decoder.open(self._feed)
        limits = self._limits
        self._outbox.put(protocol.ready(start.name, limits.seconds, limits.idle, limits.message_bytes))

    async def _hear_audio(self, message: bytes) -> None:
        samples = protocol.read_samples(message, self._start.format)
        left = round(self._limits.seconds * self._start.rate) - self._samples
        samples, too_long = samples[:left], len(samples) > left
        self._decoder.add(self._feed, samples)
        self._samples += len(samples)
        self._backlog += len(samples) / self._start.rate
        if too_long:
            raise Refused("too_long", f"a stream may be {self._limits.seconds:g} s long")
        while self._backlog > BACKLOG_SECONDS:
            self._room.clear()
            await self._room.wait()

    def _take(self, update: Update) -> None:
        """Pass on what the decoder found."""
        self._backlog -= update.seconds
        self._room.set()
        for nbest in update.segments:
            self._outbox.put(protocol.final(nbest, self._segments))
            self._segments += 1
        if update.partial:
            self._outbox.put_partial(protocol.partial(update.partial))
        if update.failed:
            self._ended, self._backlog, self._close_code = True, 0.0, 1011
            self._outbox.put(protocol.error(Refused("internal", "a defect of the server; the stream is lost")))
            self._outbox.close()
        if update.finished:
            self._outbox.put(protocol.closed(self._start.name, self._samples / self._start.rate, self._segments))
            self._outbox.close()
        if self._outbox.full:  # it does not read, so nothing can be said to it
            self._socket.transport.abort()


class Server:
    """A recogniser for clients of the protocol, and the page that is one.

    Args:
        recogniser: used by the decoding thread alone.
        limits: see `Limits`.
        token: what each client must give; nothing if empty.
        chunk_size: encoder frames of a chunk; the model's own by default.
        endpoint: where segments end; the recogniser's rules by default.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        limits: Limits | None = None,
        token: str = "",
        chunk_size: int | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        self._recogniser, self._chunk_size, self._endpoint = recogniser, chunk_size, endpoint or Endpoint()
        self._limits, self._token = limits or Limits(), token
        self._conversations: set[Conversation] = set()

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1", port: int = 8000) -> AsyncIterator[int]:
        """Serve while entered; yields the port, which the system chooses for 0.

        On leaving, clients get all results of what they have sent.

        Raises:
            InputError: the address cannot be had.
        """
        self._decoder = Decoder(self._recogniser, self._chunk_size, self._endpoint)
        silent = logging.getLogger(__name__)  # it would tell of each client that breaks the rules of WebSockets
        silent.setLevel(logging.CRITICAL)
        listening = serve(
            self._serve,
            host,
            port,
            process_request=lambda _socket, request: respond(request),
            compression=None,  # speech does not compress, and memory is dear
            max_size=self._limits.message_bytes,
            max_queue=2,
            ping_interval=None,  # answers would wait behind the audio of clients that are held back
            close_timeout=CLOSE_SECONDS,
            server_header=None,
            logger=silent,
        )
        try:
            server = await listening
        except OSError as error:
            raise InputError(f"{host}:{port}: {error.strerror or error}") from error
        self._decoder.start()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close(close_connections=False)
            for conversation in self._conversations:
                conversation.end(Refused("shutdown", "the server has been told to end"))
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(server.wait_closed(), SHUTDOWN_SECONDS)
            self._decoder.stop()
            self._decoder.join()

    async def _serve(self, socket: ServerConnection) -> None:
        conversation = Conversation(socket, self._decoder, self._limits, self._token)
        if len(self._conversations) >= self._limits.streams:
            conversation.end(Refused("busy", f"the server has {self._limits.streams} clients already; try later"))
        else:
            self._conversations.add(conversation)
        try:
            await conversation.hold()
        except ConnectionClosed:
            pass
        except Exception:  # a defect must not hide behind the silent logger
            traceback.print_exc()
        finally:
            self._conversations.discard(conversation)
