"""Any folder name that a file system allows works, or one line says why not before anything starts."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from jobs.settings import Settings
from jobs.storage.images import ImageStore
from standalone.child import Child, happens
from standalone.embedded import redis_spec
from tests.jobs.samples import DEMO, png
from tests.standalone.programs import Lines
from tests.standalone.test_up import up
from tests.worker.names import owned
from tests.worker.tiny_stack import write_tiny_stack
from worker.inbox import Inbox

NAMES = ["my data", "take#2", "100%20", "what?", "a=b&c", 'it\'s "quoted"\\', "Büro 日本", "two\nlines"]
EVERYTHING = "a b#1 %20 ?=&'\" Bü\n本"


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """A folder with a path short enough for that of a socket in it."""
    with tempfile.TemporaryDirectory(prefix="adm-") as folder:
        yield Path(folder)


@pytest.mark.redis
@pytest.mark.parametrize("name", NAMES)
def test_redis_the_store_and_a_worker_work_in_a_folder_of_any_name(short: Path, name: str) -> None:
    settings = Settings(data=short / name)
    settings.run_dir.mkdir(parents=True)

    async def work() -> None:
        child = Child(redis_spec(settings), settings.run_dir, Lines())
        child.start()
        assert await happens(child.ready, within_seconds=300)
        with Redis.from_url(settings.redis_address) as redis:
            inbox = Inbox(redis, settings, owned("cpu-0"), [DEMO])
            inbox.open()
            inbox.close()
            assert redis.config_get("dir")["dir"] == str(settings.data / "redis")
        await child.stop()

    asyncio.run(work())
    images = ImageStore(settings.store_address)
    assert images.get("job", images.put("job", "token", 0, png(3))) == png(3)
    assert {each.name for each in settings.data.iterdir()} == {"run", "redis", "images"}


@pytest.mark.slow
@pytest.mark.redis
def test_whole_stack_starts_in_folders_of_any_name(short: Path) -> None:
    folder = short / EVERYTHING
    write_tiny_stack(folder / "weights")
    with up(folder, folder / "weights", expected="(Ctrl-C stops all)") as programs:
        assert programs.status("/readyz?workers=1") == 200
        assert not any("Traceback" in line for line in programs.lines)


@pytest.mark.parametrize(
    ("name", "message"),
    [(b"\xff", b"is not UTF-8; use a folder with another name"), (b"long" * 30, b"is longer than 107 bytes")],
)
def test_folder_that_cannot_work_is_one_line_before_anything_starts(short: Path, name: bytes, message: bytes) -> None:
    data = os.fsencode(short) + b"/" + name
    command = [sys.executable, "-m", "cli", "up"]
    ended = subprocess.run(command, env=os.environb | {b"ADM_DATA": data}, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count(b"\n") == 1
    assert list(short.iterdir()) == []
