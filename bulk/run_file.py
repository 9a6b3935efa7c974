"""The file of a run, with the parameters of its images, so that no images with other parameters are added to them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from bulk.chunks import IMAGES_PER_CHUNK
from bulk.classes import Classes
from bulk.disk import write_whole
from bulk.errors import BulkError
from bulk.outputs import Output
from bulk.source import common
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import ResolvedRequest

VERSION = 1  # of the addresses of images; raise it when bulk.chunks gives other ones
REDUCED = 12  # hex digits of a weights' hash


def parameters(
    request: ResolvedRequest, classes: Classes, count: int, seed: int, pipeline: PipelineInfo
) -> dict[str, Any]:
    """All that determines the images of a run, except the numerics."""
    used = pipeline.stages if request.upsample else pipeline.stages[:1]
    hashes = [each for stage in used for each in (stage.model_hash, stage.classifier_hash) if each is not None]
    return {
        "count": count,
        "classes": classes.spec,
        "seed": seed,
        **common(request),
        "size": used[-1].image_size,
        "weights": [each[:REDUCED] for each in hashes],
        "images_per_chunk": IMAGES_PER_CHUNK,
        "version": VERSION,
    }


class RunFile:
    """The file of a run: its id, its parameters, and the numerics under which its images were made."""

    def __init__(self, path: Path, run_id: str, parameters: dict[str, Any], numerics: list[str]) -> None:
        self._path, self.run_id, self.parameters, self.numerics = path, run_id, parameters, numerics

    @classmethod
    def begin_or_resume(cls, output: Output, parameters: dict[str, Any]) -> "RunFile":
        """The run file of an output; written if there is none.

        Raises: BulkError if the output belongs to no run, or to one with other parameters, which the message names.
        """
        path = output.run_file
        if not path.exists():
            if output.occupied:
                raise BulkError(f"--out: the existing files were not made by adm sample ({path.name} is missing)")
            run_file = cls(path, uuid4().hex, parameters, [])
            run_file._write()
            return run_file
        try:
            found = json.loads(path.read_text())
            run_file = cls(path, found["run"], found["parameters"], found["numerics"])
            _ = run_file.count
        except (ValueError, KeyError, TypeError) as error:
            raise BulkError(f"{path}: is not the file of a run of adm sample") from error
        asked = json.loads(json.dumps(parameters))  # as JSON, which turns tuples to lists
        if asked["count"] > run_file.count:
            asked["count"] = run_file.count  # the run resumes from its images; `grow` writes the new count
        if other := list(differences(run_file.parameters, asked)):
            raise BulkError(f"{path}: the run began with {'; '.join(other)}. Give the same, or another --out")
        return run_file

    @property
    def count(self) -> int:
        """The number of images of the run."""
        return int(self.parameters["count"])

    def grow(self, count: int) -> None:
        """Write a larger number of images."""
        self.parameters["count"] = count
        self._write()

    def note_numerics(self, numerics: str) -> None:
        """Add the numerics of images, if they are new."""
        if numerics not in self.numerics:
            self.numerics.append(numerics)
            self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"run": self.run_id, "parameters": self.parameters, "numerics": self.numerics}
        write_whole(self._path, [json.dumps(content, indent=2).encode() + b"\n"])


def differences(recorded: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    """A text for each parameter that differs."""
    for name in recorded.keys() | asked.keys():
        was, now = recorded.get(name), asked.get(name)
        if was != now:
            yield f"{name.replace('_', ' ')} {was}, not {now}"
