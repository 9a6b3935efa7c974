"""Samples that `adm evaluate` makes and measures: local:PIPELINE and service:PIPELINE.

Images are made in chunks as by `adm sample`; of each chunk only the features are stored.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bulk.chunks import Chunk, ChunkPlan
from bulk.errors import BulkError, OptionError, StoppedError
from bulk.outputs import Output
from bulk.run import RunOptions, run
from bulk.source import Source
from evaluation.feature_files import KeptFeatures
from evaluation.sources import Named, parse_named, whole_number
from evaluation.statistics_file import Measured
from jobs.settings import Settings
from vocabulary.counts import counted

if TYPE_CHECKING:
    from rich.console import Console

    from evaluation.extractors import Extractor
    from evaluation.feature_files import Work

LOCAL, SERVICE = "local:", "service:"
IMAGES = 500
WINDOW = 128  # images at the service at a time
SETTINGS = (
    "images",
    "seed",
    "classes",
    "scale",
    "steps",
    "sampler",
    "eta",
    "time_grid",
    "thresholding",
    "upsample",
)
SETTING_OF = {f"--{name.replace('_', '-')}": name for name in SETTINGS} | {
    "--guidance-scale": "scale",
    "--model": "pipeline",
}
"""The settings by the options of `adm sample` that do the same."""


def is_generated(source: str) -> bool:
    """Return whether a source's images must be generated."""
    return source.startswith((LOCAL, SERVICE))


class FeatureOutput(Output):
    """The features of a run's images, in place of the images."""

    def __init__(self, kept: KeptFeatures) -> None:
        self.kept = kept
        self.folder = kept.folder
        self.run_file = kept.folder / "run.json"
        self._jobs: dict[str, str] = {}

    @property
    def finished(self) -> bool:
        return False  # every chunk must be checked

    @property
    def occupied(self) -> bool:
        return bool(self.kept.batches)

    def has(self, chunk: Chunk) -> bool:
        return self.kept.has(chunk.name)

    def note_job(self, chunk: Chunk, job_id: str) -> None:
        self._jobs[chunk.name] = job_id

    def keep(self, chunk: Chunk, images: Sequence[bytes], size: int) -> None:
        pixels = torch.frombuffer(bytearray(b"".join(images)), dtype=torch.uint8).reshape(-1, size, size, 3)
        facts = {"class_label": chunk.class_label, "job": self._jobs.pop(chunk.name, None)}
        self.kept.add(chunk.name, chunk.indices, pixels.permute(0, 3, 1, 2), facts)

    def grow(self, before: ChunkPlan, size: int) -> None:
        """Refuse, because a source with another number of images has another folder. Raises: BulkError."""
        raise BulkError(
            f"{self.folder}: has the features of {counted(before.count, 'image')}; remove it to begin again"
        )

    def finish(self, plan: ChunkPlan, size: int, on_image: Callable[[], None]) -> None:
        """Do nothing, because the stored features are the result."""


def generate(source: str, extractor: "Extractor", work: "Work", console: "Console", url: str | None) -> Measured:
    """The features of images of local:PIPELINE?KEY=VALUE or service:..., which are made or resumed now.

    url: of the service; None for the one on ADM_HOST and ADM_PORT.
    Raises: ValueError, one line, for the source; BulkError for an interruption; the same call then resumes.
    """
    kind, _, text = source.partition(":")
    named = parse_named(text, SETTINGS)
    settings = Settings.load()
    kept = work.kept("samples", source, extractor)
    output = FeatureOutput(kept)
    threads = torch.get_num_threads()  # the engine changes it for its steps; restored for the metrics
    try:
        run(options_of(named, kept.folder), maker_of(f"{kind}:", settings, url), console, output)
    except OptionError as error:
        raise BulkError(f"{source}: {error.renamed(SETTING_OF)}") from error
    except StoppedError as error:
        raise BulkError(f"{source}: {error}") from error
    finally:
        torch.set_num_threads(threads)
    return measured_output(source, output, extractor)


def measured_output(source: str, output: FeatureOutput, extractor: "Extractor") -> Measured:
    """One side of a comparison, from the stored features of a run."""
    kept, batches = output.kept, output.kept.batches
    made = json.loads(output.run_file.read_text())
    provenance = {
        "source": source,
        "images": kept.count,
        "size": batches[0]["size"],
        "sha256": kept.sha256_of_batches(),
        "skipped": [],
        "extractor": extractor.identity,
        "made": made | {"jobs": [each["job"] for each in batches if each["job"] is not None]},
    }
    return Measured(kept.features(), provenance, kept)


def maker_of(kind: str, settings: Settings, url: str | None) -> Source:
    """This machine's first device, or the service."""
    from cli.sample import at_service, on_this_machine

    if kind == SERVICE:
        return at_service(settings, url, WINDOW)
    from worker import local_worker

    return on_this_machine(settings, local_worker.devices(settings.device)[0], None)


def options_of(named: Named, out: Path) -> RunOptions:
    """The options of adm sample for PIPELINE?KEY=VALUE. Raises: ValueError, one line."""
    upsample = named.settings.get("upsample")
    if upsample not in (None, "yes", "no"):
        raise ValueError(f"{named.name}: upsample={upsample}: must be yes or no")
    return RunOptions(
        out=out,
        model=named.name,
        count=whole_number(named, "images", IMAGES, 2),
        classes=named.settings.get("classes", "balanced"),
        seed=whole_number(named, "seed", 0),
        guidance_scale=_number(named, "scale"),
        steps=whole_number(named, "steps", 0, 1) if "steps" in named.settings else None,
        sampler=named.settings.get("sampler"),
        eta=_number(named, "eta"),
        time_grid=named.settings.get("time_grid"),
        thresholding=named.settings.get("thresholding"),
        upsample=None if upsample is None else upsample == "yes",
    )


def _number(named: Named, key: str) -> float | None:
    """A numeric setting. Raises: ValueError, one line."""
    if key not in named.settings:
        return None
    try:
        return float(named.settings[key])
    except ValueError as error:
        raise ValueError(f"{named.name}: {key}={named.settings[key]}: must be a number") from error


def of_seeds(source: str, count: int) -> Iterator[tuple[int, str]]:
    """The source with `count` consecutive seeds, from its own on. Raises: ValueError for one without a seed."""
    text = source.partition(":")[2]
    if count > 1 and not is_generated(source):
        raise ValueError(f"--seeds {count}: {source} has no seed; {LOCAL}PIPELINE and {SERVICE}PIPELINE have")
    if count == 1:
        yield 0, source
        return
    first = whole_number(parse_named(text, SETTINGS), "seed", 0)
    without = re.sub(r"(?<=[?&])seed=\d+&?", "", source).rstrip("?&")
    for seed in range(first, first + count):
        yield seed, f"{without}{'&' if '?' in without else '?'}seed={seed}"
