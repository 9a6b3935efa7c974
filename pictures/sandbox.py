"""Decodes untrusted pictures, each in a process of its own.

A process costs 50 ms, for the start of Python and Pillow. Its memory is freed when it ends, and a picture that is made
to be slow or large affects no other.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pictures.decoding import PictureError
from pictures.reduction import KEPT_ASPECT, Picture

ROOT = Path(__file__).parents[1]  # folder of the package `pictures`
WALL_TIME_FACTOR = 6  # factor from processor time to the limit of wall-clock time, for busy machines
ANSWER_BYTES = 1 << 12  # largest size of the header line, which is before the PNG
BYTES_PER_PIXEL = 4  # largest: a PNG of noise, with a margin


class BusyError(Exception):
    """The machine is too busy to decode a picture, which may be an honest one."""


@dataclass(frozen=True)
class DecodeLimits:
    """The limits of one picture; fields have the names of settings, for error texts."""

    max_upload_pixels: int
    decode_cpu_seconds: int
    decode_memory_bytes: int


async def decode_in_sandbox(body: IO[bytes], short_side_px: int, limits: DecodeLimits) -> Picture:
    """Decode and reduce the picture in a file, in a process that is killed if this call is cancelled.

    body: a real file; it is read from its start. short_side_px: see `normalise`. Raises: PictureError; BusyError if the
    process gets so little processor time that it does not end.
    """
    body.seek(0)
    numbers = limits.max_upload_pixels, short_side_px, limits.decode_cpu_seconds, limits.decode_memory_bytes
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-s", "-m", "pictures.sandbox_program", *map(str, numbers)),
        cwd=ROOT,
        stdin=body.fileno(),
        stdout=PIPE,
        stderr=DEVNULL,
        env={name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"},  # no keys of the store
    )
    try:
        async with asyncio.timeout(WALL_TIME_FACTOR * limits.decode_cpu_seconds):
            answer = await _answer(process, ANSWER_BYTES + BYTES_PER_PIXEL * KEPT_ASPECT * (2 * short_side_px) ** 2)
            status = await process.wait()
    except TimeoutError as error:
        raise BusyError from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status == -signal.SIGXCPU:
        seconds = limits.decode_cpu_seconds
        raise PictureError(f"takes more than {seconds} s of processor time to decode", "decode_cpu_seconds")
    if status:
        raise PictureError("cannot be decoded: it is damaged, or made to break decoders")
    return _picture(answer)


async def _answer(process: Process, most_bytes: int) -> bytes:
    """Read at most this many bytes of the process's output; valid output is shorter."""
    assert process.stdout is not None
    try:
        return await process.stdout.readexactly(most_bytes)
    except asyncio.IncompleteReadError as error:
        return error.partial


def _picture(answer: bytes) -> Picture:
    line, _, png = answer.partition(b"\n")
    measured = json.loads(line)
    if "refused" in measured:
        raise PictureError(measured["refused"], measured["limit"])
    return Picture(png, measured["width"], measured["height"])
