"""`adm sample`: makes a run's images and its result file, resumable after any interruption."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bulk.base_samples import BaseSamples, name_of, read_base_samples
from bulk.chunks import Chunk, ChunkPlan
from bulk.classes import Classes, parse_classes
from bulk.disk import remove_unfinished, sole_run
from bulk.errors import BulkError, OptionError, StoppedError
from bulk.outputs import Output, open_output
from bulk.progress import shown_progress
from bulk.run_file import RunFile, parameters
from bulk.source import ChunkWork, Source
from jobs.contract.errors import InvalidRequestError
from jobs.contract.pipelines import PipelineInfo, StageInfo
from jobs.contract.request import JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from vocabulary.counts import counted

ASKED = (
    "guidance_scale",
    "guidance_interval",
    "guidance_schedule",
    "steps",
    "sampler",
    "eta",
    "time_grid",
    "thresholding",
    "upsample",
)
"""Fields that all requests of a run have in common, under the names of options."""


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; None: the pipeline's default, and for the count the length of the file of classes."""

    out: Path
    model: str
    count: int | None = None
    classes: str | None = None  # None: "uniform", or the classes of the base samples
    seed: int = 0
    guidance_scale: float | None = None
    steps: int | None = None
    sampler: str | None = None
    eta: float | None = None
    upsample: bool | None = None
    time_grid: str | None = None
    thresholding: str | None = None
    guidance_interval: tuple[int, int] | None = None
    guidance_schedule: str | None = None
    upsampler: Mapping[str, Any] = field(default_factory=dict)  # fields of `UpsampleOptions`
    base_samples: Path | None = None  # if given, they are only upsampled

    def classes_of(self, pipeline: PipelineInfo, base: BaseSamples | None) -> Classes:
        """The class of each image. Raises: BulkError."""
        if base is None:
            return parse_classes(self.classes or "uniform", pipeline.classes, self.seed)
        if not upsampler_of(pipeline, base).class_conditional:
            if self.classes not in (None, "none"):
                raise BulkError(f"--classes {self.classes}: the upsampler of {self.model} takes no class")
            return replace(parse_classes("none", pipeline.classes, self.seed), length=base.count)
        if self.classes is not None:
            return replace(parse_classes(self.classes, pipeline.classes, self.seed), length=base.count)
        if base.labels is None:
            raise BulkError(
                f"--base-samples {base.path}: has no arr_1, and the upsampler of {self.model} needs --classes"
            )
        if unknown := set(base.labels) - {each.index for each in pipeline.classes}:
            raise BulkError(
                f"--base-samples {base.path}: arr_1 has the class {min(unknown)}, which {self.model} does not have"
            )
        return Classes(base.labels.__getitem__, "of the base samples", base.count)

    def request(self, classes: Classes, pipeline: PipelineInfo) -> ResolvedRequest:
        """The request fields that all jobs of the run share. Raises: BulkError, which names the option."""
        given = {name: getattr(self, name) for name in ASKED if getattr(self, name) is not None}
        if self.base_samples is not None:
            given |= {"kind": "upsample", "images": [name_of(0)]}
        if self.upsampler:
            if self.upsample is False:
                raise BulkError(
                    f"--no-upsample: contradicts {', '.join(option(f'/upsample/{each}') for each in self.upsampler)}"
                )
            given["upsample"] = dict(self.upsampler)
        body = given | {"model": self.model, "seed": self.seed, "priority": "low"}
        if self.base_samples is None or classes.label(0) is not None:
            body["class_label"] = classes.label(0)
        try:
            return resolve(JobRequest.parse(json.dumps(body).encode()), pipeline, lambda: 0)
        except InvalidRequestError as error:
            raise OptionError(*((option(each.pointer), each.detail) for each in error.errors)) from error

    def images(self, classes: Classes) -> int:
        """The number of images of the run. Raises: BulkError."""
        if classes.length is None:
            if self.count is None:
                raise BulkError("--count: is required unless --classes is a file, or there are --base-samples")
            return self.count
        if self.count is not None and self.count > classes.length:
            source = f"--classes {self.classes} has classes" if self.base_samples is None else "there are base samples"
            raise BulkError(f"--count {self.count}: {source} for {classes.length}")
        return classes.length if self.count is None else self.count


