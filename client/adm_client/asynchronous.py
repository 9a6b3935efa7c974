"""The client for asyncio; `adm_client.blocking` documents the calls."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack
from uuid import uuid4

import httpx2

from adm_client import calls
from adm_client.calls import Call
from adm_client.errors import JobFailedError, RefusedError
from adm_client.events import SILENT_SECONDS, Decoder, Event
from adm_client.fields import Axis, JobFields, JobFilter, Picture
from adm_client.grids import AsyncGrid
from adm_client.models import File, JobPage, JobState, Model, PipelineChange, Status
from adm_client.patience import ASK_LATER, USUAL, Attempts, Patience
from adm_client.pictures import Images, checked

T = TypeVar("T")


class AsyncClient:
    """The client of a service, for the tasks of one event loop.

    url: by default that of ADM_HOST and ADM_PORT, or http://127.0.0.1:8000; api_key: ADM_API_KEY by default.
    timeout: seconds of one attempt at a call. on_wait gets the reason of a wait, and "" at its end.
    Every call raises RefusedError and, after `patience`, UnreachableError.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 90.0,
        patience: Patience = USUAL,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._http = httpx2.AsyncClient(**calls.connection(url, api_key, timeout))
        self._patience, self._on_wait = patience, on_wait

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def generate(self, **fields: Unpack[JobFields]) -> Images:
        """Make images, of any `kind`, and return them. Raises: JobFailedError."""
        return await (await (await self.submit(**fields)).wait()).images()

    async def submit(self, *, idempotency_key: str | None = None, **fields: Unpack[JobFields]) -> "AsyncJob":
        """Queue a job; pictures among its `images` are uploaded first.

        idempotency_key: the same key and fields give the same job; by default each call makes a new key, so that
        its retries queue only one job.
        """
        body: dict[str, Any] = dict(fields)
        if body.get("images") is not None:
            body["images"] = [
                each if isinstance(each, str) else (await self.upload(each)).id for each in body["images"]
            ]
        return await self.submit_as(idempotency_key or str(uuid4()), body)

    async def submit_many(
        self, items: Sequence[JobFields], *, idempotency_key: str | None = None, **common: Unpack[JobFields]
    ) -> "list[AsyncJob]":
        """Queue a job for each of the items, all of them or none; common fields apply to items that lack them.

        Pictures must be given as file ids.
        """
        given = calls.submit_many([dict(each) for each in items], dict(common), idempotency_key or str(uuid4()))
        return [AsyncJob(self, each) for each in await self.send(given)]

    async def submit_as(self, idempotency_key: str, body: Mapping[str, Any]) -> "AsyncJob":
        """Queue a job with a given body."""
        return AsyncJob(self, await self.send(calls.submit(body, idempotency_key)))

    async def grid(
        self, x: Axis, y: Axis | None = None, *, idempotency_key: str | None = None, **fields: Unpack[JobFields]
    ) -> AsyncGrid:
        """Queue a job for each pair of values, all or none: x={"guidance_scale": [0, 2]}, y={"steps": [10, 25]}.

        Pictures, if the kind needs one, must be given as file ids.
        """
        given = calls.create_grid(x, y, dict(fields), idempotency_key or str(uuid4()))
        return AsyncGrid(self, await self.send(given))

    async def grid_of(self, grid_id: str) -> AsyncGrid:
        """An existing grid."""
        return AsyncGrid(self, await self.send(calls.grid(grid_id)))

    async def job(self, job_id: str) -> "AsyncJob":
        return AsyncJob(self, await self.send(calls.job(job_id)))

    async def jobs(
        self,
        status: Status | str | None = None,
        limit: int = 20,
        after: str | None = None,
        **wanted: Unpack[JobFilter],
    ) -> JobPage:
        """A page of jobs, newest first. With a filter it may be short, or empty, although its `next` leads to more."""
        return await self.send(calls.jobs(status, limit, after, wanted))

    async def upload(self, picture: Picture) -> File:
        return await self.send(calls.upload(calls.encoded(picture)))

    async def delete(self, job_id: str) -> None:
        """Remove a job and its images, cancelling it if needed."""
        await self.send(calls.delete(job_id))

    async def delete_file(self, file_id: str) -> None:
        await self.send(calls.delete_file(file_id))

    async def models(self) -> list[Model]:
        return await self.send(calls.models())

    async def model(self, name: str) -> Model:
        return await self.send(calls.model(name))

    async def load_model(self, name: str, worker: str | None = None) -> PipelineChange:
        """For operators: let one worker or all load a pipeline; `pipeline_change` returns their progress."""
        return await self.send(calls.change_pipelines("load", name, worker))

    async def unload_model(self, name: str, worker: str | None = None) -> PipelineChange:
        """For operators: let one worker, or all that serve it, unload a pipeline."""
        return await self.send(calls.change_pipelines("unload", name, worker))

    async def pipeline_change(self, change_id: str) -> PipelineChange:
        return await self.send(calls.pipeline_change(change_id))

    async def request_from_image(self, png: Picture) -> dict[str, Any]:
        """The fields that reproduce an image of the service."""
        return await self.send(calls.request_from_image(calls.encoded(png)))

    async def send(self, call: Call[T]) -> T:
        """Make a call, with retries where they are useful and safe."""
        attempts = Attempts(self._patience, self._on_wait)
        while True:
            try:
                response = await self._http.request(
                    call.method, call.path, params=dict(call.params), headers=dict(call.headers), content=call.content
                )
            except httpx2.TransportError as error:
                pause = attempts.after_error(error, repeatable=call.repeatable)
            else:
                if response.status_code not in ASK_LATER:
                    attempts.answered()
                    return call.answer(response)
                pause = attempts.after_refusal(response)
            await asyncio.sleep(pause)

    async def events(self, job_id: str) -> AsyncIterator[Event]:
        """All events of a job, up to its last; a broken connection is resumed at its last event."""
        attempts, last_id = Attempts(self._patience, self._on_wait), ""
        timeout = httpx2.Timeout(SILENT_SECONDS)
        while True:
            headers: Mapping[str, str] = {"Last-Event-ID": last_id} if last_id else {}
            try:
                async with self._http.stream(
                    "GET", f"/v1/jobs/{job_id}/events", headers=dict(headers), timeout=timeout
                ) as response:
                    if response.status_code == httpx2.codes.NO_CONTENT:
                        return
                    if response.is_success:
                        decoder = Decoder()
                        async for line in response.aiter_lines():
                            if (event := decoder.feed(line)) is not None:
                                attempts.answered()
                                last_id = event.id or last_id
                                yield event
                                if event.is_final:
                                    return
                        raise httpx2.RemoteProtocolError("the stream was cut")
                    await response.aread()
                    if response.status_code not in ASK_LATER:
                        raise RefusedError.of(response)
                    pause = attempts.after_refusal(response)
            except httpx2.TransportError as error:
                pause = attempts.after_error(error, repeatable=True)
            await asyncio.sleep(pause)


