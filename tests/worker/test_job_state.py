"""A job between two steps goes to bytes and back unchanged, and nothing else passes for it."""

from collections.abc import Callable

import pytest
import torch

from engine.trajectory import ImageRequest, ImageState
from jobs.contract.job import ImageRecord
from jobs.contract.request import JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from tests.jobs.samples import DEMO
from worker.job_plans import JobPlan
from worker.job_state import JobState, UnusableCheckpointError, from_bytes, to_bytes

DONE = ImageRecord(index=2, sha256="0" * 64, width=8, height=8, bytes=9, execution_id="earlier")


def request(**fields: object) -> ResolvedRequest:
    return resolve(JobRequest.model_validate({"class_label": 4, "n": 3} | fields), DEMO, lambda: 0)


def state() -> JobState:
    batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # rows share their memory
    upsampled = ImageState(1, 0, batch[1], batch[0], torch.ones(3, 4, 4))
    return JobState(
        images=[DONE],
        errors={2: {"mean_absolute": 1 / 3, "psnr": None}},
        steps_done={0: 3, 1: 5, 2: 9},
        device_seconds=0.1 + 0.2,
        latents={7: batch[0]},
        in_flight={0: ImageState(0, 3, batch[0], torch.zeros(3, 8, 8), None), 1: upsampled},
    )


def plan(images: int, frames: int = 0) -> JobPlan:
    requests = [ImageRequest("job", index, 0, ()) for index in range(images + frames)]
    return JobPlan(requests[frames:], requests[:frames])


def test_state_comes_back_bit_for_bit() -> None:
    before = state()
    after = from_bytes(to_bytes(before.copied(), request(), "numerics"), request(), "numerics")
    for name in ("images", "errors", "steps_done", "device_seconds"):
        assert getattr(after, name) == getattr(before, name)
    assert torch.equal(after.latents[7], before.latents[7])
    assert after.in_flight.keys() == before.in_flight.keys()
    for index, image in before.in_flight.items():
        again = after.in_flight[index]
        assert (again.stage_index, again.row) == (image.stage_index, image.row)
        assert torch.equal(again.x, image.x)
        assert torch.equal(again.memory, image.memory)
        assert (again.low_res is None) == (image.low_res is None)
    assert after.num_bytes == before.num_bytes


def test_size_is_that_of_the_tensors_in_the_file_where_memory_that_is_zero_takes_no_room() -> None:
    data = to_bytes(state().copied(), request(), "numerics")
    assert len(data) - 8 - int.from_bytes(data[:8], "little") == state().num_bytes == 4 * 3 * (8 * 8 * 4 + 4 * 4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b'\\"version\\":1', b'\\"version\\":2'),
        lambda data: data.replace(b"steps_done", b"steps_gone"),
        lambda data: data.replace(b'"x/0"', b'"y/0"'),
        lambda data: data.replace(b"adm-checkpoint", b"adm-checkpaint"),
    ],
)
def test_other_bytes_are_refused(damage: Callable[[bytes], bytes]) -> None:
    data = to_bytes(state().copied(), request(), "numerics")
    assert damage(data) != data
    with pytest.raises(UnusableCheckpointError):
        from_bytes(damage(data), request(), "numerics")


def test_other_numerics_and_other_requests_are_refused() -> None:
    data = to_bytes(state().copied(), request(), "numerics")
    for asked, numerics in ((request(), "others"), (request(seed=9), "numerics")):
        with pytest.raises(UnusableCheckpointError):
            from_bytes(data, asked, numerics)


@pytest.mark.parametrize(
    ("images", "frames", "stored", "in_flight", "latents", "fits"),
    [
        (3, 0, [2], [0, 1], [], True),
        (3, 0, [], [0, 1, 2], [], True),
        (3, 0, [], [0, 1], [], False),
        (3, 0, [0, 1, 2], [], [], False),
        (3, 0, [2], [0, 1, 3], [], False),
        (2, 4, [], [4, 5], [], True),
        (2, 4, [], [5], [4], True),
        (2, 4, [], [5], [], False),
        (2, 4, [], [0, 1, 2, 3], [], True),
        (2, 4, [3], [0, 1, 2], [], True),
        (2, 4, [3], [0, 1], [], False),
        (2, 4, [], [0, 5], [4], False),
    ],
)
def test_state_fits_a_plan_of_which_nothing_is_missing(
    images: int, frames: int, stored: list[int], in_flight: list[int], latents: list[int], fits: bool
) -> None:
    x = torch.zeros(1)
    job = JobState(
        [DONE.model_copy(update={"index": index}) for index in stored],
        {},
        {},
        0.0,
        dict.fromkeys(latents, x),
        dict.fromkeys(in_flight, ImageState(0, 0, x, x, None)),
    )
    assert job.fits(plan(images, frames)) is fits
