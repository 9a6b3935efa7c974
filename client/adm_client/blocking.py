"""The blocking client."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack
from uuid import uuid4

import httpx2

from adm_client import calls
from adm_client.calls import Call
from adm_client.errors import JobFailedError, RefusedError
from adm_client.events import SILENT_SECONDS, Decoder, Event
from adm_client.fields import Axis, JobFields, JobFilter, Picture
from adm_client.grids import Grid
from adm_client.models import File, JobPage, JobState, Model, PipelineChange, Status
from adm_client.patience import ASK_LATER, USUAL, Attempts, Patience
from adm_client.pictures import Images, checked

T = TypeVar("T")


class Client:
    """The client of a service; several threads may use one client.

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
        self._http = httpx2.Client(**calls.connection(url, api_key, timeout))
        self._patience, self._on_wait = patience, on_wait

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(self, **fields: Unpack[JobFields]) -> Images:
        """Make images, of any `kind`, and return them. Raises: JobFailedError."""
        return self.submit(**fields).wait().images()

    def submit(self, *, idempotency_key: str | None = None, **fields: Unpack[JobFields]) -> "Job":
        """Queue a job; pictures among its `images` are uploaded first.

        idempotency_key: the same key and fields give the same job; by default each call makes a new key, so that
        its retries queue only one job.
        """
        body: dict[str, Any] = dict(fields)
        if body.get("images") is not None:
            body["images"] = [each if isinstance(each, str) else self.upload(each).id for each in body["images"]]
        return self.submit_as(idempotency_key or str(uuid4()), body)

    def submit_many(
        self, items: Sequence[JobFields], *, idempotency_key: str | None = None, **common: Unpack[JobFields]
    ) -> "list[Job]":
        """Queue a job for each of the items, all of them or none; common fields apply to items that lack them.

        Pictures must be given as file ids.
        """
        given = calls.submit_many([dict(each) for each in items], dict(common), idempotency_key or str(uuid4()))
        return [Job(self, each) for each in self.send(given)]

    def submit_as(self, idempotency_key: str, body: Mapping[str, Any]) -> "Job":
        """Queue a job with a given body."""
        return Job(self, self.send(calls.submit(body, idempotency_key)))

    def grid(
        self, x: Axis, y: Axis | None = None, *, idempotency_key: str | None = None, **fields: Unpack[JobFields]
    ) -> Grid:
        """Queue a job for each pair of values, all or none: x={"guidance_scale": [0, 2]}, y={"steps": [10, 25]}.

        Pictures, if the kind needs one, must be given as file ids.
        """
        given = calls.create_grid(x, y, dict(fields), idempotency_key or str(uuid4()))
        return Grid(self, self.send(given))

    def grid_of(self, grid_id: str) -> Grid:
        """An existing grid."""
        return Grid(self, self.send(calls.grid(grid_id)))

    def job(self, job_id: str) -> "Job":
        return Job(self, self.send(calls.job(job_id)))

    def jobs(
        self,
        status: Status | str | None = None,
        limit: int = 20,
        after: str | None = None,
        **wanted: Unpack[JobFilter],
    ) -> JobPage:
        """A page of jobs, newest first. With a filter it may be short, or empty, although its `next` leads to more."""
        return self.send(calls.jobs(status, limit, after, wanted))

    def upload(self, picture: Picture) -> File:
        return self.send(calls.upload(calls.encoded(picture)))

    def delete(self, job_id: str) -> None:
        """Remove a job and its images, cancelling it if needed."""
        self.send(calls.delete(job_id))

    def delete_file(self, file_id: str) -> None:
        self.send(calls.delete_file(file_id))

    def models(self) -> list[Model]:
        return self.send(calls.models())

    def model(self, name: str) -> Model:
        return self.send(calls.model(name))

    def load_model(self, name: str, worker: str | None = None) -> PipelineChange:
        """For operators: let one worker or all load a pipeline; `pipeline_change` returns their progress."""
        return self.send(calls.change_pipelines("load", name, worker))

    def unload_model(self, name: str, worker: str | None = None) -> PipelineChange:
        """For operators: let one worker, or all that serve it, unload a pipeline."""
        return self.send(calls.change_pipelines("unload", name, worker))

    def pipeline_change(self, change_id: str) -> PipelineChange:
        return self.send(calls.pipeline_change(change_id))

    def request_from_image(self, png: Picture) -> dict[str, Any]:
        """The fields that reproduce an image of the service."""
        return self.send(calls.request_from_image(calls.encoded(png)))

    def send(self, call: Call[T]) -> T:
        """Make a call, with retries where they are useful and safe."""
        attempts = Attempts(self._patience, self._on_wait)
        while True:
            try:
                response = self._http.request(
                    call.method, call.path, params=dict(call.params), headers=dict(call.headers), content=call.content
                )
            except httpx2.TransportError as error:
                pause = attempts.after_error(error, repeatable=call.repeatable)
            else:
                if response.status_code not in ASK_LATER:
                    attempts.answered()
                    return call.answer(response)
                pause = attempts.after_refusal(response)
            time.sleep(pause)

    def events(self, job_id: str) -> Iterator[Event]:
        """All events of a job, up to its last; a broken connection is resumed at its last event."""
        attempts, last_id = Attempts(self._patience, self._on_wait), ""
        timeout = httpx2.Timeout(SILENT_SECONDS)
        while True:
            headers: Mapping[str, str] = {"Last-Event-ID": last_id} if last_id else {}
            try:
                with self._http.stream(
                    "GET", f"/v1/jobs/{job_id}/events", headers=dict(headers), timeout=timeout
                ) as response:
                    if response.status_code == httpx2.codes.NO_CONTENT:
                        return
                    if response.is_success:
                        decoder = Decoder()
                        for line in response.iter_lines():
                            if (event := decoder.feed(line)) is not None:
                                attempts.answered()
                                last_id = event.id or last_id
                                yield event
                                if event.is_final:
                                    return
                        raise httpx2.RemoteProtocolError("the stream was cut")
                    response.read()
                    if response.status_code not in ASK_LATER:
                        raise RefusedError.of(response)
                    pause = attempts.after_refusal(response)
            except httpx2.TransportError as error:
                pause = attempts.after_error(error, repeatable=True)
            time.sleep(pause)


