"""Sums of the counted bytes of uploaded pictures, for all callers and for each, kept within limits.

A file is counted by the transaction that publishes its record, and checked against the limits by the same one. Its
record expires by itself; the file's entry in `keys.FILE_EXPIRY` says when to look whether it has. So an upload costs
the same however many files are kept.
"""

from typing import NamedTuple, cast

from redis.client import Redis

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.redis import keys

LEAST_COUNTED_BYTES = 1 << 16  # counted for each file at least, so that the limits also bound their number
FORGOTTEN_AT_ONCE = 256  # files per script, during which Redis runs no other command
UNLIMITED = -1

# `size` is the bytes that a file counts for. Sums are a cache: they are recomputed if there are none, as after an
# upgrade, and hourly, because a service of an earlier version leaves them unchanged.
FUNCTIONS = f"""
local SIZES, CALLERS, SUMS, EXPIRY, PREFIX = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000

local function sum_of(whose) return tonumber(redis.call('HGET', SUMS, whose) or 0) end

local function count(caller, size)
    for _, whose in ipairs({{'{keys.ALL_CALLERS}', caller or ''}}) do
        if whose ~= '' and redis.call('HINCRBY', SUMS, whose, size) <= 0 then redis.call('HDEL', SUMS, whose) end
    end
end

local function forget(id)
    local size, caller = redis.call('HGET', SIZES, id), redis.call('HGET', CALLERS, id)
    redis.call('HDEL', SIZES, id)
    redis.call('HDEL', CALLERS, id)
    redis.call('ZREM', EXPIRY, id)
    if size then count(caller, -size) end
end

local function forget_expired()
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', now, 'LIMIT', 0, {FORGOTTEN_AT_ONCE})) do
        local expires_at = redis.call('PEXPIRETIME', PREFIX .. id) / 1000
        if expires_at < now then forget(id) else redis.call('ZADD', EXPIRY, expires_at, id) end
    end
    return redis.call('ZCOUNT', EXPIRY, '-inf', now) > 0
end

local function recount()
    local sizes, callers = redis.call('HGETALL', SIZES), redis.call('HGETALL', CALLERS)
    local sums, caller_of = {{}}, {{}}
    for at = 1, #callers, 2 do caller_of[callers[at]] = callers[at + 1] end
    for at = 1, #sizes, 2 do
        local caller, size = caller_of[sizes[at]], tonumber(sizes[at + 1])
        sums['{keys.ALL_CALLERS}'] = (sums['{keys.ALL_CALLERS}'] or 0) + size
        if caller then sums[caller] = (sums[caller] or 0) + size end
    end
    redis.call('DEL', SUMS)
    for whose, sum in pairs(sums) do redis.call('HSET', SUMS, whose, sum) end
    if redis.call('ZCARD', EXPIRY) * 2 < #sizes then
        for at = 1, #sizes, 2 do redis.call('ZADD', EXPIRY, 'NX', 0, sizes[at]) end
    end
end

if redis.call('EXISTS', SUMS) == 0 then recount() end
"""

# If a limit is exceeded, returns its place, the bytes kept under it, and 1 if expired files remain to be forgotten.
# Otherwise returns nothing, and publishes the file if a record is given.
ADMIT_SCRIPT = f"""#!lua
{FUNCTIONS}
local id, caller, size, most, most_own, record, seconds = unpack(ARGV, 2)
local more = forget_expired()
local before = tonumber(redis.call('HGET', SIZES, id) or 0)
local limits = {{{{caller, tonumber(most_own)}}, {{'{keys.ALL_CALLERS}', tonumber(most)}}}}
for place, limit in ipairs(limits) do
    local kept = sum_of(limit[1]) - before
    if limit[2] ~= {UNLIMITED} and kept + size > limit[2] then return {{place, kept, more and 1 or 0}} end
end
if record then
    forget(id)
    redis.call('SET', PREFIX .. id, record, 'EX', seconds)
    redis.call('HSET', SIZES, id, size)
    if caller ~= '' then redis.call('HSET', CALLERS, id, caller) end
    redis.call('ZADD', EXPIRY, now + seconds, id)
    count(caller, size)
end
return {{}}
"""

REMOVE_SCRIPT = f"""#!lua
{FUNCTIONS}
redis.call('DEL', PREFIX .. ARGV[2])
forget(ARGV[2])
"""

FORGET_SCRIPT = f"""#!lua
{FUNCTIONS}
for at = 2, #ARGV do
    if redis.call('EXISTS', PREFIX .. ARGV[at]) == 0 then forget(ARGV[at]) end
end
"""

RECOUNT_SCRIPT = f"""#!lua
{FUNCTIONS}
recount()
"""


class FileLimits(NamedTuple):
    """Limits, in bytes, on all files together and on the caller's; UNLIMITED: no limit."""

    all: int
    own: int


class FileCounts:
    """The counts of one Redis; all calls block."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._keys = [keys.FILE_BYTES, keys.FILE_CALLERS, keys.FILE_SUMS, keys.FILE_EXPIRY]
        scripts = ADMIT_SCRIPT, REMOVE_SCRIPT, FORGET_SCRIPT, RECOUNT_SCRIPT
        self._admit_script, self._remove, self._forget, self._recount = map(redis.register_script, scripts)

    def check(self, file_id: str, caller: str, num_bytes: int, limits: FileLimits) -> None:
        """Raise RefusedError for a file that would exceed a limit now."""
        self._admit_or_refuse(file_id, caller, num_bytes, limits)

    def publish(self, file_id: str, caller: str, num_bytes: int, limits: FileLimits, record: str, seconds: int) -> None:
        """Write a file's record for the given seconds, and count the file, or raise RefusedError and do neither."""
        self._admit_or_refuse(file_id, caller, num_bytes, limits, record, seconds)

    def _admit_or_refuse(
        self, file_id: str, caller: str, num_bytes: int, limits: FileLimits, *record_and_seconds: str | int
    ) -> None:
        size, more = max(num_bytes, LEAST_COUNTED_BYTES), 1
        place, kept = 0, 0
        while more:
            arguments = [keys.file(""), file_id, caller, size, limits.all, limits.own, *record_and_seconds]
            answer = cast(list[int], self._admit_script(self._keys, arguments))
            if not answer:
                return
            place, kept, more = answer
        what, most, name = (
            ("your pictures that are kept", limits.own, "ADM_QUOTA_FILES_BYTES")
            if place == 1
            else ("the pictures kept", limits.all, "ADM_MAX_FILES_BYTES")
        )
        detail = f"{what} have {kept} bytes of {most} ({name}); delete some, or wait until they expire"
        raise RefusedError(ErrorKind.FILES_FULL, detail)

    def remove(self, file_id: str) -> None:
        """Delete a file's record, and stop counting the file."""
        self._remove(self._keys, [keys.file(""), file_id])

    def forget_lost(self) -> None:
        """Stop counting the files whose record no longer exists, for whatever reason, and recompute the sums."""
        counted = cast(list[bytes], self._redis.hkeys(keys.FILE_BYTES))
        for first in range(0, len(counted), FORGOTTEN_AT_ONCE):
            self._forget(self._keys, [keys.file(""), *counted[first : first + FORGOTTEN_AT_ONCE]])
        self._recount(self._keys, [keys.file("")])
