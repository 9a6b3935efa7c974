"""`adm demo`: runs the programs on a free port and in their own folder, makes one image per class, writes a report."""

import asyncio
import contextlib
import hashlib
import io
import json
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from files.checkout import commit
from jobs.settings import Settings
from standalone.contact_sheet import Tile, contact_sheet
from standalone.demo_requests import demo_requests
from standalone.embedded import embedded_supervisor, page_address, with_free_port
from standalone.log import Log
from standalone.supervisor import StartError, sole_owner
from vocabulary.counts import counted

START_SECONDS = 300.0  # a start loads and warms up
COMPILING_SECONDS = 3600.0  # for the first start with ADM_COMPILE=yes
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 30.0  # limit on waiting for the worker's metrics
ENDED = frozenset({"completed", "failed", "cancelled", "expired"})
ROWS, PADDING = "adm_step_rows_total", "adm_step_padding_rows_total"  # counters of workers, by stage


@dataclass(frozen=True)
class Outcome:
    """An ended job, with its image's bytes if they arrived with the announced hash."""

    job: dict[str, Any]
    png: bytes | None

    @property
    def seconds(self) -> float | None:
        """Seconds from the job's creation to its end, including its wait."""
        return None if self.job["ended_at"] is None else float(self.job["ended_at"] - self.job["created_at"])

    @property
    def sha256(self) -> str | None:
        """Hash of the bytes that arrived."""
        return None if self.png is None else hashlib.sha256(self.png).hexdigest()


def run_demo(settings: Settings, out: Path) -> bool:
    """Make the images and write them to `out`, with a contact sheet, a report and the metrics.

    Returns: whether every image arrived.
    Raises: StartError when the programs do not start, with the last lines that they printed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.png"), out / "report.json", out / "metrics.txt"):
        old.unlink(missing_ok=True)  # so that all files afterwards are of this run
    console = Console()
    outcomes, metrics = asyncio.run(programs_and_jobs(settings, out / "stack.log", console))
    for name, png in images(outcomes):
        (out / name).write_bytes(png)
    if tiles := [tile(each.job, each.png) for each in outcomes if each.png is not None]:
        contact_sheet(tiles).save(out / "contact-sheet.png")
    (out / "metrics.txt").write_text(metrics)
    summary = report(outcomes, metrics)
    (out / "report.json").write_text(json.dumps(summary, indent=2) + "\n")
    arrived = sum(each.png is not None for each in outcomes)
    console.print(
        f"{arrived} of {counted(len(outcomes), 'image')}, {summary['images_per_second']:.2f} a second; look at {out}/"
    )
    return bool(outcomes) and arrived == len(outcomes)


async def programs_and_jobs(settings: Settings, log_path: Path, console: Console) -> tuple[list[Outcome], str]:
    """Run the programs until the jobs have ended; their log goes to a file, because the screen shows progress bars."""
    # SIGTERM acts like Ctrl-C, which asyncio turns into a cancellation, so that the programs stop in order.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    with tempfile.TemporaryDirectory(prefix="adm-demo-") as data, log_path.open("w") as lines:
        own = settings.model_copy(
            update={"host": "127.0.0.1", "port": 0, "data": Path(data), "redis_url": None, "store": None}
        )
        with sole_owner(own.run_dir):
            own = with_free_port(own)
            async with running_stack(own, log_path, Log(lines, answers=lines), console) as client:
                return await make_images(client, settings.default_model, console)


@contextlib.asynccontextmanager
async def running_stack(
    settings: Settings, log_path: Path, log: Log, console: Console
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of ready programs, which are stopped in order when the block ends.

    Raises: StartError if the worker dies before it is ready, or the programs are not ready in time.
    """
    supervisor = embedded_supervisor(settings, log)
    starting = asyncio.create_task(supervisor.start())
    limit = COMPILING_SECONDS if settings.compile == "yes" else START_SECONDS
    try:
        with console.status("starting Redis, the service and a worker"):
            try:
                async with asyncio.timeout(limit):
                    await supervisor.children["service"].ready.wait()
                    await supervisor.children["worker"].settled.wait()
            except TimeoutError as error:
                raise StartError(f"service and worker were not ready within {limit:g} s; see {log_path}") from error
        if not supervisor.children["worker"].ready.is_set():
            raise StartError(f"the worker did not start: {last_words('worker', log_path)} (all of it: {log_path})")
        async with httpx2.AsyncClient(base_url=page_address(settings), trust_env=False, timeout=60.0) as client:
            yield client
    finally:
        starting.cancel()
        await supervisor.stop()


def last_words(name: str, log_path: Path) -> str:
    """The last line that a child has written."""
    lines = [line for line in log_path.read_text().splitlines() if line.startswith(name)]
    return lines[-1].partition("| ")[2] if lines else "it printed nothing"


