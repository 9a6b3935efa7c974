"""The supervisor's log on the terminal: every child's lines, prefixed by its name."""

import contextlib
import sys
from typing import TextIO

NAME_WIDTH = 7


class Log:
    """Writes whole lines; errors are ignored, so that the programs continue without their terminal."""

    def __init__(self, stream: TextIO = sys.stderr, *, answers: TextIO = sys.stdout) -> None:
        self._stream, self._answers = stream, answers

    def line(self, name: str, text: str) -> None:
        """One line of a child, or of the supervisor itself under the name `stack`."""
        write(self._stream, f"{name:<{NAME_WIDTH}} | {text}\n")

    def announce(self, text: str) -> None:
        """Write the line that the user waits for. It is the only one on standard output, where a script can read it."""
        write(self._answers, f"{text}\n")


def write(stream: TextIO, text: str) -> None:
    """Write and flush; ignore errors."""
    with contextlib.suppress(OSError):
        stream.write(text)
        stream.flush()


class LineSplitter:
    """Turns the chunks of a pipe into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """Lines that the chunk completes; an empty chunk is the end and completes the rest."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if not chunk and self._rest:
            lines, self._rest = [self._rest], b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines]
