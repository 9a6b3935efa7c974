"""Clients that follow jobs' events, and come back with the last id they saw whenever a stream breaks."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Thread

import httpx2

RECONNECT_SECONDS = 0.2
PING_SECONDS = 30  # longer than the service is ever silent on a stream


@dataclass
class Followed:
    """One client's view of one job."""

    job_id: str
    seen: list[tuple[str, str]] = field(default_factory=list)  # ids and kinds, in order; no previews
    connections: int = 0

    @property
    def ended(self) -> bool:
        return bool(self.seen) and self.seen[-1][1] in ("completed", "failed", "cancelled", "expired")


class Follower:
    """Follows one job on a thread of its own until its last event."""

    def __init__(self, connect: Callable[[], httpx2.Client], job_id: str, stopping: Event) -> None:
        self.followed = Followed(job_id)
        self._connect, self._stopping = connect, stopping
        self._thread = Thread(target=self._run, name=f"follower of {job_id}")
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self.followed.ended and not self._stopping.is_set():
            try:
                with self._connect() as client:
                    if self._follow(client) in (204, 404):
                        return
            except httpx2.TransportError:
                pass  # as any EventSource does, it comes back
            self._stopping.wait(RECONNECT_SECONDS)

    def _follow(self, client: httpx2.Client) -> int:
        headers = {"Last-Event-ID": self.followed.seen[-1][0]} if self.followed.seen else {}
        path = f"/v1/jobs/{self.followed.job_id}/events"
        with client.stream("GET", path, headers=headers, timeout=PING_SECONDS) as response:
            self.followed.connections += 1
            event: dict[str, str] = {}
            for line in response.iter_lines() if response.status_code == 200 else ():
                name, _, value = line.partition(": ")
                if name in ("id", "event", "data"):
                    event[name] = value
                elif not line and event:
                    self._note(event)
                    event = {}
            return response.status_code

    def _note(self, event: dict[str, str]) -> None:
        assert json.loads(event["data"])["id"] == self.followed.job_id
        if event["event"] != "preview":
            self.followed.seen.append((event["id"], event["event"]))
