"""Networks compiled for this CPU by torch.compile, and kept on disk, so that the next start finds them.

A shape takes tens of seconds to compile, so there are few of them, and what has been compiled for exactly the same
networks, machine and versions is marked: a start may ask whether it would be a warm one, and spares itself the shapes
that turned out not to agree.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.rounding import ROUNDING
from models.networks.config import ClassifierConfig, UNetConfig
from models.networks.precision import Precision
from models.stack import Stack

FEW = (2, 8)  # row counts beside the largest
HALF_ROWS = 8  # the only row count of half precision, where rounding hides what a comparison should see
MARKER = "compiled.json"
LENGTH = 16
UNUSED_SECONDS = 30 * 86400.0  # since the last start that used it, until a folder is removed
MOST_COMPILATIONS = 256  # of one function, over all networks and shapes

OnShape = Callable[[str, int], None]
"""Told the part of a stage and a row count before that is computed for the first time."""


class NoCompilerError(Exception):
    """What compiling needs is not on this machine; the message is one line that names it."""


class Compiler:
    """Compiles functions of tensors for these networks under this machine's facts, which its folder is named after."""

    def __init__(
        self,
        folder: Path,
        stacks: Sequence[Stack],
        precision: Precision,
        max_rows: int,
        on_shape: OnShape = lambda part, rows: None,
        candidates: Sequence[int] = FEW,
    ) -> None:
        """candidates: row counts to compile beside max_rows. Raises: NoCompilerError."""
        self.candidates = candidates
        self._agreeing: dict[str, set[int]] = {}  # by part of a stage
        refuse_unspeakable(folder.absolute())
        self._command = find_command()
        self.version = first_line_of_version(self._command)
        self.on_shape = functools.cache(on_shape)  # a shape may be tried twice, and is computed once for the first time
        self._facts = {
            "torch": torch.__version__,
            "compiler": self.version,
            "cpu": dict(torch.cpu.get_capabilities()),
            "precision": precision,
            "shapes": [*candidates, max_rows],
            "networks": [dataclasses.asdict(config) for stack in stacks for config in configs_of(stack)],
            "rounding": ROUNDING,
        }
        digest = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()[:LENGTH]
        self.folder = folder.absolute() / digest

    @property
    def is_warm(self) -> bool:
        """Whether all of it has been compiled before."""
        return (self.folder / MARKER).exists()

    def begin(self) -> None:
        """Direct this process's compiling into the folder."""
        import torch._dynamo.config  # here: an eager start does without their second of imports
        import torch._inductor.config

        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder)
        torch._inductor.config.cpp.cxx = (None, self._command)
        torch._inductor.config.compile_threads = 1  # no pool of processes that outlives the compiling
        # past the limit a function would run eagerly, which rounds differently, and say nothing
        torch._dynamo.config.recompile_limit = MOST_COMPILATIONS
        torch._dynamo.config.fail_on_recompile_limit_hit = True

    def candidates_of(self, part: str, candidates: Sequence[int]) -> Sequence[int]:
        """Which of the row counts to compile a part of a stage for: few; in a warm start those that agreed before.

        Code is generated for a shape, so no argument says that two of them round alike. float32 shows whether they do;
        half precision has one row count (120 of 2,006 images differed where 2 and 8 rows had seemed to agree).
        """
        *_, largest = candidates
        if self._facts["precision"] != "fp32":
            return (min(HALF_ROWS, largest),)
        known = self._marked().get("agreeing", {}).get(part)
        few = (rows for rows in self.candidates if rows < largest and (known is None or rows in known))
        return (*few, largest)

    def note(self, part: str, shapes: Sequence[int]) -> None:
        """Remember which row counts agreed; stages of one name, of several stacks, share what any of them can use."""
        self._agreeing.setdefault(part, set()).update(shapes)

    def _marked(self) -> dict[str, Any]:
        try:
            marked: dict[str, Any] = json.loads((self.folder / MARKER).read_text())
        except (OSError, ValueError):
            return {}
        return marked

    def finish(self) -> None:
        """Mark the folder, as every start does that uses it: one under the same facts is a warm one.

        What no start has used for UNUSED_SECONDS is removed: other facts' folders beside it, finished or not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        agreeing = {part: sorted(shapes) for part, shapes in self._agreeing.items()}
        (self.folder / MARKER).write_text(json.dumps(self._facts | {"agreeing": agreeing}, indent=1) + "\n")
        for other in self.folder.parent.iterdir():
            if other != self.folder and time.time() - _last_used(other) > UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)  # another start may be removing it too

    def compile(self, function: Callable[..., Tensor], *, frozen: bool = False) -> Callable[..., Tensor]:
        """The function, compiled at its first call with each shape.

        frozen: weights are packed for their kernels once, a copy for each shape; for what is called without gradients.
        """
        compiled = torch.compile(function, dynamic=False, options={"freezing": frozen})

        def call(*inputs: Tensor | None, **named: Tensor) -> Tensor:
            # another order in memory would be another compilation, in the middle of serving
            return compiled(*map(contiguous, inputs), **{name: each.contiguous() for name, each in named.items()})

        return call


def _last_used(folder: Path) -> float:
    """When a start marked a folder last; of one that never came so far, when something was written there."""
    for path in (folder / MARKER, folder):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
    return math.inf  # gone


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def refuse_unspeakable(folder: Path) -> None:
    """Raise NoCompilerError for a folder that torch, which writes command lines without quotes, cannot compile in."""
    for path in (folder, Path(torch.__file__).parent):
        if str(path).split() != [str(path)] or set(str(path)) & set("'\"\\"):
            raise NoCompilerError(f"torch cannot compile in {path}: its path has a space or a quote")


def find_command() -> str:
    """The C++ compiler: $CXX, else g++, else clang++. Raises: NoCompilerError."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    found = next(filter(None, map(shutil.which, wanted)), None)
    if found is None:
        raise NoCompilerError(f"there is no C++ compiler on this machine: {' or '.join(wanted)} was not found")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        raise NoCompilerError(f"Python's headers are not installed: there is no Python.h in {headers}")
    return found


def first_line_of_version(command: str) -> str:
    """What a compiler calls itself. Raises: NoCompilerError for one that does not run."""
    try:
        answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoCompilerError(f"the C++ compiler does not run: {error}") from error
    return answer.stdout.partition("\n")[0]


def configs_of(stack: Stack) -> list[UNetConfig | ClassifierConfig]:
    """Of all networks of a stack, which say everything of their code but the weights, which are no part of it."""
    parts = (stack.base, stack.classifier, stack.upsampler)
    return [part.network.config for part in parts if part is not None]
