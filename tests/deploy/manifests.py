"""The overlays of deploy/kubernetes, rendered as `kubectl apply -k` renders them."""

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu", "keda", "external-redis")
WORKLOADS = ("Deployment", "StatefulSet")

Manifest = Mapping[str, Any]


@cache
def render(overlay: str) -> tuple[Manifest, ...]:
    """All objects of an overlay."""
    ran = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return tuple(yaml.safe_load_all(ran.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Manifest]:
    return [each for each in render(overlay) if each["kind"] in kinds]


def name_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def pods(overlay: str) -> Iterator[tuple[str, Manifest, Manifest]]:
    """The name, labels and specification of the pods of every workload."""
    for each in of_kind(overlay, *WORKLOADS):
        template = each["spec"]["template"]
        yield name_of(each), template["metadata"]["labels"], template["spec"]


def matches(selector: Manifest, labels: Manifest) -> bool:
    """Return whether a selector, of a policy or a budget, selects pods with these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ()))
