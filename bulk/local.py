"""Makes chunks on the devices of this machine: one device in this process, several in one process each.

A device runs a worker without a queue (`worker.local_worker`), which is passed in, because this package must not
import the worker's.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, NamedTuple, Protocol

from bulk.base_samples import BaseSamples
from bulk.chunks import Chunk
from bulk.errors import BulkError, OptionError
from bulk.outputs import Output
from bulk.source import ChunkWork, of_chunk
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import ResolvedRequest
from jobs.settings import Settings

DEPTH = 2  # the engine's images, as a multiple of a full batch: both stages then have full batches, as in a worker
STOP_SECONDS = 5.0


class Maker(Protocol):
    """Pipelines on one device."""

    def numerics_of(self, model: str) -> str: ...

    @property
    def max_rows(self) -> int: ...

    @property
    def rows_in_flight(self) -> int: ...

    def add(self, job_id: str, request: ResolvedRequest, pictures: Mapping[str, bytes]) -> None:
        """Let the images of a request join the next step; pictures: pixels by their names in the request."""

    def step(self) -> Sequence[tuple[str, int, bytes]] | None:
        """Take a step; return job, index and pixels of each finished image, or None if no image is left.

        Raises: the error of a failed step.
        """


OpenMaker = Callable[[Settings, str], Maker]
"""Loads the settings' pipelines on a device. A module-level function, because other processes call it."""


@dataclass(frozen=True)
class Local:
    """The devices of this machine. refusals: errors that are shown in one line."""

    settings: Settings
    devices: Sequence[str]
    pipeline_of: Callable[[Settings, str], PipelineInfo]
    open_maker: OpenMaker
    refusals: tuple[type[Exception], ...] = ()

    def describe(self, model: str) -> PipelineInfo:
        try:
            return self.pipeline_of(self.settings, model)
        except self.refusals as error:
            raise OptionError(("--model", str(error))) from error

    def make(self, work: ChunkWork) -> None:
        settings = self.settings.model_copy(update={"pipelines": (work.request.model,)})
        work.on_note("loading")
        if len(self.devices) > 1:
            Devices(settings, self, work).run()
            return
        try:
            self._make_here(settings, work)
        except self.refusals as error:
            raise BulkError(f"{self.devices[0]}: {error}") from error

    def _make_here(self, settings: Settings, work: ChunkWork) -> None:
        maker = self.open_maker(settings, self.devices[0])
        work.on_numerics(maker.numerics_of(work.request.model))
        work.on_note("")

        def keep(chunk: Chunk, images: list[bytes]) -> None:
            work.output.keep(chunk, images, work.size)
            work.on_images(len(images))

        make_chunks(maker, work.request, work.base, lambda: next(work.chunks, None), keep)


class Task(NamedTuple):
    """A job for a maker: a request, its number of images, and the function that gets all images once they are made."""

    job_id: str
    request: ResolvedRequest
    pictures: Mapping[str, bytes]
    images: int
    keep: Callable[[list[bytes]], None]


def make_chunks(
    maker: Maker,
    request: ResolvedRequest,
    base: BaseSamples | None,
    take: Callable[[], Chunk | None],
    keep: Callable[[Chunk, list[bytes]], None],
) -> None:
    """Run chunks until there are no more."""

    def next_task() -> Task | None:
        if (chunk := take()) is None:
            return None
        pictures = base.pictures(chunk) if base else {}
        return Task(chunk.name, of_chunk(request, chunk), pictures, len(chunk.indices), partial(keep, chunk))

    run_tasks(maker, next_task)


def run_tasks(maker: Maker, take: Callable[[], Task | None]) -> None:
    """Run tasks until there are no more; each joins as soon as there is room, so that batches stay full."""
    running: dict[str, tuple[Task, dict[int, bytes]]] = {}
    more = True
    while True:
        while more and maker.rows_in_flight < DEPTH * maker.max_rows:
            task = take()
            if task is None:
                more = False
            else:
                running[task.job_id] = task, {}
                maker.add(task.job_id, task.request, task.pictures)
        finished = maker.step()
        if finished is None:
            return
        for job_id, row, pixels in finished:
            task, rows = running[job_id]
            rows[row] = pixels
            if len(rows) == task.images:
                del running[job_id]
                task.keep([rows[each] for each in range(len(rows))])


class Devices:
    """One process per device. They request chunks as they have room, so a faster device makes more."""

    def __init__(self, settings: Settings, local: Local, work: ChunkWork) -> None:
        self._work = work
        self._processes: dict[Connection, tuple[str, BaseProcess]] = {}
        context = get_context("spawn")  # CUDA does not survive a fork
        for device in local.devices:
            ours, theirs = context.Pipe()
            shown: tuple[type[Exception], ...] = (OSError, *local.refusals)
            job = DeviceJob(local.open_maker, settings, device, work.request, work.base, work.output, work.size, shown)
            process = context.Process(target=run_device, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()  # otherwise the end of the process would not be noticed
            self._processes[ours] = device, process

    def run(self) -> None:
        """Answer requests until all processes have ended. Raises: BulkError if one fails."""
        try:
            while self._processes:
                for connection in wait(list(self._processes)):
                    assert isinstance(connection, Connection)
                    self._answer(connection)
        finally:
            for _, process in self._processes.values():
                process.terminate()
            for _, process in self._processes.values():
                process.join(STOP_SECONDS)
                process.kill()

    def _answer(self, connection: Connection) -> None:
        try:
            message: tuple[str, Any] = connection.recv()
        except EOFError:
            device, process = self._processes.pop(connection)
            process.join()
            if process.exitcode:
                raise BulkError(f"the process of {device} ended with status {process.exitcode}") from None
            return
        match message:
            case ("take", _):
                connection.send(next(self._work.chunks, None))
            case ("kept", images):
                self._work.on_images(images)
            case ("loaded", numerics):
                self._work.on_numerics(numerics)
                self._work.on_note("")
            case ("failed", detail):
                raise BulkError(f"{self._processes[connection][0]}: {detail}")


@dataclass(frozen=True)
class DeviceJob:
    """The arguments of a device's process."""

    open_maker: OpenMaker
    settings: Settings
    device: str
    request: ResolvedRequest
    base: BaseSamples | None
    output: Output
    size: int
    refusals: tuple[type[Exception], ...]


def run_device(job: DeviceJob, connection: Connection) -> None:
    """The main function of a device's process: requests chunks, stores their images, and reports them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    Thread(target=end_with_parent, daemon=True).start()

    def take() -> Chunk | None:
        connection.send(("take", None))
        chunk: Chunk | None = connection.recv()
        return chunk

    def keep(chunk: Chunk, images: list[bytes]) -> None:
        job.output.keep(chunk, images, job.size)
        connection.send(("kept", len(images)))

    try:
        maker = job.open_maker(job.settings, job.device)
        connection.send(("loaded", maker.numerics_of(job.request.model)))
        make_chunks(maker, job.request, job.base, take, keep)
    except job.refusals as error:
        connection.send(("failed", str(error)))


def end_with_parent() -> None:
    """Exit if the parent has been killed; unfinished files have temporary names."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
