"""Checks after the faults have ended. Each check returns its findings, one a line; an empty result is a pass."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx2
from redis import Redis

from jobs.contract.job import JobStatus
from jobs.queue.events import EventKind
from jobs.redis import keys, rq_keys
from tests.chaos.follow import Followed
from tests.chaos.load import Ask
from tests.jobs.samples import replay

FINAL = ("completed", "failed", "cancelled", "expired")
NUM_PAGE = 100

# Keys that remain without jobs: announcements, past figures, RQ's list of queues; for a day also the turns of a queue
# that had a foreign entry when its last job left it.
LASTING_KEYS = re.compile(
    r"adm:(pipelines|pipelines-unheld|step-costs|workers|store-cleaned|worker:.+|worker-(process|metrics):.+|work:.+|estimate-.+:.+|turns:.+"
    r"|api-keys|api-keys-version|callers-queued)"
    r"|rq:(queues|workers|worker:.+|workers:.+)"
)
KEYS_OF_RUNNING_JOBS = (
    "rq:wip:*",
    "rq:scheduled:*",
    "rq:executions:*",
    "rq:execution:*",
    "rq:worker:*:executions",
    "adm:progress:*",
)


@dataclass(frozen=True)
class Seen:
    """One job as its client sees it after the faults."""

    id: str
    job: dict[str, Any]  # GET /v1/jobs/{id}
    events: tuple[tuple[str, dict[str, Any]], ...]  # kind and data of each that is kept
    bytes_sha256: tuple[str, ...]  # of the images' bytes, fetched

    @property
    def status(self) -> str:
        return str(self.job["status"])

    @property
    def sha256(self) -> tuple[str, ...]:
        return tuple(each["sha256"] for each in self.job["images"])


def look_at(client: httpx2.Client, redis: Redis, job_id: str) -> Seen | None:
    """A job, its events and its images; None where there is no such job."""
    answer = client.get(f"/v1/jobs/{job_id}")
    if answer.status_code == 404:
        return None
    job = answer.raise_for_status().json()
    images = [client.get(each["url"]).raise_for_status().content for each in job["images"]]
    events = tuple((each.kind.value, json.loads(each.data)) for each in replay(redis, job_id))
    return Seen(job_id, job, events, tuple(hashlib.sha256(each).hexdigest() for each in images))


def list_all(client: httpx2.Client) -> list[str]:
    """Ids of all jobs there are."""
    ids, after = [], None
    while True:
        page = client.get("/v1/jobs", params={"limit": NUM_PAGE} | ({"after": after} if after else {}))
        page.raise_for_status()
        ids += [each["id"] for each in page.json()["data"]]
        if (after := page.json()["next"]) is None:
            return ids


def ended_once(seen: Seen) -> list[str]:
    """The job has one final event, which is its last and agrees with its status."""
    if seen.status not in FINAL:
        return [f"{seen.id}: has not ended: {seen.status}"]
    kinds = [kind for kind, _ in seen.events]
    ends = [kind for kind in kinds if EventKind(kind).is_final]
    if ends != [seen.status] or kinds[-1] != seen.status:
        return [f"{seen.id}: is {seen.status}, and its events end so: {kinds[-6:]}, with {ends}"]
    return []


def images_are_right(seen: Seen, reference: Seen | None) -> list[str]:
    """A completed job has each of its images once, and they are those of the undisturbed run, in events too."""
    complaints = []
    if seen.bytes_sha256 != seen.sha256:
        complaints.append(f"{seen.id}: its images' bytes are not what their records say")
    in_events = {data["index"]: data["sha256"] for kind, data in seen.events if kind == "image"}
    published = {each["index"]: each["sha256"] for each in seen.job["images"]}
    if any(in_events.get(index) != sha256 for index, sha256 in published.items()):
        complaints.append(f"{seen.id}: its events tell of other images than it has")
    if reference is None or seen.status != "completed":
        return complaints
    if seen.job["numerics"] != reference.job["numerics"]:
        complaints.append(f"{seen.id}: made under other numerics than the undisturbed run's")
    elif seen.sha256 != reference.sha256:
        complaints.append(f"{seen.id}: its images are not those of the undisturbed run")
    if seen.job["results"] != reference.job["results"]:
        complaints.append(f"{seen.id}: its results are not those of the undisturbed run")
    return complaints


def stream_was_whole(followed: Followed, seen: Seen | None) -> list[str]:
    """A client that followed a job saw each of its events once, in order, whatever broke in between."""
    if seen is None:
        return []  # deleted: its stream went with it
    kept = [kind for kind, _ in seen.events]
    followed_kinds = [kind for _, kind in followed.seen]
    if followed_kinds == kept:
        return []
    return [f"{seen.id}: a follower saw {followed_kinds[-8:]}, and its events are {kept[-8:]}"]


def fate_is_right(ask: Ask, seen: Seen | None) -> list[str]:
    """An acknowledged job has one id, and a status that its client's calls allow."""
    if len(ask.ids) > 1:
        return [f"job {ask.number}: one key gave {len(ask.ids)} jobs"]
    if ask.deleted or not ask.ids:
        return [] if seen is None else [f"{seen.id}: was deleted, and is there"]
    if seen is None:
        return [f"{ask.id}: was acknowledged, and is lost"]
    fates = {ask.fate} | ({"cancelled"} if ask.cancel_sent else set())
    if seen.status not in fates:
        return [f"{seen.id}: is {seen.status} ({seen.job['error']}), not {' or '.join(sorted(fates))}"]
    return failed_for(ask.failure, seen) if seen.status == "failed" else []


