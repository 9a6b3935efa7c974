"""Checks of Redis for `adm doctor`: the server, the rights of our user, and its clock."""

import contextlib
import re
import time
from uuid import uuid4

from redis.client import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from jobs.redis import keys
from jobs.redis.server import connect_redis, look
from jobs.settings import Settings
from jobs.settings.environment import masked
from standalone.embedded import server_binary
from standalone.supervisor import StartError
from vocabulary.doctor_finding import Finding

CHECK, RIGHTS_CHECK, CLOCK_CHECK = "redis", "redis rights", "clock"
SKEW_SECONDS = 5.0  # more than any round trip; skew is only a warning, because jobs are dated by Redis' clock
SCRATCH_SECONDS = 60  # after which Redis removes the keys of a killed doctor
COMMAND = re.compile(r"'([^']+)' command")  # in Redis' error text
PREFIXES = ("adm:", "rq:")  # of all our keys and channels

# The commands of the service, workers, RQ and scripts, each with a valid number of words, because Redis checks that
# before rights. KEY has a string, so that commands for other types fail without writing. CLIENT and CONFIG are omitted,
# because RQ works without them.
COMMANDS = re.split(
    r"[;\n]\s*",
    """\
PING; TIME; INFO; SCRIPT LOAD return; SCRIPT EXISTS 0; EVALSHA 0 0; EVAL return 0; MGET KEY; GET KEY; EXISTS KEY
TYPE KEY; INCRBY KEY 1; EXPIRE KEY 60; PEXPIRE KEY 60000; EXPIRETIME KEY; PEXPIRETIME KEY; PTTL KEY
HSET KEY a 1; HSETNX KEY a 1; HGET KEY a; HMGET KEY a; HGETALL KEY; HDEL KEY a; HKEYS KEY; HVALS KEY; HLEN KEY
HINCRBY KEY a 1; HINCRBYFLOAT KEY a 1; LPUSH KEY a; RPUSH KEY a; LRANGE KEY 0 0; LINDEX KEY 0; LLEN KEY
LINSERT KEY BEFORE a b; LPOS KEY a; LREM KEY 1 a; LTRIM KEY 0 0; SADD KEY a; SREM KEY a; SMEMBERS KEY
SISMEMBER KEY a; ZADD KEY 1 a; ZREM KEY a; ZCARD KEY; ZCOUNT KEY 0 1; ZSCORE KEY a; ZRANK KEY a; ZRANGE KEY 0 0
ZRANGEBYSCORE KEY 0 1; ZREVRANGEBYLEX KEY + -; ZREMRANGEBYSCORE KEY 0 1; ZREMRANGEBYRANK KEY 0 0; ZSCAN KEY 0
XADD KEY * a 1; XRANGE KEY - +; PUBLISH KEY a; DEL KEY""",
)


def check_redis(settings: Settings) -> list[Finding]:
    """Check the user's rights, and then the server, the callers' keys and the clock, which need these rights."""
    with connect_redis(settings.redis_address) as redis:
        try:
            with contextlib.suppress(NoPermissionError):  # reported below, with all other missing rights
                redis.ping()
        except (RedisError, OSError) as error:
            return [absent(settings, str(error).partition("\n")[0])]
        try:
            rights = check_rights(redis)
            if rights.verdict == "fault":
                return [rights]
            return [check_server(redis, settings), rights, check_callers(redis, settings), check_clock(redis)]
        except (RedisError, OSError) as error:
            text = f"{masked(settings.redis_address)} stopped answering: {error}; see its log"
            return [Finding(CHECK, "fault", text)]


def absent(settings: Settings, why: str) -> Finding:
    """The finding for a server that cannot be reached: ok if it is the embedded one and nothing is running."""
    if settings.redis_url is not None:
        where = masked(settings.redis_url)
        return Finding(CHECK, "fault", f"{where} cannot be used: {why}; start it, or correct ADM_REDIS_URL")
    try:
        server_binary()
    except StartError as error:
        return Finding(CHECK, "fault", str(error))
    return Finding(CHECK, "ok", "the embedded server is not running; adm up starts it")


def check_server(redis: Redis, settings: Settings) -> Finding:
    """Check version, mode and eviction policy, like every program at its start, and also persistence and a write."""
    server, persistence = look(redis), redis.info("persistence")
    if server.fault is not None:
        return Finding(CHECK, "fault", server.fault)
    if refusal := refused_write(redis):
        return Finding(CHECK, "fault", f"ADM_REDIS_URL: the server takes no writes: {refusal}; name one that does")
    summary = f"{masked(settings.redis_address)}: version {server.version}, {server.mode}, {server.eviction}"
    if persistence.get("aof_enabled"):
        return Finding(CHECK, "ok", f"{summary}, append-only file on")
    lost = "a crash of Redis loses accepted jobs; set its appendonly to yes"
    return Finding(CHECK, "warning", f"{summary}, append-only file off: {lost}")


