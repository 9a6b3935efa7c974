"""The contents of the container images against the imports of their code."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = "client"  # the folder of a package of another name
OURS = {each.parent.name for each in ROOT.glob("*/__init__.py")} | {"adm_client"}
INSTALLED = {
    "web": PROJECT["dependencies"],
    "worker": PROJECT["dependencies"] + PROJECT["optional-dependencies"]["compute"],
}
# The service may import one module of `models`, of plain data (an import contract); the rest of it is unused.
BROUGHT_BY_TORCH = {"triton"}  # by its wheels for CUDA, and imported nowhere else
UNUSED = {"web": {Path("models")}, "worker": set[Path]()}


def copied(target: str) -> set[str]:
    """The project's packages in an image."""
    text = DOCKERFILE.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]
    folders = {line.split()[0] for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)}
    return (folders | ({"adm_client"} if CLIENT in folders else set())) & OURS


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all modules that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def imports_of(target: str) -> set[str]:
    """Every module that the code of an image imports; not that of `cli`, whose commands import what they run."""
    folders = {Path(CLIENT if name == "adm_client" else name) for name in copied(target) - {"cli"}} - UNUSED[target]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for name in imported(path)} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("target", ["web", "worker"])
def test_image_contains_every_package_of_ours_that_its_code_imports(target: str) -> None:
    assert imports_of(target) & OURS <= copied(target)


@pytest.mark.parametrize("target", ["web", "worker"])
def test_image_installs_every_package_that_its_code_imports(target: str) -> None:
    installed = {canonicalize_name(Requirement(each).name) for each in INSTALLED[target]}
    providers = packages_distributions()
    missing = {
        name
        for name in imports_of(target) - OURS - BROUGHT_BY_TORCH
        if not installed & {canonicalize_name(each) for each in providers[name]}
    }
    assert missing == set()
