"""`adm demo`: the stack on free ports and a folder of its own, one job per class, the images and a report."""

import asyncio
import contextlib
import hashlib
import io
import json
import signal
import subprocess
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

from jobs.settings import Settings
from stack.contact_sheet import Tile, contact_sheet
from stack.demo_plan import demo_requests
from stack.embedded import embedded_supervisor, page_address, with_free_port
from stack.log import Log
from stack.supervisor import StackError, sole_owner

START_SECONDS = 300.0  # a start loads and warms up
COMPILING_SECONDS = 3600.0  # the first start that is asked to compile
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 30.0  # how long to wait for metrics that are no job's result
ENDED = frozenset({"completed", "failed", "cancelled", "expired"})
ROWS, PADDING = "adm_step_rows_total", "adm_step_padding_rows_total"  # what workers count, by stage


@dataclass(frozen=True)
class Outcome:
    """A job at its end, with the bytes of its image if they came and have the announced hash."""

    job: dict[str, Any]
    png: bytes | None

    @property
    def seconds(self) -> float | None:
        """From the job's creation to its end, waiting included."""
        return None if self.job["ended_at"] is None else float(self.job["ended_at"] - self.job["created_at"])

    @property
    def sha256(self) -> str | None:
        """Hash of the bytes that arrived."""
        return None if self.png is None else hashlib.sha256(self.png).hexdigest()


def run_demo(settings: Settings, out: Path) -> bool:
    """Make the images and leave them in `out` with a contact sheet, a report and the metrics.

    Returns: whether every image arrived.
    Raises: StackError when the stack does not start, with the last lines it printed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.png"), out / "report.json", out / "metrics.txt"):
        old.unlink(missing_ok=True)  # what is found afterwards is of this run
    console = Console()
    outcomes, metrics = asyncio.run(stack_and_jobs(settings, out / "stack.log", console))
    for name, png in images(outcomes):
        (out / name).write_bytes(png)
    if tiles := [tile(each.job, each.png) for each in outcomes if each.png is not None]:
        contact_sheet(tiles).save(out / "contact-sheet.png")
    (out / "metrics.txt").write_text(metrics)
    summary = report(outcomes, metrics)
    (out / "report.json").write_text(json.dumps(summary, indent=2) + "\n")
    arrived = sum(each.png is not None for each in outcomes)
    console.print(f"{arrived} of {len(outcomes)} images, {summary['images_per_second']:.2f} a second; look at {out}/")
    return bool(outcomes) and arrived == len(outcomes)


async def stack_and_jobs(settings: Settings, log_path: Path, console: Console) -> tuple[list[Outcome], str]:
    """Run the stack for as long as the jobs take; its lines go to a file, so that the progress bars have the screen."""
    # SIGTERM ends the demo as Ctrl-C does, which asyncio turns into a cancellation: the stack stops in order.
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
    """The stack, ready, and a client of it; stopped in order when the block ends, however it ends.

    Raises: StackError when the worker dies before it is ready, or nothing is ready in time.
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
                raise StackError(f"the stack was not ready within {limit:g} s; see {log_path}") from error
        if not supervisor.children["worker"].ready.is_set():
            raise StackError(f"the worker did not start: {last_words('worker', log_path)} (all of it: {log_path})")
        async with httpx2.AsyncClient(base_url=page_address(settings), trust_env=False, timeout=60.0) as client:
            yield client
    finally:
        starting.cancel()
        await supervisor.stop()


def last_words(name: str, log_path: Path) -> str:
    """The last line that a child wrote."""
    lines = [line for line in log_path.read_text().splitlines() if line.startswith(name)]
    return lines[-1].partition("| ")[2] if lines else "it said nothing"


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
    """Wait for the worker to leave its metrics once more: those at hand may be older than the last steps."""
    with contextlib.suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            while True:
                workers = (await client.get("/v1/workers")).raise_for_status().json()["data"]
                if any(each["last_heartbeat"] > moment for each in workers):
                    return
                await asyncio.sleep(POLL_SECONDS)


async def follow(client: httpx2.AsyncClient, job_id: str, bar: TaskID, progress: Progress) -> dict[str, Any]:
    """Poll a job to its end; a worker or service that is being started again is waited for."""
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
    """The job's one image, or None if it has none or the bytes are not those the job announced."""
    if job["status"] != "completed":
        return None
    (image,) = job["images"]
    response = await client.get(image["url"])
    whole = response.status_code == httpx2.codes.OK and hashlib.sha256(response.content).hexdigest() == image["sha256"]
    return response.content if whole else None


def report(outcomes: list[Outcome], metrics: str) -> dict[str, Any]:
    """What `report.json` says: each job, the pace of the whole run, how full the batches were, which code ran."""
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


def commit() -> str | None:
    """The checked-out commit; None outside a checkout."""
    try:
        run = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def images(outcomes: list[Outcome]) -> Iterator[tuple[str, bytes]]:
    """File names and bytes of what arrived, in the order of the classes."""
    for i, each in enumerate(outcomes):
        if each.png is not None:
            yield f"{i:02d}-{each.job['images'][0]['class_name']}.png", each.png


def tile(job: dict[str, Any], png: bytes) -> Tile:
    """An image as it stands on the contact sheet."""
    return Tile(Image.open(io.BytesIO(png)), title=job["images"][0]["class_name"], note=note(job["request"]))


def name_of(job: dict[str, Any], model: dict[str, Any]) -> str:
    """Name of a job's class."""
    return str(next(each["name"] for each in model["classes"] if each["index"] == job["request"]["class_label"]))


def note(request: dict[str, Any]) -> str:
    """How an image was made, in a few words."""
    eta = f" eta {request['eta']:g}" if request["eta"] else ""
    return f"{request['sampler']}{eta}, {request['steps']} steps, scale {request['guidance_scale']:g}"