def upsampler_of(pipeline: PipelineInfo, base: BaseSamples) -> StageInfo:
    """The stage that enlarges base samples. Raises: BulkError for a pipeline without one, or of other sizes."""
    if len(pipeline.stages) == 1:
        raise BulkError(f"--base-samples: {pipeline.id} has no upsampler")
    if base.size != pipeline.stages[0].image_size:
        size = pipeline.stages[0].image_size
        raise BulkError(f"--base-samples {base.path}: has images of {base.size} pixels; {pipeline.id} enlarges {size}")
    return pipeline.stages[-1]


def option(pointer: str) -> str:
    """The command-line option of a request's field."""
    name = re.sub(r"/\d+$", "", pointer[1:])  # without an index in a list
    return {"class_label": "--classes"}.get(name, f"--{name.replace('_', '-').replace('/', '-')}")


def run(options: RunOptions, source: Source, console: Console, output: Output | None = None) -> str:
    """Make all missing images and the result; return a summary line.

    output: the store of the images, if it is not given by the file name in the options.
    Raises: BulkError; StoppedError after Ctrl-C. Finished images stay, and the same options resume from them.
    """
    output = output or open_output(options.out)
    pipeline = source.describe(options.model)
    base = None if options.base_samples is None else read_base_samples(options.base_samples)
    classes = options.classes_of(pipeline, base)
    plan = ChunkPlan(options.seed, options.images(classes), classes)
    request = options.request(classes, pipeline)
    content = parameters(request, classes, plan.count, options.seed, pipeline)
    if base is not None:
        content["base_samples"] = base.sha256
    try:
        run_file = RunFile.begin_or_resume(output, content)
        if plan.count > run_file.count:
            output.folder.mkdir(parents=True, exist_ok=True)
            with sole_run(output.folder):
                output.grow(replace(plan, count=run_file.count), content["size"])
                run_file.grow(plan.count)
        was_finished = output.finished
        if was_finished:
            output.finish(plan, content["size"], lambda: None)  # cleanup that a kill at the end may have prevented
        else:
            output.folder.mkdir(parents=True, exist_ok=True)
            with sole_run(output.folder):
                remove_unfinished(output.run_file)
                make(plan, output, run_file, request, base, source, content["size"], console)
    except OSError as error:
        raise BulkError(f"--out {options.out}: {error.strerror or error}") from error
    return summary(options.out, plan, content["size"], run_file) + (", already complete" if was_finished else "")


def make(
    plan: ChunkPlan,
    output: Output,
    run_file: RunFile,
    request: ResolvedRequest,
    base: BaseSamples | None,
    source: Source,
    size: int,
    console: Console,
) -> None:
    """Make the missing images with a progress display, and then the result."""
    done = sum(len(chunk.indices) for chunk in plan.chunks() if output.has(chunk))
    with shown_progress(console) as progress:
        images = progress.add_task("images", total=plan.count, completed=done, note="")
        work = ChunkWork(
            run_file.run_id,
            output,
            size,
            request,
            missing(plan, output),
            base,
            on_numerics=run_file.note_numerics,
            on_images=lambda more: progress.advance(images, more),
            on_note=lambda note: progress.update(images, note=note),
        )
        try:
            if done < plan.count:
                source.make(work)
            writing = progress.add_task("writing", total=plan.count, note="")
            output.finish(plan, size, lambda: progress.advance(writing))
            progress.update(writing, completed=plan.count)
        except KeyboardInterrupt as error:
            kept = int(progress.tasks[images].completed)
            raise StoppedError(
                f"stopped at {kept} of {counted(plan.count, 'image')}; the same command resumes"
            ) from error


def missing(plan: ChunkPlan, output: Output) -> Iterator[Chunk]:
    """The chunks that are not stored yet."""
    return (chunk for chunk in plan.chunks() if not output.has(chunk))


def summary(out: Path, plan: ChunkPlan, size: int, run_file: RunFile) -> str:
    """A line on the result."""
    made = f"{out}: {counted(plan.count, 'image')} of {size}x{size}"
    if not run_file.numerics:
        return made
    others = len(run_file.numerics) - 1
    mixed = f" and {others} others, which round differently" if others else ""
    return f"{made}, numerics {run_file.numerics[0]}{mixed}"
