"""The ScaledObjects of deploy/kubernetes are valid by KEDA's published schema; `make test-keda` runs this.

The schema is that of the npm package @kubernetes-models/keda (MIT; made of KEDA 2.10's definitions, Apache-2.0), which
the target installs into build/keda.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import of_kind

HERE, TOOLS = Path(__file__).parent, Path(__file__).parents[2] / "build/keda"


def complaints(manifest: Mapping[str, Any]) -> str:
    """The schema's errors for a ScaledObject; empty if it is valid."""
    script = TOOLS / "validate.mjs"
    shutil.copy2(HERE / script.name, script)
    command = ["node", str(script)]
    ran = subprocess.run(command, input=json.dumps(manifest), capture_output=True, text=True, check=False)
    return ran.stderr if ran.returncode else ""


def test_scaled_objects_are_valid() -> None:
    found = of_kind("keda", "ScaledObject")
    assert len(found) == 2
    for each in found:
        assert complaints(each) == ""


@pytest.mark.parametrize(
    "changes",
    [{"triggers": None}, {"scaleTargetRef": {"kind": "StatefulSet"}}, {"cooldownPeriod": "long"}],
)
def test_schema_refuses_what_is_wrong(changes: dict[str, Any]) -> None:
    manifest = dict(of_kind("keda", "ScaledObject")[0])
    manifest["spec"] = {name: value for name, value in (manifest["spec"] | changes).items() if value is not None}
    assert "ScaledObject" in complaints(manifest) or "spec" in complaints(manifest)
