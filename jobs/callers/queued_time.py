"""The quota of queued device time, as the transaction that queues jobs checks it.

Each process of the service refuses most calls above the quota before it drafts their jobs (`jobs.callers.quotas`).
But it has counted the queued jobs some milliseconds earlier, and meanwhile another process may have queued more.
"""

from redis.client import Pipeline as RedisPipeline

from jobs.contract.job import JobStatus
from jobs.redis import keys

WITHIN = "ADM.WITHIN"  # command of `jobs.queue.transaction`, which runs the function below
NO_QUOTA = -1

# Returns the caller's queued time if `more` in addition would exceed the quota, else false. The sum counts as 0 if it
# is invalid, and if no job is queued, because corrupt jobs may leave it above 0.
FUNCTION = f"""
local function queued_above(sums, queued, caller, more, most)
    if tonumber(most) == {NO_QUOTA} then return false end
    local number, sum = redis.pcall('ZCARD', queued), redis.pcall('HGET', sums, caller)
    local is_counted = type(number) == 'number' and number > 0 and type(sum) == 'string' and sum:match('^%d+$')
    local present = is_counted and tonumber(sum) or 0
    return present + more > tonumber(most) and present
end
"""


def within(pipe: RedisPipeline, caller: str, more_ms: int, most_ms: int | None) -> None:
    """Run the commands up to the next one of this kind only if the caller's queued time stays within its quota.

    Only for `jobs.queue.transaction`. If the commands are not run, this command's answer is the time that is queued
    already, and their answers are None. most_ms: None for a caller without a quota.
    """
    most, queued = NO_QUOTA if most_ms is None else most_ms, keys.index(JobStatus.QUEUED, caller)
    pipe.execute_command(WITHIN, keys.CALLERS_QUEUED, queued, caller, more_ms, most)  # type: ignore[no-untyped-call] # redis-py leaves it untyped
