"""`adm generate --local`: makes a job without a service, with the same bytes and the same JSON."""

import hashlib
import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from cli.failure import one_line_errors
from cli.progress import progress_bar
from jobs import logs
from jobs.contract.errors import InvalidRequestError
from jobs.contract.job import ImageView, Job, JobProgress, JobStatus, Usage
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import DRAWN_SEED_BELOW, JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from jobs.contract.work import evaluations_of, work_of
from jobs.settings import Settings
from worker import local_worker


def generate_local(fields: Mapping[str, Any], out: Path) -> tuple[Job, list[Path]]:
    """Make a job's images in this process and write them as SEED-INDEX.png; return the job as a service would show it.

    Errors exit with one line.
    """
    with one_line_errors(InvalidRequestError, *local_worker.REFUSALS):
        settings = Settings.load()
        pipelines = (fields.get("model") or settings.default_model,)
        quiet = settings.model_copy(update={"log_level": "warning", "pipelines": pipelines})
        logs.configure(quiet)
        pipeline = local_worker.pipeline_of(quiet, quiet.pipelines[0])
        request = resolve(JobRequest.model_validate(fields), pipeline, lambda: secrets.randbelow(DRAWN_SEED_BELOW))
        out.mkdir(parents=True, exist_ok=True)
        created_at = time.time()
        typer.echo(f"loading {pipeline.id} ...", err=True)
        worker = local_worker.LocalWorker(quiet, local_worker.devices(quiet.device)[0])
        started_at = time.time()
        paths = run(worker, request, out)
    return shown(worker, request, pipeline, paths, (created_at, started_at, time.time())), list(paths.values())


def run(worker: local_worker.LocalWorker, request: ResolvedRequest, out: Path) -> dict[int, Path]:
    """Take every step of a request, write each finished image, and return the paths by index."""
    paths, steps = {}, sum(work_of(request).values())
    worker.add(str(request.seed), request, {})
    with progress_bar(request.model) as show:
        while (finished := worker.step()) is not None:
            show(request.model, worker.steps / steps)
            for _, index, pixels in finished:
                paths[index] = out / f"{request.seed}-{index}.png"
                paths[index].write_bytes(worker.png(request, index, pixels))
    return dict(sorted(paths.items()))


def shown(
    worker: local_worker.LocalWorker,
    request: ResolvedRequest,
    pipeline: PipelineInfo,
    paths: Mapping[int, Path],
    times: tuple[float, float, float],
) -> Job:
    """The completed job: its id is the seed, its images are files, and it never expires."""
    created_at, started_at, ended_at = times
    stage, steps = list(evaluations_of(request).items())[-1]
    size = (pipeline.stages if request.upsample else pipeline.stages[:1])[-1].image_size
    images = [
        ImageView(
            index=index,
            url=path.resolve().as_uri(),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            width=size,
            height=size,
            class_label=request.class_label,
            class_name=pipeline.class_name(request.class_label),
            seed=request.seed,
        )
        for index, path in paths.items()
    ]
    return Job(
        id=str(request.seed),
        status=JobStatus.COMPLETED,
        created_at=created_at,
        started_at=started_at,
        ended_at=ended_at,
        expires_at=math.inf,  # null in JSON
        request=request,
        progress=JobProgress(stage=stage, step=steps, steps=steps, fraction=1),
        queue=None,
        images=images,
        error=None,
        usage=Usage(steps=worker.steps, device_seconds=round(worker.device_seconds, 4)),
        attempt=1,
        numerics=worker.numerics_of(request.model),
    )
