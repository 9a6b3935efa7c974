"""Turns between callers in a line of jobs: start-time fair queueing, kept by the order of the line itself.

A line is the RQ queue of a pipeline and priority. Each job in it has a turn, a virtual time, and the line is sorted by
turns. A job that enters gets the turn of the line's head, or the end of its caller's latest turn if that is later.
A turn lasts for the job's share: its estimated cost over its caller's weight. So a caller's jobs are spread over the
line, and another caller's job enters near the head. Jobs of one caller, or without keys, keep their order of arrival.
docs/decisions/0019-callers-take-turns.md gives the reasons.
"""

from typing import Any, NamedTuple, cast

from redis.client import Pipeline as RedisPipeline

from jobs.redis import keys

KEPT_SECONDS = 86_400  # lifetime of a line's turns if foreign entries keep the line from becoming empty
LATEST_TURN = 2**40  # virtual seconds; a later turn is corrupt, and so is NaN
ENTER, LEAVE = "ADM.ENTER", "ADM.LEAVE"  # commands of `jobs.queue.transaction`, which runs the functions below

# A key of the wrong type counts as empty, and an invalid time as 0; if the line itself is not a list, the functions
# return the error. The place is found by binary search, because a line has up to 10,000 jobs. A job without a turn was
# queued by an earlier version; its turn counts as 0, the oldest.
FUNCTIONS = f"""
local function time_in(hash, field)
    local time = tonumber(redis.pcall('HGET', hash, field)) or 0
    return time >= 0 and time <= {LATEST_TURN} and time or 0
end

local function turn_at(queue, prefix, place)
    local id = redis.pcall('LINDEX', queue, place)
    return type(id) == 'string' and time_in(prefix .. id, 'adm_turn') or 0
end

local function place_of(queue, ends, prefix, caller, length)
    if length == 0 then return 0, 0 end
    local turn = math.max(turn_at(queue, prefix, 0), time_in(ends, caller))
    local first, last = 0, length
    while first < last do
        local middle = math.floor((first + last) / 2)
        if turn_at(queue, prefix, middle) > turn then last = middle else first = middle + 1 end
    end
    return turn, first
end

local function enter(where, queue, ends, own, prefix, id, caller, share)
    local length = redis.pcall('LLEN', queue)
    if type(length) ~= 'number' then return length end
    local turn, place = 0, 0
    if where == 'front' then
        turn = length > 0 and turn_at(queue, prefix, 0) or 0
        redis.pcall('LPUSH', queue, id)
    else
        turn, place = place_of(queue, ends, prefix, caller, length)
        if place == length then redis.pcall('RPUSH', queue, id)
        else redis.pcall('LINSERT', queue, 'BEFORE', redis.pcall('LINDEX', queue, place), id) end
        redis.pcall('HSET', ends, caller, turn + share)
        redis.pcall('EXPIRE', ends, {KEPT_SECONDS})
    end
    redis.pcall('HSET', prefix .. id, 'adm_turn', turn)
    if caller == '' then return {{place, place}} end
    redis.pcall('ZADD', own, turn, id)
    local before = redis.pcall('ZRANK', own, id)
    return {{place, type(before) == 'number' and before or 0}}
end

local function leave(queue, ends, own, id, caller, unserved)
    if caller ~= '' then redis.pcall('ZREM', own, id) end
    if redis.pcall('LLEN', queue) == 0 then redis.pcall('DEL', ends)
    elseif tonumber(unserved) > 0 then redis.pcall('HINCRBYFLOAT', ends, caller, -unserved) end
    return 0
end
"""

PLACE_SCRIPT = f"""#!lua flags=no-writes
{FUNCTIONS}
local length = redis.pcall('LLEN', KEYS[1])
local _, place = place_of(KEYS[1], KEYS[2], ARGV[1], ARGV[2], type(length) == 'number' and length or 0)
return place
"""


class Place(NamedTuple):
    """The number of jobs before a job in its line, and how many of them are its own caller's."""

    all: int
    own: int


class Entry(NamedTuple):
    """A job that enters a line."""

    job_id: str
    queue: str
    caller: str
    share: float


def enter(pipe: RedisPipeline, queue_key: str, job_prefix: str, entry: Entry, *, at_front: bool) -> None:
    """Put a job into its line. Only for `jobs.queue.transaction`, whose answer `place_of_reply` parses.

    at_front: before all other jobs; the caller pays no further share, because the job has had its turn.
    """
    where, own = "front" if at_front else "back", keys.own_line(entry.queue, entry.caller)
    ends = keys.turn_ends(entry.queue)
    pipe.execute_command(ENTER, where, queue_key, ends, own, job_prefix, entry.job_id, entry.caller, entry.share)  # type: ignore[no-untyped-call] # redis-py leaves it untyped


def place_of_reply(answer: Any) -> Place:
    return Place(*cast(list[int], answer))


def ask_place(pipe: RedisPipeline, queue_key: str, job_prefix: str, queue: str, caller: str) -> None:
    """Queue the command that returns the number of jobs before a job that enters now."""
    pipe.eval(PLACE_SCRIPT, 2, queue_key, keys.turn_ends(queue), job_prefix, caller)


def leave(pipe: RedisPipeline, queue_key: str, entry: Entry, *, served: bool) -> None:
    """Remove a job that has left its line from the data beside the line; refund its share if it was not served.

    When a line becomes empty, its turns are removed, so the turn of the next job that enters is 0.
    """
    ends, own = keys.turn_ends(entry.queue), keys.own_line(entry.queue, entry.caller)
    pipe.execute_command(LEAVE, queue_key, ends, own, entry.job_id, entry.caller, 0.0 if served else entry.share)  # type: ignore[no-untyped-call] # as above
