"""A short hash of the facts that determine a result: equal facts give equal hashes, in every process."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

LENGTH = 16  # hex digits


def short_hash(facts: Mapping[str, Any]) -> str:
    """The hash of values that JSON can hold; the order of their names does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:LENGTH]
