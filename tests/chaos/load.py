"""The load of clients during faults: mixed jobs, posted until they are acknowledged."""

import io
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any, Literal

import httpx2
from PIL import Image

from jobs.queue.submitting import keyed_id
from tests.chaos.faulty_worker import OVERFLOWS, RAISES
from tests.chaos.follow import Follower

Body = dict[str, Any]
Act = Literal["nothing", "cancel", "delete"]

HEALTHY = ("sphere", "cube", "cylinder", "cone", "torus", "pyramid", "capsule")
NUM_POSTERS = 6
FOLLOWED_EACH = 6  # one job in six is followed by its event stream
UNREACHABLE = (httpx2.TransportError,)
NOT_NOW = (429, 500, 502, 503, 504)  # retried; the check of the service's log fails for a 500


@dataclass
class Ask:
    """One job of a client, and the answers about it."""

    number: int
    body: Body
    key: str | None  # Idempotency-Key; a post without one is not repeated
    act: Act
    template: int | None = None  # index of the request whose images it must give; None: the job must fail or expire
    fate: str = "completed"  # the status it must end with, unless it was cancelled in time
    failure: str | None = None  # kind of the failure
    ids: set[str] = field(default_factory=set)  # the ids in answers
    cancel_sent: bool = False
    deleted: bool = False

    @property
    def id(self) -> str | None:
        return next(iter(self.ids), None)


def draw_templates(rng: random.Random, number: int, files: Sequence[str]) -> list[Body]:
    """Requests of every kind, each with a seed of its own."""
    return [draw_template(rng, each, files) for each in range(number)]


def draw_template(rng: random.Random, number: int, files: Sequence[str]) -> Body:
    name = rng.choice(HEALTHY)
    some = rng.sample(files, rng.randint(1, 2))
    seed = {"seed": 1000 + number}
    match rng.choice(["generate"] * 6 + ["upsample", "variation", "reconstruct", "interpolate", "score"]):
        case "upsample":
            return {"kind": "upsample", "images": some, "upsample": {"steps": rng.randint(2, 8)}} | seed
        case "variation":
            body = {"kind": "variation", "images": some, "strength": rng.choice([0.2, 0.6]), "n": rng.randint(1, 2)}
            return body | seed | {"steps": rng.randint(4, 20), "class_label": name}
        case "reconstruct":
            return {"kind": "reconstruct", "images": some, "steps": rng.randint(4, 15)}
        case "interpolate":
            return {
                "kind": "interpolate",
                "seeds": [number, number + 1],
                "n": 3,
                "class_label": name,
                "steps": 8,
            } | seed
        case "score":
            return {"kind": "score", "images": some}
    steps = rng.choice([1, 3, 8, 15, 30, 60, 120])
    body = {"model": rng.choice(["demo", "demo", "demo-uncond"]), "class_label": name, "steps": steps} | seed
    body |= {"guidance_scale": rng.choice([0, 1, 2.5, 8]), "n": rng.choice([1, 1, 2, 4])}
    body |= {"sampler": rng.choice(["ddim", "ddpm", "dpmpp_2m", "heun"])}
    return body | rng.choice([{}, {"upsample": False}, {"upsample": {"steps": 3, "sampler": "ddim"}}])


def draw_asks(rng: random.Random, number: int, templates: Sequence[Body], orphaned_pipeline: str) -> list[Ask]:
    """Jobs of the templates, and among them some that must fail and some that no worker will ever take."""
    asks = []
    for each in range(number):
        key = f"ask-{each}" if rng.random() < 0.85 else None
        private = {"priority": rng.choice(["low", "normal", "high"]), "user": f"user-{each}"}
        act: Act = rng.choices(["nothing", "cancel", "delete"], [8, 1, 1])[0]  # type: ignore[assignment] # of these
        fault = rng.choices(["none", "raises", "overflows", "orphaned", "cursed"], [85, 4, 4, 4, 3])[0]
        # each fault once at least, however few jobs there are
        fault = {3: "raises", 5: "overflows", 7: "orphaned", 9: "cursed"}.get(each, fault)
        generate = {"seed": each, "steps": 6, "class_label": "torus", "guidance_scale": 1} | private
        match fault:
            case "raises" | "overflows":
                name = RAISES if fault == "raises" else OVERFLOWS
                body = generate | {"class_label": name}
                asks.append(Ask(each, body, f"ask-{each}", "nothing", None, "failed", "step-failed"))
            case "orphaned":
                body = generate | {"model": orphaned_pipeline, "expires_in": 2}
                asks.append(Ask(each, body, f"ask-{each}", "nothing", None, "expired"))
            case "cursed":
                asks.append(Ask(each, generate, f"ask-{each}", "nothing", None, "failed", "store-failed"))
            case _:
                template = rng.randrange(len(templates))
                body = templates[template] | private
                if each % 7 == 0 and body.get("kind") != "score":
                    body |= {"previews": True}
                asks.append(Ask(each, body, key, act, template))
    return asks


