"""`adm evaluate sweep`: samples every combination of settings in one engine, and extracts features meanwhile."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from bulk.chunks import ChunkPlan
from bulk.errors import BulkError, OptionError, StoppedError
from bulk.local import Local, Maker, Task, run_tasks
from bulk.progress import shown_progress
from bulk.run import RunOptions, missing
from bulk.run_file import RunFile, parameters
from bulk.source import of_chunk
from cli.generated_samples import FeatureOutput, measured_output
from evaluation.report import Watch, evaluate
from evaluation.sweeps import Setting, recommended
from jobs.contract.sweeps import Sweep as KeptSweep
from jobs.contract.sweeps import SweepCell, SweepFigure
from worker.kept_sweeps import weights_of

if TYPE_CHECKING:
    from rich.console import Console

    from evaluation.extractors import Extractor
    from evaluation.feature_files import Work
    from evaluation.statistics_file import Measured
    from jobs.contract.request import ResolvedRequest

OWN_NAMES = {"--guidance-scale": "--scale", "--model": "PIPELINE"}  # of options of adm sample
TIMED_STEPS, TIMED_RUNS = 3, 3  # of a full batch; the fastest run counts, because other programs disturb the rest


@dataclass(frozen=True)
class Cell:
    """The run of one setting."""

    setting: Setting
    source: str
    request: "ResolvedRequest"
    plan: ChunkPlan
    output: FeatureOutput
    run_file: RunFile

    def tasks(self, number: int) -> Iterator[Task]:
        """The jobs whose images are missing."""
        for chunk in missing(self.plan, self.output):

            def keep(images: list[bytes], chunk: Any = chunk) -> None:
                self.output.keep(chunk, images, self.run_file.parameters["size"])

            request = of_chunk(self.request, chunk)
            yield Task(f"{number}-{chunk.name}", request, {}, len(chunk.indices), keep)


@dataclass(frozen=True)
class Sweep:
    """Settings of a pipeline on this machine, each with the same number of images, classes and noise."""

    local: Local
    model: str
    settings: Sequence[Setting]
    images: int
    seed: int

    def run(
        self, reference: "Callable[[int], Measured]", extractor: "Extractor", work: "Work", console: "Console"
    ) -> dict[str, Any]:
        """The report.

        reference: measures the reference, given the edge of the images; called before any image is generated.
        Raises: ValueError, one line; BulkError; OSError; WeightsError.
        """
        try:
            cells = [self._cell(setting, extractor, work) for setting in self.settings]
        except OptionError as error:
            raise error.renamed(OWN_NAMES) from error
        theirs = reference(cells[0].run_file.parameters["size"])
        threads = torch.get_num_threads()  # the engine changes it for its steps; restored for the metrics
        try:
            numerics, seconds = self._make(cells, console)
        except KeyboardInterrupt as error:
            raise StoppedError("stopped; the same command resumes") from error
        except self.local.refusals as error:
            raise BulkError(f"{self.local.devices[0]}: {error}") from error
        finally:
            torch.set_num_threads(threads)
        return self._report(cells, numerics, seconds, theirs, extractor, console)

    def _cell(self, setting: Setting, extractor: "Extractor", work: "Work") -> Cell:
        source = f"local:{self.model}?images={self.images}&seed={self.seed}&upsample=no&{setting.query}"
        output = FeatureOutput(work.kept("sweep", source, extractor))
        options = RunOptions(
            output.folder,
            self.model,
            count=self.images,
            seed=self.seed,
            classes="balanced",
            guidance_scale=setting.scale,
            steps=setting.steps,
            sampler=setting.sampler,
            upsample=False,
        )
        pipeline = self.local.describe(self.model)
        if not pipeline.classes:
            raise ValueError(f"{self.model}: has no classes, and a sweep makes images of all classes")
        classes = options.classes_of(pipeline, None)
        request = options.request(classes, pipeline)
        content = parameters(request, classes, self.images, self.seed, pipeline)
        run_file = RunFile.begin_or_resume(output, content)
        return Cell(setting, source, request, ChunkPlan(self.seed, self.images, classes), output, run_file)

    def _make(self, cells: Sequence[Cell], console: "Console") -> tuple[str, dict[bool, float]]:
        """Make all missing images in one engine; return its numerics, and seconds per evaluation, by guided or not."""
        settings = self.local.settings.model_copy(update={"pipelines": (self.model,)})
        with shown_progress(console) as progress:
            bar = progress.add_task("images", total=self.images * len(cells), note="loading")
            maker = self.local.open_maker(settings, self.local.devices[0])
            left = [list(each.tasks(number)) for number, each in enumerate(cells)]
            waiting = in_turn(left)
            lacking = sum(task.images for own in left for task in own)
            progress.update(bar, note="", completed=self.images * len(cells) - lacking)

            def take() -> Task | None:
                task = next(waiting, None)
                if task is not None:
                    progress.advance(bar, task.images)
                return task

            run_tasks(maker, take)
            guided = {each.setting.scale > 0: each for each in cells}
            return maker.numerics_of(self.model), {kind: timed(maker, each) for kind, each in guided.items()}

    def _report(
        self,
        cells: Sequence[Cell],
        numerics: str,
        seconds: dict[bool, float],
        theirs: "Measured",
        extractor: "Extractor",
        console: "Console",
    ) -> dict[str, Any]:
        found, whole = [], {}
        with shown_progress(console) as progress:
            bar = progress.add_task("metrics", total=len(cells), note="")
            for cell in cells:
                ours = measured_output(cell.source, cell.output, extractor)
                whole = evaluate(ours, theirs, extractor, Watch()).report
                progress.advance(bar)
                found.append(
                    {
                        "scale": cell.request.guidance_scale,
                        "steps": cell.request.steps,
                        "sampler": cell.request.sampler,
                        "eta": cell.request.eta,
                        "evaluations": cell.setting.evaluations,
                        "seconds_per_image": cell.setting.evaluations * seconds[cell.setting.scale > 0],
                        "metrics": whole["metrics"],
                        "sha256": whole["samples"]["sha256"],
                    }
                )
        names = ("reference", "extractor", "versions", "machine", "commit")
        return {
            "pipeline": self.model,
            "weights": weights_of(self.local.describe(self.model)),
            "made_on": datetime.now(UTC).date().isoformat(),
            "images": self.images,
            "seed": self.seed,
            "numerics": numerics,
            "cells": found,
            "recommended": recommended(found),
        } | {name: whole[name] for name in names}


def kept(report: Mapping[str, Any]) -> KeptSweep:
    """The part of a report that a worker announces. Raises: ValueError, one line, if it is not such a report."""
    try:
        return KeptSweep(
            pipeline=report["pipeline"],
            weights=tuple(report["weights"]),
            images=report["images"],
            reference=report["reference"]["source"],
            extractor=report["extractor"]["name"],
            made_on=report["made_on"],
            cells=tuple(map(kept_cell, report["cells"])),
        )
    except KeyError as error:
        raise ValueError(f"has no {error}; the report of every sweep of at least 50 images has it") from error
    except (TypeError, ValidationError) as error:
        raise ValueError("is not the report of a sweep") from error


def joined(sweeps: Sequence[KeptSweep]) -> KeptSweep:
    """Join sweeps that differ only in their settings; for a setting that two have, the later one's figures count.

    Raises: ValueError, one line, for sweeps of different images, references, pipelines or weights.
    """
    for each in sweeps:
        for name in ("pipeline", "weights", "images", "reference", "extractor"):
            if getattr(each, name) != getattr(sweeps[0], name):
                raise ValueError(f"the sweeps have different {name}: {getattr(sweeps[0], name)}, {getattr(each, name)}")
    cells = {(cell.sampler, cell.eta, cell.steps, cell.guidance_scale): cell for each in sweeps for cell in each.cells}
    made_on = max(each.made_on for each in sweeps)
    return sweeps[0].model_copy(update={"cells": tuple(cells[key] for key in sorted(cells)), "made_on": made_on})


def kept_cell(cell: Mapping[str, Any]) -> SweepCell:
    metrics = {name: SweepFigure(**figure_of(cell["metrics"][name])) for name in ("fid", "precision", "recall")}
    return SweepCell(
        sampler=cell["sampler"],
        steps=cell["steps"],
        guidance_scale=cell["scale"],
        eta=cell["eta"],
        evaluations=cell["evaluations"],
        **metrics,
    )


def figure_of(figure: Mapping[str, Any]) -> dict[str, Any]:
    """A metric's value and interval, rounded to five decimals."""
    return {name: None if figure[name] is None else round(figure[name], 5) for name in ("value", "low", "high")}


def in_turn(tasks: Sequence[Sequence[Task]]) -> Iterator[Task]:
    """Tasks of the cells in turn, so that a step's batch mixes cells."""
    for place in range(max(map(len, tasks), default=0)):
        yield from (own[place] for own in tasks if place < len(own))


def timed(maker: Maker, cell: Cell) -> float:
    """Seconds of device time per evaluation of one image, in a full batch."""
    request = cell.request.model_copy(
        update={"steps": TIMED_STEPS, "sampler": "ddim", "n": maker.max_rows, "seed": 0, "first_index": 0}
    )
    fastest = math.inf
    for _ in range(TIMED_RUNS):
        tasks = iter([Task("timed", request, {}, maker.max_rows, lambda images: None)])
        started = time.perf_counter()
        run_tasks(maker, partial(next, tasks, None))
        fastest = min(fastest, time.perf_counter() - started)
    return fastest / (maker.max_rows * TIMED_STEPS)
