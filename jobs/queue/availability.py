"""Decide whether an error means that Redis is unavailable: it cannot be reached, or it refuses writes.

Both states are temporary.
"""

import re

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    ExecAbortError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

UNAVAILABLE = (
    RedisConnectionError,  # also while it loads its data
    RedisTimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    MasterDownError,
    ExecAbortError,  # the server began to refuse writes between a transaction's commands and EXEC
)
# redis-py has no class for these: the disk is full, or there are too few replicas.
REFUSED = re.compile(r"(?:.* caused error: )?(?:MISCONF|NOREPLICAS) ", re.DOTALL)


def is_unavailable(error: BaseException) -> bool:
    """Return whether an error means that Redis is unavailable, and not that the command itself was wrong."""
    return isinstance(error, UNAVAILABLE) or (
        isinstance(error, ResponseError) and REFUSED.match(str(error)) is not None
    )
