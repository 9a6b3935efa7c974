"""Makes chunks by the service: a sliding window of low-priority jobs, each with its own idempotency key.

The key is derived from the run's id and the chunk, so after a lost reply or a kill the run finds its posted job and
posts no other. A job is deleted when its images are stored, so the service has only a window of the run's jobs.
"""

import asyncio
import io
import math
from collections.abc import Awaitable
from dataclasses import dataclass

from PIL import Image
from pydantic import SecretStr

from adm_client import (
    AsyncClient,
    AsyncJob,
    Client,
    ClientError,
    DamagedError,
    JobState,
    Patience,
    RefusedError,
    SettingError,
    Status,
    UnreachableError,
)
from bulk.base_samples import BaseSamples
from bulk.chunks import IMAGES_PER_CHUNK, Chunk
from bulk.errors import BulkError, OptionError
from bulk.source import ChunkWork, body_of, of_chunk
from jobs.contract.pipelines import PipelineInfo

ATTEMPTS = 3  # failures of one chunk's jobs before the run fails
WAIT_SECONDS = 30  # of a poll
NOT_FOUND = 404
AT_ONCE = Patience(silent_seconds=0, busy_seconds=0)
WITHOUT_SERVICE = "adm up starts one; without one, adm sample has --local, and adm evaluate has local:PIPELINE"
PATIENCE = Patience(silent_seconds=600, busy_seconds=math.inf)  # a full queue empties by itself


@dataclass(frozen=True)
class Remote:
    """A service, and the number of images that a run requests from it at a time, rounded up to whole jobs."""

    url: str
    window: int
    key: SecretStr | None = None

    def describe(self, model: str) -> PipelineInfo:
        try:
            with Client(self.url, self._key, patience=AT_ONCE) as client:
                try:
                    found = client.model(model)
                except RefusedError as error:
                    if error.status != NOT_FOUND:
                        raise
                    there = ", ".join(each.id for each in client.models()) or "none yet, because no worker has started"
                    raise OptionError(("--model", f"unknown pipeline {model!r}; there are: {there}")) from error
        except UnreachableError as error:
            raise BulkError(f"--url {self.url}: {error}; {WITHOUT_SERVICE}") from error
        except SettingError as error:  # it names the argument of the client, or the key
            raise BulkError(str(error).replace("url: ", "--url: ", 1)) from error
        except ClientError as error:
            raise BulkError(f"--url {self.url}: the service answers {error}") from error
        return PipelineInfo.model_validate_json(found.model_dump_json())

    def make(self, work: ChunkWork) -> None:
        asyncio.run(self._make(work))

    async def _make(self, work: ChunkWork) -> None:
        def note(waited_for: str) -> None:
            work.on_note(f"waiting: {waited_for}" if waited_for else "")

        async with AsyncClient(self.url, self._key, patience=PATIENCE, on_wait=note) as client:
            service = Service(client, work)
            slots = [asyncio.create_task(service.work_off()) for _ in range(-(-self.window // IMAGES_PER_CHUNK))]
            try:
                await asyncio.gather(*slots)
            except ClientError as error:
                raise BulkError(f"the service: {error}") from error
            finally:
                for each in slots:
                    each.cancel()
                await asyncio.gather(*slots, return_exceptions=True)

    @property
    def _key(self) -> str | None:
        return None if self.key is None else self.key.get_secret_value()


class Service:
    """One run's jobs at a service."""

    def __init__(self, client: AsyncClient, work: ChunkWork) -> None:
        self._client, self._work = client, work

    async def work_off(self) -> None:
        """Fill one slot of the window: make one chunk after another until none is left."""
        for chunk in self._work.chunks:
            job, images = await self._make(chunk)
            self._work.on_numerics(job.numerics or "")
            self._work.output.note_job(chunk, job.id)
            self._work.output.keep(chunk, images, self._work.size)
            self._work.on_images(len(images))
            await self._delete(job.id)
            for file_id in job.request.images if job.request is not None else ():
                await if_there(self._client.delete_file(file_id))

    async def _make(self, chunk: Chunk) -> tuple[JobState, list[bytes]]:
        """A chunk's completed job and its images. Raises: BulkError after ATTEMPTS failures."""
        failures = 0
        while True:
            job = await self._post(chunk)
            if there := await self._at_end(job):
                images = await self._fetch(job) if job.status is Status.COMPLETED else []
                if len(images) == len(chunk.indices):
                    return job.state, images
            await self._delete(job.id)  # a deleted job leaves its key free for another try
            if job.status is Status.EXPIRED:
                continue  # it waited too long, which is not a failure
            failures += 1
            reason = reason_of(job.state) if there else "somebody deleted it"
            reason = f"{reason} (class {chunk.class_label}, seed {chunk.seed})"
            if failures == ATTEMPTS:
                raise BulkError(f"job {job.id}, tried {ATTEMPTS} times: {reason}")
            self._work.on_note(f"trying again, job {job.id}: {reason}")

    async def _post(self, chunk: Chunk) -> AsyncJob:
        request = of_chunk(self._work.request, chunk)
        if self._work.base is not None:
            request = request.model_copy(update={"images": await self._upload(self._work.base, chunk)})
        # with the chunk's size, because a run that is extended makes its incomplete chunks larger
        key = f"adm-sample-{self._work.run_id}-{chunk.name}-{len(chunk.indices)}"
        return await self._client.submit_as(key, body_of(request))

    async def _upload(self, base: BaseSamples, chunk: Chunk) -> list[str]:
        """Upload the pictures that a chunk starts from; return the files' ids."""
        pictures = [Image.frombytes("RGB", (base.size, base.size), pixels) for pixels in base.pictures(chunk).values()]
        return [(await self._client.upload(each)).id for each in pictures]

    async def _at_end(self, job: AsyncJob) -> bool:
        """Wait until a job has ended; False if it no longer exists."""
        while not job.status.is_final:
            if job.state.queue is not None and job.state.queue.workers == 0:
                self._work.on_note("waiting: no worker serves the pipeline")
            try:
                await job.refresh(WAIT_SECONDS)
            except RefusedError as error:
                if error.status != NOT_FOUND:
                    raise
                return False
        return True

    async def _fetch(self, job: AsyncJob) -> list[bytes]:
        """The pixels of the images that arrive intact."""
        found = []
        for image in job.state.images:
            try:
                png = await job.png(image.index)
            except (RefusedError, DamagedError):
                continue
            with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
                if picture.size == (self._work.size, self._work.size):
                    found.append(picture.convert("RGB").tobytes())
        return found

    async def _delete(self, job_id: str) -> None:
        await if_there(self._client.delete(job_id))


async def if_there(call: Awaitable[None]) -> None:
    """Await a call that deletes something; ignore that it no longer exists."""
    try:
        await call
    except RefusedError as error:
        if error.status != NOT_FOUND:
            raise


def reason_of(job: JobState) -> str:
    """The reason why images of a job are missing."""
    if job.error is not None:
        return job.error.detail
    return "its images did not arrive whole" if job.status is Status.COMPLETED else f"it was {job.status}"