async def make_images(client: httpx2.AsyncClient, model_id: str, console: Console) -> tuple[list[Outcome], str]:
    """Post a job per class, follow all to their end, fetch the images and the metrics."""
    model = (await client.get(f"/v1/models/{model_id}")).raise_for_status().json()
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        jobs = [(await client.post("/v1/jobs", json=each)).raise_for_status().json() for each in demo_requests(model)]
        bars = [progress.add_task(name_of(job, model), total=1.0, note=note(job["request"])) for job in jobs]
        pairs = zip(jobs, bars, strict=True)
        ended = await asyncio.gather(*(follow(client, job["id"], bar, progress) for job, bar in pairs))
    outcomes = [Outcome(job, await fetch(client, job)) for job in ended]
    await heartbeat_after(client, max(job["ended_at"] for job in ended))
    return outcomes, (await client.get("/metrics")).raise_for_status().text


async def heartbeat_after(client: httpx2.AsyncClient, moment: float) -> None:
    """Wait for a heartbeat after this moment, because earlier metrics may lack the last steps."""
    with contextlib.suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            while True:
                workers = (await client.get("/v1/workers")).raise_for_status().json()["data"]
                if any(each["last_heartbeat"] > moment for each in workers):
                    return
                await asyncio.sleep(POLL_SECONDS)


async def follow(client: httpx2.AsyncClient, job_id: str, bar: TaskID, progress: Progress) -> dict[str, Any]:
    """Poll a job until its end; wait while a worker or the service restarts."""
    while True:
        with contextlib.suppress(httpx2.TransportError):
            response = await client.get(f"/v1/jobs/{job_id}")
            if response.status_code == httpx2.codes.OK:
                job: dict[str, Any] = response.json()
                progress.update(bar, completed=job["progress"]["fraction"])
                if job["status"] in ENDED:
                    return job
        await asyncio.sleep(POLL_SECONDS)


async def fetch(client: httpx2.AsyncClient, job: dict[str, Any]) -> bytes | None:
    """The job's image; None if it has none or its hash is not the announced one."""
    if job["status"] != "completed":
        return None
    (image,) = job["images"]
    response = await client.get(image["url"])
    whole = response.status_code == httpx2.codes.OK and hashlib.sha256(response.content).hexdigest() == image["sha256"]
    return response.content if whole else None


def report(outcomes: list[Outcome], metrics: str) -> dict[str, Any]:
    """The contents of `report.json`: each job, images per second, batch occupancy, and the commit."""
    jobs = [each.job for each in outcomes]
    ends = [job["ended_at"] for job in jobs if job["ended_at"] is not None]
    span = max(ends) - min(job["created_at"] for job in jobs) if ends else 0.0
    arrived = sum(each.png is not None for each in outcomes)
    return {
        "jobs": [
            {
                "id": each.job["id"],
                "request": each.job["request"],
                "status": each.job["status"],
                "sha256": each.sha256,
                "seconds": each.seconds,
                "error": each.job["error"],
                "numerics": each.job["numerics"],
            }
            for each in outcomes
        ],
        "images_per_second": arrived / span if span > 0 else 0.0,
        "batch_occupancy": batch_occupancy(metrics),
        "commit": commit(),
        "finished_at": time.time(),
    }


def batch_occupancy(metrics: str) -> float | None:
    """Share of all computed rows that were images and not padding, over the whole run; None if no step ran."""
    rows = dict.fromkeys((ROWS, PADDING), 0.0)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in rows:
                rows[sample.name] += sample.value
    computed = sum(rows.values())
    return rows[ROWS] / computed if computed else None


def images(outcomes: list[Outcome]) -> Iterator[tuple[str, bytes]]:
    """File names and bytes of the images that arrived, in the order of the classes."""
    for i, each in enumerate(outcomes):
        if each.png is not None:
            yield f"{i:02d}-{each.job['images'][0]['class_name']}.png", each.png


def tile(job: dict[str, Any], png: bytes) -> Tile:
    """The contact sheet's tile of an image."""
    return Tile(Image.open(io.BytesIO(png)), title=job["images"][0]["class_name"], note=note(job["request"]))


def name_of(job: dict[str, Any], model: dict[str, Any]) -> str:
    """Name of a job's class."""
    return str(next(each["name"] for each in model["classes"] if each["index"] == job["request"]["class_label"]))


def note(request: dict[str, Any]) -> str:
    """A short description of an image's settings."""
    eta = f" eta {request['eta']:g}" if request["eta"] else ""
    return f"{request['sampler']}{eta}, {counted(request['steps'], 'step')}, scale {request['guidance_scale']:g}"
