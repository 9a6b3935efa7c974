"""When Redis counts as away: it cannot be reached, or takes no writes for a while. Both pass by themselves."""

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

AWAY = (
    RedisConnectionError,  # also while it loads its data
    RedisTimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    MasterDownError,
    ExecAbortError,  # it stopped taking writes between a transaction's commands and its end
)
# For these redis-py has no class: the disk is full, or too few replicas are there.
REFUSED = re.compile(r"(?:.* caused error: )?(?:MISCONF|NOREPLICAS) ", re.DOTALL)


def is_away(error: BaseException) -> bool:
    """Whether an error says that Redis is away, and nothing of what was to be written."""
    return isinstance(error, AWAY) or (isinstance(error, ResponseError) and REFUSED.match(str(error)) is not None)
