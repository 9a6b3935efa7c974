"""Networks compiled for this CPU by torch.compile, and kept on disk for later starts.

Convolutions and norms stay the kernels of eager networks (models/networks/opaque.py); code is generated for what lies
between them. A row shape takes up to a minute to compile, so few are compiled. Each set of networks, machine and
versions has a folder of compiled code. A complete folder contains a MARKER, from which a later start learns that all
code is compiled already, and which row shapes agreed.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.rounding import ROUNDING
from engine.row_shapes import FEW
from engine.short_hash import short_hash
from models.networks.compiler_flags import FLAGS, use_sound_flags
from models.networks.config import ClassifierConfig, UNetConfig
from models.stack import Stack
from vocabulary.precisions import Precision

MOST_APART = 0.05  # largest distance between compiled and eager results, relative to their norm; bf16's rounding: 0.01
FAINT = 1e-4  # root mean square of results that change no pixel; smaller results count as if they had this size
FORM = "opaque convolutions and norms"  # a part of the hash that names the folder; change it to leave old code unused
MARKER = "compiled.json"
UNUSED_SECONDS = 30 * 86400.0  # time since the last start that used a folder, after which it is removed
MOST_COMPILATIONS = 256  # of one function, over all networks and shapes

OnShape = Callable[[str, int], None]
"""Called with the part of a stage and a row count, before these are computed for the first time."""


class NoCompilerError(Exception):
    """A prerequisite of compiling is missing on this machine; the message is one line that names it."""


class WrongCodeError(Exception):
    """A compiled network's results are not those of its eager form; the message is one line."""


def refuse_wrong_code(name: str, compiler: str, compiled: Tensor, eager: Tensor, size: int) -> None:
    """Compare compiled and eager results [N, ...] of a part of a stage, in groups of `size` values of a row.

    The groups keep a guide's gradient and its scores apart, whose magnitudes differ.
    Raises: WrongCodeError.
    """
    for found, expected in zip(compiled.flatten(1).split(size, 1), eager.flatten(1).split(size, 1), strict=True):
        apart = torch.linalg.vector_norm(found.float() - expected.float())
        length = torch.linalg.vector_norm(expected.float()).clamp(min=FAINT * math.sqrt(expected.numel()))
        share = float(apart / length)
        if not share <= MOST_APART:  # also NaN
            raise WrongCodeError(
                f"the {name}, compiled by {compiler}, differs from its eager form (relative distance {share:.2g})"
            )


class Compiler:
    """Compiles functions of tensors for given networks, into a folder for these networks, this machine and versions."""

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
        self.on_shape = functools.cache(on_shape)  # cached, because a shape may be tried twice
        self._facts = {
            "torch": torch.__version__,
            "compiler": self.version,
            "flags": FLAGS,
            "form": FORM,
            "cpu": dict(torch.cpu.get_capabilities()),
            "precision": precision,
            "shapes": [*candidates, max_rows],
            "networks": [dataclasses.asdict(config) for stack in stacks for config in configs_of(stack)],
            "rounding": ROUNDING,
        }
        self.folder = folder.absolute() / short_hash(self._facts)

    @property
    def is_warm(self) -> bool:
        """Return whether all functions have been compiled before."""
        return (self.folder / MARKER).exists()

    def begin(self) -> None:
        """Make torch.compile write into the folder, in this process."""
        import torch._dynamo.config  # imported here, because it takes a second that an eager start need not spend
        import torch._inductor.config

        use_sound_flags()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder)
        torch._inductor.config.cpp.cxx = (None, self._command)
        torch._inductor.config.compile_threads = 1  # else a pool of processes would outlive the compiling
        # past the limit a function would silently run eagerly, which rounds differently
        torch._dynamo.config.recompile_limit = MOST_COMPILATIONS
        torch._dynamo.config.fail_on_recompile_limit_hit = True

    def agreed(self, part: str) -> Collection[int] | None:
        """The row counts of a part of a stage that agreed in an earlier start; None if there was none."""
        agreed: Collection[int] | None = self._marked().get("agreeing", {}).get(part)
        return agreed

    def note(self, part: str, shapes: Sequence[int]) -> None:
        """Record which row counts agreed; stages with the same name share the row counts that any of them can use."""
        self._agreeing.setdefault(part, set()).update(shapes)

    def _marked(self) -> dict[str, Any]:
        try:
            marked: dict[str, Any] = json.loads((self.folder / MARKER).read_text())
        except (OSError, ValueError):
            return {}
        return marked

    def finish(self) -> None:
        """Mark the folder as complete and used now, so that the next start for the same networks and machine is warm.

        Removes folders beside it that no start has used for UNUSED_SECONDS, complete or not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        agreeing = {part: sorted(shapes) for part, shapes in self._agreeing.items()}
        (self.folder / MARKER).write_text(json.dumps(self._facts | {"agreeing": agreeing}, indent=1) + "\n")
        for other in self.folder.parent.iterdir():
            if other != self.folder and time.time() - _last_used(other) > UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)  # another start may be removing it too

    def compile(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function, compiled at its first call with each shape."""
        compiled = torch.compile(function, dynamic=False, fullgraph=True)

        def call(*inputs: Tensor | None, **named: Tensor) -> Tensor:
            # another memory layout would cause another compilation while serving
            return compiled(*map(contiguous, inputs), **{name: each.contiguous() for name, each in named.items()})

        return call


def _last_used(folder: Path) -> float:
    """The time at which a start last marked a folder; for an unmarked one, the time of the last write to it."""
    for path in (folder / MARKER, folder):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
    return math.inf  # removed meanwhile


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def refuse_unspeakable(folder: Path) -> None:
    """Raise NoCompilerError for a path that torch cannot compile in, because it does not quote command lines."""
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
    """The first line of a compiler's version. Raises: NoCompilerError if it does not run."""
    try:
        answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoCompilerError(f"the C++ compiler does not run: {error}") from error
    return answer.stdout.partition("\n")[0]


def configs_of(stack: Stack) -> list[UNetConfig | ClassifierConfig]:
    """The configurations of a stack's networks, which determine the compiled code; weights are no part of it."""
    parts = (stack.base, stack.classifier, stack.upsampler)
    return [part.network.config for part in parts if part is not None]
