"""Stands between the programs and Redis or the store, and breaks their connections at the worst moments."""

import asyncio
import contextlib
import re
import socket
import struct
from abc import ABC, abstractmethod
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Literal

CHUNK_BYTES = 1 << 16
# Matches a transaction of the programs: bytes that begin with EVAL, or commands that end with EXEC.
TRANSACTION = re.compile(rb"\A\*\d+\r\n\$4\r\nEVAL\r\n|EXEC\r\n\Z")
UNAVAILABLE = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 seconds: closing sends a reset

Accident = Literal["lose reply", "tear command"]
# From the bytes read: the bytes to pass on, and whether the connection ends after them.
Passed = Callable[[bytes], tuple[bytes, bool]]
StoreFault = Literal["none", "slow", "503", "reset", "silent", "stalls"]


class Relay(ABC):
    """Passes bytes between a socket of its own and another, on a thread of its own."""

    def __init__(self) -> None:
        self._writers: set[StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = Thread(target=self._loop.run_forever, name="proxy")

    @abstractmethod
    async def _listen(self) -> asyncio.Server:
        """A server that passes its connections to `_serve`."""

    @abstractmethod
    async def _reach(self) -> tuple[StreamReader, StreamWriter]:
        """A connection to the other side."""

    @abstractmethod
    async def _pass_on(self, here: tuple[StreamReader, StreamWriter], there: tuple[StreamReader, StreamWriter]) -> None:
        """Pass bytes between a client and the other side until one of them ends."""

    def start(self) -> None:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """Close every connection now."""
        self._loop.call_soon_threadsafe(self._cut)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            there = await self._reach()
            self._writers.add(there[1])
            await self._pass_on((reader, writer), there)
            self._writers.discard(there[1])
        except OSError:
            writer.transport.abort()  # the other side is unreachable, so its clients must get an error
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)


class Proxy(Relay):
    """Stands before Redis' unix socket.

    A lost reply: Redis runs a whole transaction, whose answer never arrives. A torn command: half of a transaction
    arrives, so that Redis runs none of it.
    """

    def __init__(self, socket: Path, redis_socket: Path) -> None:
        super().__init__()
        self.address = f"unix://{socket}"
        self._socket, self._redis_socket = socket, redis_socket
        self._accidents: deque[Accident] = deque()

    def plan(self, accident: Accident, times: int) -> None:
        """Cause this accident in each of the next transactions, of any client."""
        self._loop.call_soon_threadsafe(self._accidents.extend, [accident] * times)

    def calm(self) -> None:
        """Cause no further accidents."""
        self._loop.call_soon_threadsafe(self._accidents.clear)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, self._socket)

    async def _reach(self) -> tuple[StreamReader, StreamWriter]:
        return await asyncio.open_unix_connection(self._redis_socket)

    async def _pass_on(self, here: tuple[StreamReader, StreamWriter], there: tuple[StreamReader, StreamWriter]) -> None:
        connection = Connection(self._accidents)
        await asyncio.gather(
            self._pump(here[0], there[1], connection.commands), self._pump(there[0], here[1], connection.replies)
        )

    async def _pump(self, reader: StreamReader, writer: StreamWriter, passed: Passed) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                through, is_last = passed(data)
                writer.write(through)
                await writer.drain()
                if is_last:
                    break
        # whichever side ends, both do
        writer.close()


class Connection:
    """The accidents of one connection."""

    def __init__(self, accidents: deque[Accident]) -> None:
        self._accidents, self._loses_reply = accidents, False

    def commands(self, data: bytes) -> tuple[bytes, bool]:
        """The bytes that are passed to Redis, and whether the connection ends after them."""
        if self._accidents and TRANSACTION.search(data):
            match self._accidents.popleft():
                case "tear command":
                    return data[: len(data) // 2], True
                case "lose reply":
                    self._loses_reply = True
        return data, False

    def replies(self, data: bytes) -> tuple[bytes, bool]:
        return (b"", True) if self._loses_reply else (data, False)


class StoreProxy(Relay):
    """Stands before an S3 server on this machine; each request meets the fault of the moment.

    Slow: each piece that is read waits. 503: the answer by which S3 says that it has too much to do. Reset: the
    connection breaks. Silent: the request is read and never answered. Stalls: half of a piece of the answer arrives,
    and no more.
    """

    def __init__(self, store_port: int) -> None:
        super().__init__()
        self.port = 0
        self.fault: StoreFault = "none"
        self.once = False  # only the next request meets the fault
        self.slow_seconds = 0.2
        self.struck = Event()  # a request has met a fault
        self._store_port = store_port

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _reach(self) -> tuple[StreamReader, StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._store_port)

    async def _pass_on(self, here: tuple[StreamReader, StreamWriter], there: tuple[StreamReader, StreamWriter]) -> None:
        answers = asyncio.create_task(self._answers(there[0], here[1]))
        with contextlib.suppress(OSError):
            await self._requests(here[0], here[1], there[1])
        there[1].close()
        here[1].close()
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)

    async def _requests(self, reader: StreamReader, answer: StreamWriter, writer: StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            fault = self.fault
            if fault != "none":
                self.struck.set()
                self.fault = "none" if self.once else fault
            match fault:
                case "reset":
                    answer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                    answer.transport.abort()
                    return
                case "503" | "silent":
                    answer.write(UNAVAILABLE if fault == "503" else b"")
                    while await reader.read(CHUNK_BYTES):  # the rest of the request, until the client hangs up
                        pass
                    return
                case "slow":
                    await asyncio.sleep(self.slow_seconds)
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader: StreamReader, writer: StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self.fault == "stalls":
                    writer.write(data[: len(data) // 2])
                    await asyncio.Event().wait()
                writer.write(data)
                await writer.drain()
            writer.close()
