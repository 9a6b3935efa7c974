import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from standalone.supervisor import StartError, sole_owner
from tests.standalone.programs import DEAF, OBEDIENT, alive, written_pid
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]


@contextmanager
def running(run_dir: Path, source: str, *prefix: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A supervisor in a process of its own with its two children up: it and their pids.

    Without a prefix it minds SIGHUP, even if the tests themselves run under nohup.
    """
    with subprocess.Popen(
        [
            *(prefix or ("env", "--default-signal=HUP")),
            sys.executable,
            "-m",
            "tests.standalone.programs",
            str(run_dir),
            source,
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        serving = 0
        try:
            for line in process.stderr:
                serving += line.endswith("| serving\n")
                if serving == 2:
                    break
            pids = [written_pid(run_dir / f"{name}.pid") for name in ("first", "last")]
            yield process, [pid for pid in pids if pid is not None]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_all_in_order_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, OBEDIENT) as (process, pids):
        assert len(pids) == 2
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0
    stops = [line.strip().partition(":")[0] for line in stderr.splitlines() if "stopping " in line or "bye" in line]
    assert stops == ["stack   | stopping first", "first   | bye", "stack   | stopping last", "last    | bye"]
    assert not any(alive(pid) for pid in pids)
    assert list(tmp_path.glob("*.pid")) == []


def test_stack_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with running(tmp_path, OBEDIENT, "nohup") as (process, pids):
        process.send_signal(signal.SIGHUP)
        os.kill(pids[0], signal.SIGKILL)
        assert process.stderr is not None
        assert any("starting it again" in line for line in process.stderr)  # it has not begun to stop
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


@pytest.mark.slow
def test_second_signal_shortens_the_stop(tmp_path: Path) -> None:
    with running(tmp_path, DEAF) as (process, pids):
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("stopping first" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)  # its own time would be an hour
        assert "first did not stop in time; killing it" in stderr
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, DEAF) as (process, pids):
        process.kill()
        process.wait(timeout=60)
        eventually(lambda: not any(alive(pid) for pid in pids), "all end")  # they end by themselves after an hour


def test_stack_starts_again_on_the_folder_of_one_that_was_killed(tmp_path: Path) -> None:
    with running(tmp_path, DEAF) as (process, before):
        process.kill()
        process.wait(timeout=60)
    with running(tmp_path, OBEDIENT) as (process, after):
        assert set(before).isdisjoint(after)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_second_stack_on_a_folder_is_refused_with_the_setting_to_change(tmp_path: Path) -> None:
    with (
        sole_owner(tmp_path / "run"),
        pytest.raises(StartError, match=rf"process {os.getpid()}\).*ADM_DATA.*ADM_PORT"),
        sole_owner(tmp_path / "run"),
    ):
        pass


def test_folder_can_be_owned_again_after_its_owner_left(tmp_path: Path) -> None:
    for _ in range(2):
        with sole_owner(tmp_path / "run"):
            assert (tmp_path / "run" / "stack.lock").read_text() == f"{os.getpid()}\n"


def test_folder_that_cannot_be_made_is_an_error_that_names_adm_data(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="ADM_DATA"), sole_owner(tmp_path / "file" / "run"):
        pass
