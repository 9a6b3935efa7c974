"""A source whose images are plain colours that follow from their address: quick, and it can be interrupted anywhere."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from bulk.hashed_random import draw
from bulk.run import RunOptions, run
from bulk.source import ChunkWork
from jobs.contract.pipelines import PipelineInfo
from tests.jobs.samples import DEMO


def painted(seed: int, row: int, size: int) -> bytes:
    """Pixels of image `row` of a chunk's seed."""
    return draw("colour", seed, row).to_bytes(8, "big")[:3] * size * size


class Painter:
    """Describes DEMO; before each chunk it calls `before` with how many it has made."""

    def __init__(self, before: Callable[[int], None] = lambda made: None, pipeline: PipelineInfo = DEMO) -> None:
        self._before, self._pipeline = before, pipeline
        self.made: list[int] = []

    def describe(self, model: str) -> PipelineInfo:
        return self._pipeline

    def make(self, work: ChunkWork) -> None:
        work.on_numerics("paint")
        for chunk in work.chunks:
            self._before(len(self.made))
            work.output.keep(
                chunk, [painted(chunk.seed, row, work.size) for row in range(len(chunk.indices))], work.size
            )
            self.made.extend(chunk.indices)
            work.on_images(len(chunk.indices))


def sampled(out: Path, source: Painter, **options: Any) -> str:
    """Make a run with these options, without a screen."""
    return run(
        RunOptions(out, "demo", **({"count": 50, "upsample": False} | options)), source, Console(file=io.StringIO())
    )


def contents(out: Path) -> dict[str, bytes]:
    """All files of a result except its run file."""
    files = [out] if out.is_file() else [each for each in sorted(out.iterdir()) if each.suffix == ".png"]
    return {each.name: each.read_bytes() for each in files}
