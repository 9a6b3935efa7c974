"""Decoding what strangers send: each picture in a process of its own, which ends with it.

A process costs 50 ms, of which Python and Pillow are all; it gives back its memory, and a picture that is made to be
slow or large hurts nobody else.
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

ROOT = Path(__file__).parents[1]  # where `pictures` is found, installed or not
HELD_UP = 6  # times its processor time that a process may take by the clock: machines are busy
ANSWER_BYTES = 1 << 12  # of the line before the PNG
BYTES_PER_PIXEL = 4  # of a PNG of noise, with room


@dataclass(frozen=True)
class DecodeLimits:
    """What one picture may take; the fields are named as settings, and errors name them."""

    max_upload_pixels: int
    decode_cpu_seconds: int
    decode_memory_bytes: int


async def decode_in_child(body: IO[bytes], short_side_px: int, limits: DecodeLimits) -> Picture:
    """Decode and reduce the picture in a file, in a process that is killed when this call is cancelled.

    body: a real file; it is read from its start. short_side_px: as `normalise` takes it. Raises: PictureError.
    """
    body.seek(0)
    numbers = limits.max_upload_pixels, short_side_px, limits.decode_cpu_seconds, limits.decode_memory_bytes
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-s", "-m", "pictures.child", *map(str, numbers)),
        cwd=ROOT,
        stdin=body.fileno(),
        stdout=PIPE,
        stderr=DEVNULL,
        env={name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"},  # no keys of the store
    )
    try:
        async with asyncio.timeout(HELD_UP * limits.decode_cpu_seconds):
            answer = await _answer(process, ANSWER_BYTES + BYTES_PER_PIXEL * KEPT_ASPECT * (2 * short_side_px) ** 2)
            status = await process.wait()
    except TimeoutError:
        status = -signal.SIGXCPU
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
    """All that the process writes, up to a length that no honest one reaches."""
    assert process.stdout is not None
    try:
        return await process.stdout.readexactly(most_bytes)
    except asyncio.IncompleteReadError as error:
        return error.partial


def _picture(answer: bytes) -> Picture:
    line, _, png = answer.partition(b"\n")
    said = json.loads(line)
    if "refused" in said:
        raise PictureError(said["refused"], said["limit"])
    return Picture(png, said["width"], said["height"])
