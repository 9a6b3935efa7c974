"""A worker that a test of the page controls, and the common steps of those tests."""

import time
from typing import Any

from playwright.sync_api import (
    Locator,
    Page,
    expect,
)
from redis import Redis

from jobs.contract.job import ImageRecord, Progress, Usage
from jobs.contract.sweeps import Sweep
from jobs.queue.announcements import announce_pipelines
from jobs.queue.events import Preview
from jobs.redis import keys
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.jobs.samples import DEMO, DEMO_UNCOND, png, worker_info
from tests.waiting import eventually
from tests.worker.names import owned
from worker.claim import Cancel, Claim, Submit
from worker.inbox import Inbox

WAIT_MS = 60_000  # for a busy machine; each wait ends as soon as its condition is met


class Painter:
    """A worker that the test controls; inbox and store are real."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.images = ImageStore(settings.store_address)
        self._redis = redis
        self.inbox = Inbox(redis, settings, owned("cpu-0"), [DEMO, DEMO_UNCOND])
        self.inbox.open()
        self.beat()

    def announce_sweep(self, sweep: Sweep) -> None:
        """Announce a sweep, as a worker does that has one beside its weights."""
        with self._redis.pipeline() as pipe:
            announce_pipelines(pipe, [DEMO.model_copy(update={"has_sweep": True}), DEMO_UNCOND], [sweep])
            pipe.execute()

    def beat(self) -> None:
        self.inbox.heartbeat(worker_info(), "")

    def measure(self, metrics: str, rows_in_flight: int = 0) -> None:
        """Report metrics, as a worker does that has made images."""
        self.inbox.heartbeat(worker_info(rows_in_flight=rows_in_flight), metrics)

    def claim(self) -> Claim:
        (command,) = self._next()
        assert isinstance(command, Submit)
        return command.claim

    def claims(self, number: int) -> list[Claim]:
        """Claim `number` jobs, which come together or one after the other."""
        found: list[Claim] = []
        while len(found) < number:
            found += [each.claim for each in self._next() if isinstance(each, Submit)]
        return found

    def hear_cancel(self, claim: Claim) -> None:
        assert self._next() == [Cancel(claim.job_id)]
        assert self.inbox.results.cancelled(claim)

    def _next(self) -> list[Submit | Cancel]:
        until = time.monotonic() + WAIT_MS / 1000
        while time.monotonic() < until:
            if commands := self.inbox.poll(room=64, wait_seconds=1):
                return commands
        raise TimeoutError("nothing came through the queue")

    def step(self, claim: Claim, stage: str, step: int, steps: int, grey: int) -> None:
        for index in claim.request.indices:
            self.inbox.reports.preview(claim, Preview(index, stage, step, steps, png(grey, 4)))
        self._report(claim, stage, step, steps)

    def step_reported(self, claim: Claim, stage: str, step: int, steps: int, grey: int) -> None:
        """Take a step, and report it until the report is published: one soon after another is dropped."""
        self.step(claim, stage, step, steps, grey)

        def is_published() -> bool:
            reported = self._report(claim, stage, step, steps)
            return self._redis.get(keys.progress(claim.job_id)) == reported.model_dump_json().encode()

        eventually(is_published, f"step {step} of {claim.job_id} is reported")

    def _report(self, claim: Claim, stage: str, step: int, steps: int) -> Progress:
        progress = Progress(stage=stage, step=step, steps=steps, fraction=step / (2 * steps))
        self.inbox.reports.progress((claim, progress))
        return progress

    def finish(self, claim: Claim, results: dict[str, Any] | None = None) -> list[ImageRecord]:
        records = []
        for place, index in enumerate(claim.request.indices):
            records.append(self.images.put(claim.job_id, claim.token, index, png(200 + place, 8)))
            self.inbox.results.image_ready(claim, records[-1])
        self.complete(claim, records, results)
        return records

    def complete(self, claim: Claim, records: list[ImageRecord], results: dict[str, Any] | None = None) -> None:
        self.inbox.results.complete(claim, records, Usage(steps=9, device_seconds=0.5), "fingerprint", results)


def open_page(page: Page) -> None:
    page.goto("/")
    expect(page.locator("#generate")).to_be_visible()


def stop_clock(page: Page) -> None:
    """Let the page's timers, which are installed, advance by `run_for` alone, from a minute ahead."""
    page.clock.pause_at(time.time() + 60)


def generate(page: Page, painter: Painter) -> Claim:
    """Press Generate, claim the job, and wait until its stream has reported that to the page."""
    page.get_by_role("button", name="Generate").click()
    claim = painter.claim()
    expect(page.locator("#progress-text")).to_contain_text("Base step 0")
    return claim


def films(page: Page) -> Locator:
    return page.locator("#strip .thumb")