class Job:
    """A job at the service; `state` is its last known state."""

    def __init__(self, client: Client, state: JobState) -> None:
        self._client, self.state = client, state

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.status}>"

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def status(self) -> Status:
        return self.state.status

    def refresh(self, wait_seconds: int = 0) -> "Job":
        """Read its state; with wait_seconds, the service answers when the job has ended or after that time."""
        self.state = self._client.send(calls.job(self.id, wait_seconds))
        return self

    def wait(self, timeout: float | None = None) -> "Job":
        """Return when it has ended, in any way. Raises: TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.status.is_final:
            left = calls.MAX_WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {self.id} is {self.status} after {timeout:g} s")
            self.refresh(max(1, min(calls.MAX_WAIT_SECONDS, int(left))))
        return self

    def images(self) -> Images:
        """Its images. Raises: JobFailedError unless it is completed; DamagedError."""
        if self.status is not Status.COMPLETED:
            raise JobFailedError(self.state)
        return Images(self.state, [self.png(each.index) for each in self.state.images])

    def png(self, index: int) -> bytes:
        """The bytes of one of its images, which may be available before the job ends. Raises: DamagedError."""
        png = self._client.send(calls.image(self.id, index))
        announced = next((each for each in self.state.images if each.index == index), None)
        return png if announced is None else checked(png, announced)

    def save(self, folder: str | Path) -> list[Path]:
        """Write its images into a folder, as ID-INDEX.png."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.id}-{each.index}.png" for each in self.state.images]
        for path, image in zip(paths, self.state.images, strict=True):
            path.write_bytes(self.png(image.index))
        return paths

    def cancel(self) -> "Job":
        """Cancel it: at once if it is queued, between two steps if it runs."""
        self.state = self._client.send(calls.cancel(self.id))
        return self

    def delete(self) -> None:
        """Remove it and its images, cancelling it if needed."""
        self._client.send(calls.delete(self.id))

    def __iter__(self) -> Iterator[Event]:
        """All its events, up to the last; after that `state` is final."""
        for event in self._client.events(self.id):
            yield event
            if event.is_final and not event.data.get("deleted"):
                self.refresh()

    def _repr_png_(self) -> bytes | None:
        """The PNG that a notebook shows: the job's images, once it is completed."""
        return self.images()._repr_png_() if self.status is Status.COMPLETED else None
