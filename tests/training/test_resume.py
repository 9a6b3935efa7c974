"""A run may end at any moment and goes on as if it had not."""

import errno
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from runfolder.folder import CONFIG, STATE, locked, snapshot_path, snapshot_steps
from runfolder.stats import read_lines
from tests.training.lives import Lives
from tests.training.samples import assert_same, config, finish, start, write_npz
from training.config import ConfigError
from training.divergence import DivergedError
from training.session import Request, TrainingError, advice, train
from training.state import SaveError, StateFiles, read_state

KILLS = int(os.environ.get("TRAINING_KILLS", "6"))
# Steps of the run for each kill: more than it takes between two kills, so that the last one still finds it training.
STEPS_A_KILL = 12


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": {"timestep_sampler": "loss-second-moment"}},
        {"network": {"dropout": 0.3}, "optimiser": {"microbatch": 2}},
        {"compute": {"precision": "fp16"}},
    ],
    ids=["plain", "second-moment", "dropout", "fp16"],
)
def test_run_that_is_stopped_and_resumed_equals_one_that_is_not(
    tmp_path: Path, stop: int, changes: dict[str, dict[str, object]]
) -> None:
    given = config(**changes)
    whole = start(given)
    finish(whole)
    stopped, files = start(given), StateFiles(tmp_path, 1)
    steps = 0

    def wants_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps > stop

    assert [tick.step for tick in stopped.train(files, wants_stop)] == list(range(1, stop + 1))
    resumed = start(given)
    resumed.load(read_state(tmp_path / STATE))
    assert resumed.step == stop
    finish(resumed)
    assert_same(resumed, whole)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_run_that_is_killed_at_random_instants_ends_with_the_bytes_of_one_that_is_not(
    tmp_path: Path, processes: int
) -> None:
    """Each kill ends all processes of the run, after at least one step that no earlier kill's state has."""
    seed = int(os.environ.get("TRAINING_KILLS_SEED", random.randrange(2**32)))
    print(f"seed {seed}, {KILLS} kills, {processes} processes")
    instants, steps = random.Random(seed), STEPS_A_KILL * KILLS
    images = write_npz(tmp_path / "images.npz")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Lives() as lives:
        assert lives.wait(lives.start(whole, images, steps, processes)) == [0] * processes
        for kill in range(KILLS):
            before, pids = step_of(killed), lives.start(killed, images, steps, processes)
            while step_of(killed) <= before:
                time.sleep(0.002)
            time.sleep(instants.random() * 0.05)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            assert lives.wait(pids) == [-signal.SIGKILL] * processes, f"kill {kill} found a run that had ended"
        assert lives.wait(lives.start(killed, images, steps, processes)) == [0] * processes
    one, other = (read_state(each / STATE) for each in (whole, killed))
    assert one["step"] == other["step"] == steps
    for part in ("network", "averages"):
        assert str(one[part].keys()) == str(other[part].keys())
    assert all(torch.equal(value, other["network"][name]) for name, value in one["network"].items())
    figures = [[{key: line[key] for key in ("step", "loss")} for line in read_lines(each)] for each in (whole, killed)]
    assert figures[0] == figures[1]


def step_of(folder: Path) -> int:
    return int(read_state(folder / STATE)["step"]) if (folder / STATE).exists() else -1


def test_changed_configuration_is_refused_by_field_until_it_is_allowed(tmp_path: Path) -> None:
    data = {"path": str(write_npz(tmp_path / "images.npz"))}
    folder = tmp_path / "run"
    train(config(data=data), Request(folder))
    other = config(data=data, seed=6, optimiser={"learning_rate": 1e-4, "steps": 6})
    with pytest.raises(
        ConfigError, match=r"optimiser.learning_rate \(0.001 before, 0.0001 now\).*seed \(5 before, 6 now\)"
    ):
        train(other, Request(folder, allow_changes={"optimiser.steps"}))
    train(other, Request(folder, allow_changes={"optimiser.steps", "optimiser.learning_rate", "seed"}))
    assert step_of(folder) == 6


def test_changed_data_are_refused_by_what_changed(tmp_path: Path) -> None:
    path, folder = write_npz(tmp_path / "images.npz"), tmp_path / "run"
    train(config(data={"path": str(path)}), Request(folder))
    write_npz(path, count=12)
    with pytest.raises(ConfigError, match=r"the data have changed .*images \(16 before, 12 now\)"):
        train(config(data={"path": str(path)}), Request(folder))


def test_classifier_of_one_class_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "images.npz", count=1)
    given = config(kind="classifier", data={"path": str(path)}, objective={"label_dropout": 0})
    with pytest.raises(ConfigError, match="needs two classes or more"):
        train(given, Request(tmp_path / "run"))


def test_state_of_another_network_is_named(tmp_path: Path) -> None:
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "run"
    train(config(data=data), Request(folder))
    wider = config(data=data, network={"model_channels": 64})
    with pytest.raises(TrainingError, match=r"state.pt: the state is of another network"):
        train(wider, Request(folder, allow_changes={"network.model_channels"}))


def test_second_process_in_a_folder_is_refused(tmp_path: Path) -> None:
    from runfolder.folder import RunFolderError

    with locked(tmp_path), pytest.raises(RunFolderError, match="another process trains in this folder"):
        train(config(data={"path": str(write_npz(tmp_path / "images.npz"))}), Request(tmp_path))


