"""The machine on which a benchmark ran."""

from typing import Any

import torch

from evaluation import machine as evaluations


def machine() -> dict[str, Any]:
    """The machine as evaluations record it, and torch's version."""
    return evaluations.machine() | {"torch": torch.__version__}
