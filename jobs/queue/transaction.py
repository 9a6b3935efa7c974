"""A change of a job that takes place as a whole, and only if the job's hash is still as it was read.

What WATCH, MULTI and EXEC do, in one round trip instead of two, and as one command instead of thirty: to pack these and
to read an answer to each was much of what a job cost a worker beside its steps.
"""

from typing import Any, cast

import structlog
from redis.client import Pipeline, Redis

from jobs.callers.turns import FUNCTIONS

log = structlog.get_logger("jobs.queue.transaction")

TOLD_ASIDE = ("XADD", "HINCRBY")  # commands that no state depends on

# Its arguments are the hash's length (-1: the key is no hash), its fields and values, then each command behind its
# length. A command that fails stops no other, as in MULTI; and for the first line's sake a server that takes no writes
# refuses the script before it begins.
SCRIPT = f"""#!lua
{FUNCTIONS}
local key, length, at = KEYS[1], tonumber(ARGV[1]), 2
local found = redis.pcall('HLEN', key)
if (type(found) == 'number' and found or -1) ~= length then return false end
for _ = 1, length do
    if redis.call('HGET', key, ARGV[at]) ~= ARGV[at + 1] then return false end
    at = at + 2
end
local answers = {{}}
while at <= #ARGV do
    local last = at + tonumber(ARGV[at])
    if ARGV[at + 1] == 'ADM.ENTER' then answers[#answers + 1] = enter(unpack(ARGV, at + 2, last))
    elseif ARGV[at + 1] == 'ADM.LEAVE' then answers[#answers + 1] = leave(unpack(ARGV, at + 2, last))
    else answers[#answers + 1] = redis.pcall(unpack(ARGV, at + 1, last)) end
    at = last + 1
end
return answers
"""


def commit(redis: Redis, key: str, read: dict[bytes, bytes] | None, pipe: Pipeline) -> list[Any] | None:
    """Run what a pipeline has gathered; None, and nothing is done, if the hash is not any more what was read.

    Returns the commands' answers. Beside Redis' own there are those of `jobs.callers.turns`.
    read: None where the key is no hash. Where an event or a counter meets a key that is none, the rest of it counts.
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
            if each[0] not in TOLD_ASIDE:
                raise answer
            log.error("damaged_key", command=each[:2], error=str(answer))
    return answers