def cursed_ids(asks: Sequence[Ask], callers: Sequence[str]) -> list[str]:
    """Ids of jobs whose images the store will never take; `callers` are the ids of the callers that post in turns."""
    return [
        keyed_id(callers[poster_of(each) % len(callers)], each.key)
        for each in asks
        if each.failure == "store-failed" and each.key is not None
    ]


def poster_of(ask: Ask) -> int:
    """The index of the poster of a job."""
    return ask.number % NUM_POSTERS


def upload(client: httpx2.Client, colour: str) -> str:
    """A picture to start from."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    answer = client.post("/v1/files", content=buffer.getvalue(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


class Clients:
    """Threads that post the asks at an even pace, repeat calls that got no answer, and cancel or delete some jobs.

    `connects` connect as callers, who post in turns.
    """

    def __init__(
        self, connects: Sequence[Callable[[], httpx2.Client]], asks: Sequence[Ask], seconds: float, seed: int
    ) -> None:
        self._connects, self._asks, self._seconds, self._seed = connects, asks, seconds, seed
        self.stopping = Event()
        self.unsure = 0  # posts without a key whose answer was lost: each may have made a job
        self._threads = [
            Thread(target=self._run, args=(first,), name=f"client-{first}") for first in range(NUM_POSTERS)
        ]
        self.errors: list[str] = []
        self.followers: list[Follower] = []

    def start(self) -> None:
        self._began = time.monotonic()
        for each in self._threads:
            each.start()

    @property
    def busy(self) -> bool:
        return any(each.is_alive() for each in self._threads)

    @property
    def following(self) -> bool:
        return any(each.busy for each in self.followers)

    def join(self) -> None:
        for each in self._threads:
            each.join()
        for follower in self.followers:
            follower.join()

    def _run(self, first: int) -> None:
        rng = random.Random(f"client {first} of {self._seed}")
        with self._connects[first % len(self._connects)]() as client:
            for ask in self._asks[first::NUM_POSTERS]:
                due = self._began + self._seconds * ask.number / len(self._asks)
                self.stopping.wait(max(0.0, due - time.monotonic()))
                self._serve(client, ask, rng)

    def _serve(self, client: httpx2.Client, ask: Ask, rng: random.Random) -> None:
        if not self._post(client, ask):
            return
        if ask.number % FOLLOWED_EACH == 0 and ask.id is not None:
            connect = self._connects[poster_of(ask) % len(self._connects)]
            self.followers.append(Follower(connect, ask.id, self.stopping))
        if rng.random() < 0.2 and ask.key is not None:
            self._post(client, ask)  # a client that is not sure posts again, and gets the same job
        if ask.act != "nothing":
            self.stopping.wait(rng.uniform(0, 1.5))
            self._cancel_or_delete(client, ask)

    def _post(self, client: httpx2.Client, ask: Ask) -> bool:
        """Post until there is an answer; without a key, once."""
        headers = {} if ask.key is None else {"Idempotency-Key": ask.key}
        while not self.stopping.is_set():
            try:
                answer = client.post("/v1/jobs", json=ask.body, headers=headers)
            except UNREACHABLE:
                answer = None
            if answer is not None and answer.status_code in (200, 202):
                ask.ids.add(answer.json()["id"])
                return True
            if answer is not None and answer.status_code not in NOT_NOW:
                self.errors.append(f"job {ask.number} was refused: {answer.status_code} {answer.text}")
                return False
            if ask.key is None:
                self.unsure += 1
                return False
            self.stopping.wait(0.2)
        return False

    def _cancel_or_delete(self, client: httpx2.Client, ask: Ask) -> None:
        """Repeat the call until it is answered; 404 and 409 count, because an earlier answer may be lost."""
        while not self.stopping.is_set():
            try:
                if ask.act == "cancel":
                    ask.cancel_sent = True
                    answer = client.post(f"/v1/jobs/{ask.id}/cancel")
                else:
                    answer = client.delete(f"/v1/jobs/{ask.id}")
            except UNREACHABLE:
                answer = None
            if answer is not None and answer.status_code in (200, 204, 404, 409):
                ask.deleted = ask.act == "delete"
                return
            if answer is not None and answer.status_code not in NOT_NOW:
                self.errors.append(f"{ask.act} of job {ask.number}: {answer.status_code} {answer.text}")
                return
            self.stopping.wait(0.2)
