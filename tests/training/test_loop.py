"""A run may end at any moment and goes on as if it had not."""

import itertools
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.checkpoint import load_network, read_tensors
from models.unet import UNet
from tests.training.samples import LONG, NETWORK, plan, task, train_for_ever
from training.loop import EMA_FILE, STATE_FILE, Run

STEPS = 4
ROOT = Path(__file__).parents[2]


def finish(run: Run) -> Run:
    for _ in run.ticks():
        pass
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing interrupted."""
    return finish(Run(task(), plan(tmp_path_factory.mktemp("whole"), STEPS)))


def assert_same(run: Run, whole: Run) -> None:
    """Equal bit for bit: weights, average, step, and the file for others to load."""
    assert run.step == whole.step
    for name, value in whole.task.model.state_dict().items():
        assert torch.equal(run.task.model.state_dict()[name], value), name
        assert torch.equal(run.ema.values[name], whole.ema.values[name]), name
    one, other = (read_tensors(each.plan.folder / EMA_FILE) for each in (run, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stops", [[1], [3], [1, 2]])
def test_run_that_is_stopped_and_resumed_equals_one_that_is_not(whole: Run, tmp_path: Path, stops: list[int]) -> None:
    for attempt, stop in enumerate(stops):
        ticks = Run(task(seed=attempt), plan(tmp_path, STEPS)).ticks()
        assert next(tick.step for tick in ticks if tick.step == stop) == stop
        ticks.close()  # type: ignore[attr-defined]  # a generator, announced as an iterator
    assert_same(finish(Run(task(seed=9), plan(tmp_path, STEPS))), whole)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_interrupt_between_weights_and_average_does_not_save_half_a_step(whole: Run, tmp_path: Path) -> None:
    run = Run(task(), plan(tmp_path, STEPS, save_seconds=0))
    for tick in run.ticks():
        if tick.step == 2:
            break
    run.optimizer.register_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        finish(run)
    resumed = Run(task(seed=9), plan(tmp_path, STEPS))
    assert resumed.step == 2
    assert_same(finish(resumed), whole)


def test_interrupt_while_a_preview_is_drawn_saves_what_is_trained(whole: Run, tmp_path: Path) -> None:
    run = Run(task(), plan(tmp_path, STEPS, preview_seconds=0))
    run.task.model.register_forward_hook(lambda module, *_: None if module.training else interrupt())
    with pytest.raises(KeyboardInterrupt):
        finish(run)
    assert_same(finish(Run(task(seed=9), plan(tmp_path, STEPS))), whole)


@pytest.mark.slow
def test_previews_leave_no_trace_in_the_weights(whole: Run, tmp_path: Path) -> None:
    run = finish(Run(task(), plan(tmp_path, STEPS, preview_seconds=0)))
    assert len(list(tmp_path.glob("preview-*.png"))) == STEPS
    assert_same(run, whole)


def test_finished_run_has_nothing_left_to_do(whole: Run) -> None:
    again = Run(task(seed=9), whole.plan)
    assert again.done == 1
    assert list(again.ticks()) == []
    assert_same(again, whole)


def test_run_leaves_a_network_that_loads_and_no_partial_file(whole: Run) -> None:
    folder = whole.plan.folder
    assert {path.name for path in folder.iterdir()} == {STATE_FILE, EMA_FILE}
    network = load_network(folder / EMA_FILE, UNet)
    assert network.config == NETWORK
    for name, value in network.state_dict().items():
        assert torch.equal(value, whole.ema.values[name])


def test_partial_files_of_a_killed_run_are_ignored(whole: Run, tmp_path: Path) -> None:
    ticks = Run(task(), plan(tmp_path, STEPS)).ticks()
    next(ticks)
    ticks.close()  # type: ignore[attr-defined]  # a generator, announced as an iterator
    (tmp_path / f"{STATE_FILE}.partial").write_bytes(b"half of a")
    (tmp_path / "ema.partial").write_bytes(b"")
    assert_same(finish(Run(task(seed=9), plan(tmp_path, STEPS))), whole)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_run_that_is_killed_while_it_saves_leaves_a_whole_state(tmp_path: Path, steps: int) -> None:
    code = f"from tests.training.samples import {train_for_ever.__name__} as go; from pathlib import Path; go(Path())"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in itertools.islice(process.stdout, steps + 1):  # the state of the step before is on disk
            pass
        process.send_signal(signal.SIGKILL)
    resumed = Run(task(seed=9), plan(tmp_path, LONG))
    assert resumed.step >= steps
    again = Run(task(), plan(tmp_path / "again", LONG))
    for _ in itertools.islice(again.ticks(), resumed.step):
        pass
    for name, value in again.ema.values.items():
        assert torch.equal(resumed.ema.values[name], value), name


def poison(run: Run) -> None:
    with torch.no_grad():
        next(iter(run.task.model.parameters())).fill_(torch.nan)


def blow_up(run: Run) -> None:
    last = list(run.task.model.parameters())[-1]
    last.register_hook(lambda gradient: gradient * torch.inf)


@pytest.mark.parametrize(("break_it", "said"), [(poison, "the loss is nan"), (blow_up, "the gradient's norm is")])
def test_run_that_diverges_stops_and_says_at_which_step(
    tmp_path: Path, break_it: Callable[[Run], None], said: str
) -> None:
    run = Run(task(), plan(tmp_path, STEPS))
    ticks = run.ticks()
    next(ticks)
    before = {name: value.clone() for name, value in run.ema.values.items()}
    break_it(run)
    with pytest.raises(FloatingPointError, match=f"^{said}.* at step 1; lower the learning rate"):
        next(ticks)
    assert all(torch.equal(run.ema.values[name], value) for name, value in before.items())


def test_new_run_begins_at_given_weights_and_one_that_has_begun_does_not(whole: Run, tmp_path: Path) -> None:
    weights = whole.plan.folder / EMA_FILE
    run = Run(task(seed=1), plan(tmp_path, steps=1))
    run.start_from(weights)
    begun = read_tensors(weights)
    assert all(torch.equal(value, begun[name]) for name, value in run.ema.values.items())
    finish(run)
    trained = {name: value.clone() for name, value in run.task.model.state_dict().items()}
    run.start_from(weights)
    assert all(torch.equal(value, trained[name]) for name, value in run.task.model.state_dict().items())


def test_ticks_tell_the_share_that_is_done_and_the_parts_of_the_loss(tmp_path: Path) -> None:
    ticks = list(Run(task(), plan(tmp_path, 4)).ticks())
    assert [tick.done for tick in ticks] == [0.25, 0.5, 0.75, 1.0]
    assert all(set(tick.figures) == {"loss", "mse", "vb", "lr"} for tick in ticks)


@pytest.mark.slow
def test_tiny_network_learns_its_few_images(tmp_path: Path) -> None:
    losses = [tick.figures["mse"] for tick in Run(task(), plan(tmp_path, 100)).ticks()]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
