"""Deployments of real processes, in which tests may cause faults."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.deployment import Deployment
from tests.worker.tiny_stack import write_tiny_stack

NUM_WORKERS = 2

StartDeployment = Callable[..., Deployment]
"""Starts a deployment, with further settings of its programs; it is ended with the test."""


@pytest.fixture
def start_deployment() -> Iterator[StartDeployment]:
    started: list[Deployment] = []

    def start(**variables: str) -> Deployment:
        folder = Path(tempfile.mkdtemp(prefix="adm-chaos-", dir="/tmp"))  # short: a socket's path has 107 bytes at most
        started.append(Deployment(folder, write_tiny_stack(folder / "weights").parent, NUM_WORKERS, **variables))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.end()
        if each.sound:
            shutil.rmtree(each.folder)  # a failure leaves the logs there
