"""The lock file against what the project asks for."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = dict(PROJECT["optional-dependencies"])
KERNELS = EXTRAS.pop("kernels")  # where torch is for CUDA it brings this itself, in a version that it pins
ASKED = [*PROJECT["dependencies"], *chain.from_iterable(EXTRAS.values())]


@pytest.mark.parametrize("line", LINES)
def test_line_pins_one_exact_public_version(line: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)  # no +cpu, no file://, no range


@pytest.mark.parametrize("asked", ASKED)
def test_what_the_project_asks_for_is_pinned_and_allowed(asked: str) -> None:
    requirement = Requirement(asked)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_what_only_cuda_wheels_bring_is_no_line_of_the_lock_and_pinned_where_it_is_asked_for() -> None:
    for requirement in map(Requirement, KERNELS):
        assert canonicalize_name(requirement.name) not in PINS
        assert [each.operator for each in requirement.specifier] == ["=="]


def test_torch_is_asked_for_exactly_as_it_is_pinned() -> None:
    assert f"torch=={PINS[canonicalize_name('torch')]}" in ASKED
