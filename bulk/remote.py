"""Chunks made by the service: a sliding window of low-priority jobs, each posted under a key of its own.

The key is drawn from the run's id and the chunk, so a reply that was lost, or a run that was killed and goes on, finds
the job that it posted and posts no other. A job is deleted once its images are kept: the service holds a window of
them and not the run.
"""

import asyncio
import hashlib
import io
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from PIL import Image
from pydantic import SecretStr

from bulk.base_samples import BaseSamples
from bulk.errors import BulkError
from bulk.plan import IMAGES_PER_CHUNK, Chunk
from bulk.source import Work, body_of, of_chunk
from jobs.contract.job import FINAL_STATUSES
from jobs.contract.pipelines import PipelineInfo

ATTEMPTS = 3  # at a job that fails, before the run does
WAIT_SECONDS = 30  # of a poll
REQUEST_SECONDS = 60.0
PAUSE_SECONDS = 2.0  # before asking again a service that does not answer
PATIENCE_SECONDS = 600.0  # with a service that does not answer
MOST_PAUSE_SECONDS = 60.0
ASK_LATER = frozenset({429, 502, 503, 504})
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Remote:
    """A service, and how many images of the run it has at a time, rounded up to whole jobs."""

    url: str
    window: int
    key: SecretStr | None = None

    def describe(self, model: str) -> PipelineInfo:
        try:
            with httpx2.Client(**self._options) as client:
                response = client.get(f"/v1/models/{model}")
                known = client.get("/v1/models") if response.status_code == httpx2.codes.NOT_FOUND else response
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise BulkError(f"--url: no service answers at {self.url} ({error}); --local needs none") from error
        if response.status_code == httpx2.codes.NOT_FOUND and known.status_code == httpx2.codes.OK:
            there = ", ".join(each["id"] for each in known.json()["data"]) or "none yet, for no worker has started"
            raise BulkError(f"--model: unknown pipeline {model!r}; there are: {there}")
        if response.status_code != httpx2.codes.OK:
            raise BulkError(f"--url: {self.url} {refusal(response)}")
        return PipelineInfo.model_validate_json(response.content)

    def make(self, work: Work) -> None:
        asyncio.run(self._make(work))

    async def _make(self, work: Work) -> None:
        async with httpx2.AsyncClient(**self._options) as client:
            service = Service(client, work)
            slots = [asyncio.create_task(service.work_off()) for _ in range(-(-self.window // IMAGES_PER_CHUNK))]
            try:
                await asyncio.gather(*slots)
            finally:
                for each in slots:
                    each.cancel()
                await asyncio.gather(*slots, return_exceptions=True)

    @property
    def _options(self) -> dict[str, Any]:
        """What clients of the service are made with."""
        # an environment's proxy would look for loopback on its own machine
        by_proxy = urlsplit(self.url).hostname not in LOOPBACK
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key.get_secret_value()}"}
        return {"base_url": self.url, "timeout": REQUEST_SECONDS, "trust_env": by_proxy, "headers": headers}


class Service:
    """One run's jobs at a service."""

    def __init__(self, client: httpx2.AsyncClient, work: Work) -> None:
        self._client, self._work = client, work
        self._silent_since: float | None = None

    async def work_off(self) -> None:
        """One place of the window: chunk after chunk, until there are no more."""
        for chunk in self._work.chunks:
            job, images = await self._make(chunk)
            self._work.on_numerics(job["numerics"])
            self._work.output.note_job(chunk, job["id"])
            self._work.output.keep(chunk, images, self._work.size)
            self._work.on_images(len(images))
            await self._delete(job)
            for file_id in job["request"]["images"] or ():
                await self._ask("DELETE", f"/v1/files/{file_id}")

    async def _make(self, chunk: Chunk) -> tuple[dict[str, Any], list[bytes]]:
        """A chunk's job, completed, and its images. Raises: BulkError when it fails again and again."""
        failures = 0
        while True:
            job = await self._at_end(await self._post(chunk))
            if job["status"] == "completed":
                images = [await self._fetch(image) for image in job["images"]]
                whole = [each for each in images if each is not None]
                if len(whole) == len(chunk.indices):
                    return job, whole
            # Gone from the service, the job leaves its key free for another try.
            await self._delete(job)
            if job["status"] == "expired":
                continue  # it waited too long; nothing is wrong with it
            failures += 1
            reason = f"{reason_of(job)} (class {chunk.class_label}, seed {chunk.seed})"
            if failures == ATTEMPTS:
                raise BulkError(f"job {job['id']}, tried {ATTEMPTS} times: {reason}")
            self._work.on_note(f"trying again, job {job['id']}: {reason}")

    async def _post(self, chunk: Chunk) -> dict[str, Any]:
        request = of_chunk(self._work.request, chunk)
        if self._work.base is not None:
            request = request.model_copy(update={"images": await self._upload(self._work.base, chunk)})
        body = body_of(request)
        key = f"adm-sample-{self._work.run_id}-{chunk.name}"
        response = await self._ask("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})
        if response.status_code not in (httpx2.codes.OK, httpx2.codes.ACCEPTED):
            raise BulkError(f"the service {refusal(response)}")
        job: dict[str, Any] = response.json()
        return job

    async def _upload(self, base: BaseSamples, chunk: Chunk) -> list[str]:
        """Upload what a chunk starts from; the files' ids. Raises: BulkError."""
        ids = []
        for pixels in base.pictures(chunk).values():
            png = io.BytesIO()
            Image.frombytes("RGB", (base.size, base.size), pixels).save(png, "PNG")
            response = await self._ask("POST", "/v1/files", content=png.getvalue())
            if response.status_code != httpx2.codes.CREATED:
                raise BulkError(f"the service {refusal(response)}")
            ids.append(response.json()["id"])
        return ids

    async def _at_end(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job when it has ended; one that somebody deleted counts as failed."""
        while job["status"] not in FINAL_STATUSES:
            if job["queue"] is not None and job["queue"]["workers"] == 0:
                self._work.on_note("waiting: no worker holds the pipeline")
            response = await self._ask("GET", f"/v1/jobs/{job['id']}", params={"wait": WAIT_SECONDS})
            if response.status_code == httpx2.codes.NOT_FOUND:
                return job | {"status": "gone"}
            if response.status_code != httpx2.codes.OK:
                raise BulkError(f"job {job['id']}: the service {refusal(response)}")
            job = response.json()
        return job

    async def _fetch(self, image: dict[str, Any]) -> bytes | None:
        """Pixels of an image; None unless its bytes are those that were announced."""
        response = await self._ask("GET", image["url"])
        if response.status_code != httpx2.codes.OK:
            return None
        if hashlib.sha256(response.content).hexdigest() != image["sha256"]:
            return None
        with Image.open(io.BytesIO(response.content), formats=["PNG"]) as png:
            return png.convert("RGB").tobytes() if png.size == (self._work.size, self._work.size) else None

    async def _delete(self, job: dict[str, Any]) -> None:
        await self._ask("DELETE", f"/v1/jobs/{job['id']}")

    async def _ask(self, method: str, path: str, **given: Any) -> httpx2.Response:
        """An answer; a service that is away or full is waited for.

        Raises: BulkError when it does not answer for PATIENCE_SECONDS.
        """
        while True:
            try:
                response = await self._client.request(method, path, **given)
            except httpx2.TransportError as error:
                await self._wait_for(error)
                continue
            self._silent_since = None
            if response.status_code not in ASK_LATER:
                self._work.on_note("")
                return response
            self._work.on_note(f"waiting: the service {refusal(response)}")
            await asyncio.sleep(pause(response.headers.get("Retry-After")))

    async def _wait_for(self, error: httpx2.TransportError) -> None:
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        if now - self._silent_since > PATIENCE_SECONDS:
            raise BulkError(f"the service has not answered for {PATIENCE_SECONDS:g} s ({error})") from error
        self._work.on_note("waiting: the service does not answer")
        await asyncio.sleep(PAUSE_SECONDS)


def pause(retry_after: str | None) -> float:
    """Seconds to wait as the service asks for; a date, which ours never sends, counts as none."""
    asked = float(retry_after) if retry_after is not None and retry_after.isdecimal() else PAUSE_SECONDS
    return min(max(asked, 1.0), MOST_PAUSE_SECONDS)


def refusal(response: httpx2.Response) -> str:
    """What an answer that is none says."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.reason_phrase
    if response.status_code in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
        detail = f"{detail} (adm sends the key of ADM_API_KEY)"
    return f"answers {response.status_code}: {detail}"


def reason_of(job: dict[str, Any]) -> str:
    """Why a job has no images, or not all."""
    if job["error"] is not None:
        return str(job["error"]["detail"])
    return "its images did not arrive whole" if job["status"] == "completed" else f"it was {job['status']}"
