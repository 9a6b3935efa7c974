"""A tiny stack of real networks, and the settings of a worker or of this process that loads it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.settings import Settings
from tests.worker.tiny_stack import write_tiny_stack


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_tiny_stack(folder)
    return folder


@pytest.fixture
def own_settings(weights: Path, tmp_path: Path) -> Iterator[Settings]:
    # loading a pipeline here changes the number of threads, and other tests compare with other processes
    threads = torch.get_num_threads()
    yield Settings(data=tmp_path / "data", weights=weights, device="cpu", max_rows=8, threads=1, log_level="warning")
    torch.set_num_threads(threads)
