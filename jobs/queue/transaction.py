"""An atomic change of a job, which is made only if the job's hash has not changed since it was read.

A script does it instead of WATCH, MULTI and EXEC: in one round trip instead of two, and in one command instead of
thirty. Packing thirty commands and parsing their answers was a large part of a worker's own time per job.
"""

from typing import Any, cast

import structlog
from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.callers import queued_time, turns

log = structlog.get_logger("jobs.queue.transaction")

OPTIONAL = ("XADD", "HINCRBY")  # commands that no state depends on

# The script's arguments are the hash's length (-1: the key is not a hash), its fields and values, and each command,
# preceded by its length. A failing command does not stop the others, as in MULTI. Because of the first line, a server
# that accepts no writes refuses the script before it begins.
SCRIPT = f"""#!lua
{turns.FUNCTIONS}
{queued_time.FUNCTION}
local key, length, at = KEYS[1], tonumber(ARGV[1]), 2
local found = redis.pcall('HLEN', key)
if (type(found) == 'number' and found or -1) ~= length then return false end
for _ = 1, length do
    if redis.call('HGET', key, ARGV[at]) ~= ARGV[at + 1] then return false end
    at = at + 2
end
local answers, is_above = {{}}, false
while at <= #ARGV do
    local last, name, answer = at + tonumber(ARGV[at]), ARGV[at + 1], false
    if name == '{queued_time.WITHIN}' then is_above = queued_above(unpack(ARGV, at + 2, last)); answer = is_above
    elseif is_above then answer = false
    elseif name == '{turns.ENTER}' then answer = enter(unpack(ARGV, at + 2, last))
    elseif name == '{turns.LEAVE}' then answer = leave(unpack(ARGV, at + 2, last))
    else answer = redis.pcall(unpack(ARGV, at + 1, last)) end
    answers[#answers + 1] = answer
    at = last + 1
end
return answers
"""


def commit(redis: Redis, key: str, read: dict[bytes, bytes] | None, pipe: RedisPipeline) -> list[Any] | None:
    """Run a pipeline's commands if the hash is still as it was read; otherwise do nothing and return None.

    Returns the commands' answers. The pipeline may contain the commands of `jobs.callers.turns` and
    `jobs.callers.queued_time`.
    read: None if the key is not a hash. If the key of an event or a counter has the wrong type, that command is skipped
    and the others still run.
    """
    commands = [args for args, _ in pipe.command_stack]
    if not commands:
        return []
    arguments: list[Any] = [-1] if read is None else [len(read)]
    for pair in (read or {}).items():
        arguments += pair
    for each in commands:
        arguments += (len(each), *each)
    answers = cast(list[Any] | None, redis.eval(SCRIPT, 1, key, *arguments))
    if answers is None:
        return None
    for each, answer in zip(commands, answers, strict=True):
        if isinstance(answer, Exception):
            if each[0] not in OPTIONAL:
                raise answer
            log.error("corrupt_key", command=each[:2], error=str(answer))
    return answers