def failed_for(failure: str | None, seen: Seen) -> list[str]:
    """A job failed for the reason that the suite built into it."""
    kind = (seen.job["error"] or {}).get("kind")
    return [] if kind == failure else [f"{seen.id}: failed as {seen.job['error']}, not {failure}"]


def nobody_else(asks: Sequence[Ask], unsure: int, poisoned: Iterable[str], found: Iterable[str]) -> list[str]:
    """Every job was acknowledged, poisoned by the suite, or may be of a post that got no answer."""
    known = {job_id for ask in asks for job_id in ask.ids} | set(poisoned)
    others = set(found) - known
    return [f"{len(others)} jobs that nobody knows, and {unsure} unanswered posts"] if len(others) > unsure else []


def queue_is_empty(redis: Redis) -> list[str]:
    """Redis has no entry of a running or queued job any more, and the counters of work are back at zero."""
    complaints = []
    if leases := redis.zcard(keys.LEASES):
        complaints.append(f"{leases} leases are left")
    if expiring := redis.zcard(keys.EXPIRING):
        complaints.append(f"{expiring} jobs are left to expire")
    for pattern in KEYS_OF_RUNNING_JOBS:
        complaints += [f"{name!r} is left" for name in redis.scan_iter(pattern)]
    for name in cast(set[bytes], redis.smembers(rq_keys.QUEUES_KEY)):
        if length := redis.llen(name):
            complaints.append(f"{length} ids are left in {name!r}")
    for name in redis.scan_iter(keys.queued_work("*")):
        work = cast(dict[bytes, bytes], redis.hgetall(name))
        complaints += [f"{name!r} counts {count!r} of {what!r}" for what, count in work.items() if int(count) != 0]
    return complaints


def indexes_agree(redis: Redis, statuses: Mapping[str, str]) -> list[str]:
    """Every job is in the index of its status, and in no other."""
    counted = Counter(statuses.values())
    return [
        f"the index of {status} has {listed} jobs; there are {counted[status]}"
        for status in (*FINAL, "queued", "in_progress", "cancelling")
        if (listed := redis.zcard(f"adm:jobs:{status}")) != counted[status]
    ]


def lists_of_callers_agree(redis: Redis, statuses: Mapping[str, str]) -> list[str]:
    """Each caller's list of a status has its jobs of that status and nothing else; no work counts as queued."""
    complaints = []
    found = {job_id: cast(bytes | None, redis.hget(rq_keys.job_key(job_id), "adm_caller")) for job_id in statuses}
    owners = {job_id: caller.decode() for job_id, caller in found.items() if caller}
    for caller in set(owners.values()):
        for status in (None, *JobStatus):
            members = cast(list[bytes], redis.zrange(keys.index(status, caller), 0, -1))
            listed = {each.decode()[17:] for each in members}
            own = {each for each, by in owners.items() if by == caller and status in (None, statuses[each])}
            if listed != own:
                complaints.append(f"{caller} has {len(own)} jobs that are {status}, and {len(listed)} are listed")
        if queued := int(cast(bytes | None, redis.hget(keys.CALLERS_QUEUED, caller)) or 0):
            complaints.append(f"{caller} has {queued} ms of work queued")
    return complaints


def nothing_left(redis: Redis, store: Path) -> list[str]:
    """After all jobs were deleted, Redis has no key of theirs and the store no file, not even a half-written one."""
    stray = sorted(name for name in redis.scan_iter("*") if not LASTING_KEYS.fullmatch(name.decode(errors="replace")))
    files = sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    return [f"key {name!r} is left" for name in stray] + [f"file {name} is left" for name in files]


def no_server_errors(log: str) -> list[str]:
    """The service never answered 500: a Redis or a store that it cannot reach is a 503."""
    return [line[:300] for line in log.splitlines() if '"status": 500' in line or "Traceback" in line]
