"""A child of the supervisor: started again after its end, stopped within its time, never left behind."""

import asyncio
import os
import signal
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from standalone.child import Backoff, Child
from standalone.log import LineSplitter
from tests.standalone.programs import (
    DEAF,
    ENDS,
    HOPELESS,
    OBEDIENT,
    PARENT,
    REFUSES,
    Lines,
    alive,
    never_ready,
    program,
    written_pid,
)
from tests.waiting import PATIENCE_SECONDS, eventually


def test_killed_child_is_started_again_and_its_pid_file_follows(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = Lines()
        child = Child(program("service", OBEDIENT), tmp_path, log)
        child.start()
        await log.first("service: serving")
        before = written_pid(tmp_path / "service.pid")
        assert before is not None
        log.lines.clear()
        os.kill(before, signal.SIGKILL)
        assert "was ended by SIGKILL; starting it again" in await log.first("ended")
        await log.first("service: serving")
        after = written_pid(tmp_path / "service.pid")
        assert after is not None
        assert after != before
        assert not alive(before)
        await child.stop()
        assert not alive(after)
        assert not (tmp_path / "service.pid").exists()

    asyncio.run(scenario())


def test_output_of_a_child_that_refuses_to_start_is_logged_and_it_is_tried_again_after_growing_delays(
    tmp_path: Path,
) -> None:
    async def scenario() -> list[str]:
        log = Lines()
        child = Child(program("worker", REFUSES), tmp_path, log)
        child.start()
        await log.first("in 0.04 s")
        await child.stop()
        return log.lines

    lines = asyncio.run(scenario())
    assert "worker: weights/base.safetensors: key out.weight is missing" in lines
    delays = [line for line in lines if line.startswith("stack: worker ended with status 3")]
    assert [line.split()[-2] for line in delays][:3] == ["0.01", "0.02", "0.04"]


def test_child_that_cannot_work_with_its_settings_is_not_started_again(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        log = Lines()
        child = Child(never_ready(program("service", HOPELESS)), tmp_path, log)
        child.start()
        await child.misconfigured.wait()
        assert child.last_line == "ADM_HOST: 0.0.0.0 is not loopback"
        await child.stop()
        return log.lines

    assert not [line for line in asyncio.run(scenario()) if "again" in line]


def test_child_that_was_ready_is_started_again_whatever_its_status(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = Lines()
        child = Child(program("service", ENDS), tmp_path, log)
        child.start()
        await log.first("serving")
        await child.ready.wait()
        pid = written_pid(tmp_path / "service.pid")
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)
        await log.first("service ended with status 2; starting it again")
        await child.stop()
        assert not child.misconfigured.is_set()

    asyncio.run(scenario())


def test_child_that_will_not_stop_is_killed_when_its_time_is_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = Lines()
        child = Child(program("worker", DEAF, stop_seconds=0.1), tmp_path, log)
        child.start()
        await log.first("serving")
        pid = written_pid(tmp_path / "worker.pid")
        assert pid is not None
        await child.stop()
        assert "stack: worker did not stop in time; killing it" in log.lines
        assert not alive(pid)

    asyncio.run(scenario())


def test_child_stopped_while_it_waits_to_be_started_again_stops_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = Lines()
        child = Child(program("worker", REFUSES, backoff=Backoff(first_seconds=3600, most_seconds=3600)), tmp_path, log)
        child.start()
        await log.first("starting it again in 3600 s")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await child.stop()

    asyncio.run(scenario())


def test_processes_that_a_child_started_end_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = Lines()
        child = Child(program("worker", PARENT), tmp_path, log)
        child.start()
        orphan = int((await log.first("worker: child")).split()[-1])
        await child.stop()
        eventually(lambda: not alive(orphan), "the orphan ends")  # it ends by itself after an hour

    asyncio.run(scenario())


def test_child_has_a_session_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = Lines()
        child = Child(program("service", OBEDIENT), tmp_path, log)
        child.start()
        await log.first("serving")
        pid = written_pid(tmp_path / "service.pid")
        assert pid is not None
        assert os.getsid(pid) == pid
        await child.stop()

    asyncio.run(scenario())


def test_stale_pid_file_of_another_process_is_overwritten_and_the_process_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "service.pid").write_text(f"{os.getppid()} and more than a pid\n")
        log = Lines()
        child = Child(program("service", OBEDIENT), tmp_path, log)
        child.start()
        await log.first("serving")
        assert written_pid(tmp_path / "service.pid") not in (None, os.getppid())
        assert alive(os.getppid())
        await child.stop()

    asyncio.run(scenario())


@given(deaths=st.integers(2, 200))
def test_backoff_doubles_up_to_its_limit(deaths: int) -> None:
    backoff = Backoff()
    assert backoff.delay_seconds(1) == backoff.first_seconds
    assert backoff.delay_seconds(deaths) == min(2 * backoff.delay_seconds(deaths - 1), backoff.most_seconds)


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8")), max_size=5), cut=st.integers(1, 7)
)
def test_lines_survive_any_cutting_into_chunks(lines: list[str], cut: int) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    splitter = LineSplitter()
    out = [line for i in range(0, len(data), cut) for line in splitter.feed(data[i : i + cut])]
    assert out + splitter.feed(b"") == lines
