"""Stands between the programs and Redis, and cuts their connections where it hurts most."""

import asyncio
import contextlib
import re
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Literal

CHUNK_BYTES = 1 << 16
# What the programs write in one go: a script, as whose first bytes it comes, or what EXEC ends.
TRANSACTION = re.compile(rb"\A\*\d+\r\n\$4\r\nEVAL\r\n|EXEC\r\n\Z")

Accident = Literal["lose reply", "tear command"]
Passed = Callable[[bytes], tuple[bytes, bool]]  # from what was read: what goes on, and whether that is the end


class Proxy:
    """Passes bytes between a unix socket of its own and Redis', on a thread of its own.

    A lost reply: Redis runs a whole transaction, whose answer never arrives. A torn command: half of a transaction
    arrives, so that Redis runs none of it.
    """

    def __init__(self, socket: Path, redis_socket: Path) -> None:
        self.address = f"unix://{socket}"
        self._socket, self._redis_socket = socket, redis_socket
        self._accidents: deque[Accident] = deque()
        self._writers: set[StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = Thread(target=self._loop.run_forever, name="proxy")

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

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

    def plan(self, accident: Accident, times: int) -> None:
        """Let this happen to the next transactions, whoever sends them."""
        self._loop.call_soon_threadsafe(self._accidents.extend, [accident] * times)

    def calm(self) -> None:
        """Let nothing happen any more."""
        self._loop.call_soon_threadsafe(self._accidents.clear)

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._socket)

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
            redis_reader, redis_writer = await asyncio.open_unix_connection(self._redis_socket)
            self._writers.add(redis_writer)
            connection = Connection(self._accidents)
            await asyncio.gather(
                self._pump(reader, redis_writer, connection.commands),
                self._pump(redis_reader, writer, connection.replies),
            )
            self._writers.discard(redis_writer)
        except OSError:
            writer.transport.abort()  # Redis is away, and its clients shall find that out
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)

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
    """What one connection has coming."""

    def __init__(self, accidents: deque[Accident]) -> None:
        self._accidents, self._loses_reply = accidents, False

    def commands(self, data: bytes) -> tuple[bytes, bool]:
        """What goes on to Redis, and whether the connection ends there."""
        if self._accidents and TRANSACTION.search(data):
            match self._accidents.popleft():
                case "tear command":
                    return data[: len(data) // 2], True
                case "lose reply":
                    self._loses_reply = True
        return data, False

    def replies(self, data: bytes) -> tuple[bytes, bool]:
        return (b"", True) if self._loses_reply else (data, False)