class AsyncJob:
    """A job at the service; `state` is its last known state."""

    def __init__(self, client: AsyncClient, state: JobState) -> None:
        self._client, self.state = client, state

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.status}>"

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def status(self) -> Status:
        return self.state.status

    async def refresh(self, wait_seconds: int = 0) -> "AsyncJob":
        """Read its state; with wait_seconds, the service answers when the job has ended or after that time."""
        self.state = await self._client.send(calls.job(self.id, wait_seconds))
        return self

    async def wait(self) -> "AsyncJob":
        """Return when it has ended, in any way; `asyncio.timeout` can limit the wait."""
        while not self.status.is_final:
            await self.refresh(calls.MAX_WAIT_SECONDS)
        return self

    async def images(self) -> Images:
        """Its images. Raises: JobFailedError unless it is completed; DamagedError."""
        if self.status is not Status.COMPLETED:
            raise JobFailedError(self.state)
        return Images(self.state, [await self.png(each.index) for each in self.state.images])

    async def png(self, index: int) -> bytes:
        """The bytes of one of its images, which may be available before the job ends. Raises: DamagedError."""
        png = await self._client.send(calls.image(self.id, index))
        announced = next((each for each in self.state.images if each.index == index), None)
        return png if announced is None else checked(png, announced)

    async def cancel(self) -> "AsyncJob":
        """Cancel it: at once if it is queued, between two steps if it runs."""
        self.state = await self._client.send(calls.cancel(self.id))
        return self

    async def delete(self) -> None:
        """Remove it and its images, cancelling it if needed."""
        await self._client.send(calls.delete(self.id))

    async def __aiter__(self) -> AsyncIterator[Event]:
        """All its events, up to the last; after that `state` is final."""
        async for event in self._client.events(self.id):
            yield event
            if event.is_final and not event.data.get("deleted"):
                await self.refresh()
