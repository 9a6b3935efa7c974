"""A picture that is made to cost its decoder much costs a process of its own, for a bounded time, and nobody else."""

import asyncio
import io
import subprocess
import sys
import tempfile

import psutil
import pytest
from PIL import ExifTags, Image

from pictures.decoding import PictureError
from pictures.reduction import Picture
from pictures.sandbox import ROOT, DecodeLimits, decode_in_sandbox
from tests.jobs.samples import png
from tests.pictures.hostile import decoders, png_bomb, slow_jpeg, wide_webp

LIMITS = DecodeLimits(max_upload_pixels=25_000_000, decode_cpu_seconds=10, decode_memory_bytes=512 << 20)
TIGHT = DecodeLimits(max_upload_pixels=50_000_000, decode_cpu_seconds=1, decode_memory_bytes=128 << 20)


async def decoded(data: bytes, limits: DecodeLimits) -> Picture:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return await decode_in_sandbox(file, 512, limits)


def test_honest_picture_comes_back() -> None:
    picture = asyncio.run(decoded(png(7, size=40), LIMITS))
    assert (picture.width, picture.height) == (40, 40)
    assert picture.png.startswith(b"\x89PNG")


def saved(format: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6


@pytest.mark.parametrize(
    "data",
    [
        saved("JPEG", exif=TURNED),
        saved("JPEG", "CMYK"),
        saved("MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
        saved("PNG", "I;16"),
        saved("PNG", "P", transparency=3, exif=TURNED),
        saved("WEBP", exif=TURNED),
        saved("WEBP", "RGBA", lossless=True, save_all=True, append_images=[Image.new("RGBA", (256, 256))]),
    ],
    ids=["turned JPEG", "CMYK", "two JPEGs", "16 bits", "palette", "WebP", "animation"],
)
def test_no_form_of_picture_needs_a_file_that_the_decoder_cannot_open_any_more(data: bytes) -> None:
    picture = asyncio.run(decoded(data, LIMITS))
    assert (picture.width, picture.height) == (256, 256)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        ("open('/etc/passwd')", "Too many open files"),
        ("socket.socket()", "Too many open files"),
        ("os.pipe()", "Too many open files"),
        ("os.fork()", "Resource temporarily unavailable"),
        ("threading.Thread(target=print).start()", "can't start new thread"),
        ("os.ftruncate(0, 9)", "File too large"),
    ],
)
def test_decoder_opens_and_starts_nothing(act: str, error: str) -> None:
    program = (
        "import os, socket, threading; from PIL import Image; from pictures.sandbox_program import confine;"
        "Image.preinit(); os.geteuid() or os.setuid(65534);"  # the system lets root start processes above its limit
        f"confine(60, 1 << 29); {act}"
    )
    with tempfile.TemporaryFile() as file:
        ended = subprocess.run(
            [sys.executable, "-c", program], check=False, stdin=file, capture_output=True, text=True, cwd=ROOT
        )
    assert ended.returncode != 0
    assert error in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "limits", "limit"),
    [
        (slow_jpeg(40_000), TIGHT, "decode_cpu_seconds"),
        (png_bomb(5000), TIGHT, "decode_memory_bytes"),
        (wide_webp(), LIMITS, "max_upload_pixels"),
        (png_bomb(6000), LIMITS, "max_upload_pixels"),
    ],
    ids=["repeated scan", "PNG of nothing", "WebP of 34 bytes", "too many pixels"],
)
def test_bomb_is_refused_by_the_limit_that_it_exceeds(data: bytes, limits: DecodeLimits, limit: str) -> None:
    with pytest.raises(PictureError) as refused:
        asyncio.run(decoded(data, limits))
    assert refused.value.limit == limit
    assert decoders(psutil.Process()) == []


def test_decoding_that_is_cancelled_ends_its_process_which_knew_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    async def cancel_when_it_runs() -> dict[str, str]:
        task = asyncio.create_task(decoded(slow_jpeg(40_000), LIMITS))
        while not decoders(psutil.Process()):
            await asyncio.sleep(0.01)
        environment = decoders(psutil.Process())[0].environ()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return environment

    assert "AWS_SECRET_ACCESS_KEY" not in asyncio.run(cancel_when_it_runs())
    assert decoders(psutil.Process()) == []