def refused_write(redis: Redis) -> ResponseError | None:
    """Return the error of a refused write, for example on a replica or with a full disk; None if it is accepted."""
    key = scratch_key(PREFIXES[0])
    try:
        redis.set(key, "1", ex=SCRATCH_SECONDS)
        redis.delete(key)
    except ResponseError as error:
        return error
    return None


def scratch_key(prefix: str) -> str:
    """Return a key that nothing else uses."""
    return f"{prefix}doctor:{uuid4().hex}"


def check_rights(redis: Redis) -> Finding:
    """Try all our commands on scratch keys, because ACL DRYRUN itself needs rights that our user lacks."""
    scratch = [scratch_key(each) for each in PREFIXES]
    with redis.pipeline(transaction=False) as pipe:
        for key in scratch:
            pipe.set(key, "1", ex=SCRATCH_SECONDS)
            for command in COMMANDS:
                words = [key if word == "KEY" else word for word in command.split()]
                pipe.execute_command(*words)  # type: ignore[no-untyped-call] # redis-py leaves it untyped
        answers = pipe.execute(raise_on_error=False)
    refusals: list[ResponseError] = [each for each in answers if isinstance(each, NoPermissionError)]
    refusals += filter(None, (refused_conversation(redis, each) for each in scratch))
    if not refusals:
        return Finding(RIGHTS_CHECK, "ok", f"all our commands are permitted on {' and '.join(PREFIXES)} keys")
    denied = ", ".join(sorted({reason(each) for each in refusals}))
    needed = " ".join(f"~{prefix}* &{prefix}*" for prefix in PREFIXES)
    return Finding(
        RIGHTS_CHECK, "fault", f"not permitted: {denied}; give Redis' user {needed} and these commands (ACL SETUSER)"
    )


def refused_conversation(redis: Redis, name: str) -> ResponseError | None:
    """Return the error of a transaction or a subscription that is not permitted; None if both are."""
    try:
        with redis.pipeline() as pipe:
            pipe.watch(name)  # type: ignore[no-untyped-call] # as above
            pipe.unwatch()
            pipe.multi()
            pipe.exists(name)
            pipe.execute()
        with redis.pubsub() as pubsub:  # type: ignore[no-untyped-call] # untyped there
            pubsub.subscribe(name)
            pubsub.get_message(timeout=SCRATCH_SECONDS)  # the server's answer to the subscription
            pubsub.unsubscribe(name)
            pubsub.get_message(timeout=SCRATCH_SECONDS)
    except ResponseError as error:
        # EXEC's refusal is an ExecAbortError that quotes it; other errors do not concern rights.
        return error if isinstance(error, NoPermissionError) or "NOPERM" in str(error) else None
    return None


def reason(error: ResponseError) -> str:
    """Return the command that Redis refused, or the kind of name that the user may not use."""
    message = str(error)
    if command := COMMAND.search(message):
        return command[1].upper()
    return "channels" if "channel" in message else "keys"


def check_callers(redis: Redis, settings: Settings) -> Finding:
    """Check whether a service could have callers: beyond loopback they need keys."""
    if settings.serves_anonymous or redis.exists(keys.API_KEYS):
        return Finding("callers", "ok", f"the service may listen on {settings.host}")
    text = f"ADM_HOST: {settings.host} is not loopback and there is no key; adm keys create makes one"
    return Finding("callers", "fault", f"{text}, ADM_ALLOW_ANONYMOUS=yes serves anybody")


def check_clock(redis: Redis) -> Finding:
    """Compare Redis' clock with this machine's, corrected by half of the round trip."""
    before = time.time()
    seconds, microseconds = redis.time()
    here = (before + time.time()) / 2
    return judge_clock(seconds + microseconds / 1_000_000 - here)


def judge_clock(ahead_seconds: float) -> Finding:
    """The finding for the seconds by which Redis' clock is ahead of this machine's."""
    if abs(ahead_seconds) <= SKEW_SECONDS:
        return Finding(CLOCK_CHECK, "ok", f"within {SKEW_SECONDS:g} s of Redis' ({ahead_seconds:+.3f} s)")
    way = "ahead of" if ahead_seconds > 0 else "behind"
    skew = f"Redis' clock is {abs(ahead_seconds):.1f} s {way} this machine's"
    return Finding(CLOCK_CHECK, "warning", f"{skew}: jobs have Redis' time, logs this machine's; set both by NTP")