@pytest.mark.slow
def test_diverging_run_keeps_its_last_good_state_and_continues_with_a_lower_rate(tmp_path: Path) -> None:
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "run"
    wild = config(
        data=data, optimiser={"steps": 8, "learning_rate": 1e30, "warmup_steps": 0}, saving={"state_seconds": 1e-6}
    )
    with pytest.raises(DivergedError):
        train(wild, Request(folder))
    good = read_state(folder / STATE)
    assert all(bool(value.isfinite().all()) for value in good["network"].values())
    tame = config(data=data, optimiser={"steps": 8, "warmup_steps": 0}, saving={"state_seconds": 1e-6})
    train(tame, Request(folder, allow_changes={"optimiser.learning_rate"}))
    assert step_of(folder) == 8


@pytest.mark.slow
def test_advice_names_a_last_good_state_only_if_there_is_one(tmp_path: Path) -> None:
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "run"
    wild = config(data=data, optimiser={"steps": 8, "learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(DivergedError) as diverged:
        train(wild, Request(folder))
    assert not (folder / STATE).exists()
    without = advice(diverged.value, wild, folder)
    assert "it had saved no state yet. Start again with a smaller learning rate" in without
    assert "begins anew" in advice(SaveError("disk full"), wild, folder)
    train(config(data=data), Request(folder))
    assert f"its last good state is kept in {folder / STATE}" in advice(diverged.value, wild, folder)
    assert "resumes from its previous state" in advice(SaveError("disk full"), wild, folder)


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        (RuntimeError("unexpected pos 64 vs 0"), "make room"),  # torch's for a full disk
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "correct that"),
    ],
)
def test_room_is_asked_for_only_on_a_full_disk(tmp_path: Path, cause: Exception, remedy: str) -> None:
    error = SaveError("state.pt: the state of step 8 cannot be saved")
    error.__cause__ = cause
    assert f"; {remedy}, then start again" in advice(error, config(data={"path": "images.npz"}), tmp_path)


@pytest.mark.slow
def test_rewound_run_goes_back_to_a_snapshot_and_ends_the_same(tmp_path: Path) -> None:
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "run"
    given = config(data=data, optimiser={"steps": 6}, saving={"snapshot_steps": 2, "keep_snapshots": 2})
    train(given, Request(folder))
    end = read_state(folder / STATE)
    assert snapshot_steps(folder) == [4, 6]
    with pytest.raises(TrainingError, match=r"no snapshot of step 3 or before; there are: 4, 6"):
        train(given, Request(folder, rewind=3))
    train(given, Request(folder, rewind=5))
    again = read_state(folder / STATE)
    assert all(torch.equal(value, again["network"][name]) for name, value in end["network"].items())
    assert [line["step"] for line in read_lines(folder)] == [2, 4, 6]


@pytest.mark.slow
def test_rewound_run_that_is_killed_at_once_resumes_at_the_snapshot_without_later_ones(tmp_path: Path) -> None:
    """Otherwise the old branch of the run would continue, and its snapshots would count as the newest."""
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "run"
    given = config(data=data, optimiser={"steps": 6}, saving={"snapshot_steps": 2})
    train(given, Request(folder))
    before = (folder / CONFIG).read_bytes()
    halted = given.model_copy(update={"optimiser": given.optimiser.model_copy(update={"learning_rate": 1e38})})
    with pytest.raises(DivergedError):
        train(halted, Request(folder, rewind=2, allow_changes={"optimiser.learning_rate"}))
    assert (step_of(folder), snapshot_steps(folder)) == (2, [2])
    assert (folder / CONFIG).read_bytes() != before


@pytest.mark.slow
def test_refused_start_changes_nothing_of_the_run(tmp_path: Path) -> None:
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "run"
    train(config(data=data), Request(folder))
    before = {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}
    longer = config(data=data, optimiser={"steps": 9})
    with pytest.raises(TrainingError, match="there is no snapshot of step 3 or before; there are: none"):
        train(longer, Request(folder, rewind=3, allow_changes={"optimiser.steps"}))
    assert {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()} == before


@pytest.mark.parametrize("content", [b"", b"hello", bytes(300), b"\x80\x02X"], ids=["empty", "text", "zeros", "cut"])
def test_damaged_state_is_named_with_the_snapshots_to_go_back_to(tmp_path: Path, content: bytes) -> None:
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "run"
    given = config(data=data, optimiser={"steps": 2}, saving={"snapshot_steps": 1})
    train(given, Request(folder))
    (folder / STATE).write_bytes(content)
    with pytest.raises(TrainingError, match=r"state\.pt: the state cannot be read \(.*--rewind STEP \(snapshots: 1, 2"):
        train(given, Request(folder))
    train(given, Request(folder, rewind=2))
    assert step_of(folder) == 2


def test_full_disk_leaves_the_state_before_and_no_part_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    files = StateFiles(tmp_path, 1)
    files.save({"step": 1, "network": {"a": torch.zeros(10)}}, snapshot=False)
    files.finish()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the same error as of a full disk: a write is refused
    try:
        files.save({"step": 2, "network": {"a": torch.zeros(10_000)}}, snapshot=False)
        with pytest.raises(OSError, match="the state of step 2 cannot be saved"):
            files.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_state(tmp_path / STATE)["step"] == 1
    assert [each.name for each in tmp_path.iterdir()] == [STATE]
    assert not snapshot_path(tmp_path, 2).exists()
