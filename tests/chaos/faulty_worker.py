"""`adm worker` with faults: a store that may be slow, and networks that some rows break.

Only PyTorch and the store's driver are changed. The program itself is unchanged, except that it counts each job's steps
in files, so that the counts survive a kill. Faults begin only after it has loaded and checked its weights and warmed
up. The argument is the number of steps that its engine keeps in flight (2 on a GPU).
"""

import contextlib
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import obstore
import torch
import torch.nn.functional as F
from torch import Tensor

import worker.main
from engine.engine import Engine
from engine.trajectory import Trajectory
from worker.attempts import Attempt
from worker.inbox import Inbox
from worker.stopping import Stopping

CONTROL = "CHAOS_CONTROL"  # folder in which the suite says how slow the store is
SLOW_FILE = "slow-store-seconds"
STEPS_FOLDER = "row-steps"  # in the control folder: a file for each job and process, with a byte for each row step
RAISES, KILLS, OVERFLOWS = "octahedron", "prism", "star"  # classes whose rows break the network, or the process
RAISES_LABEL, KILLS_LABEL, OVERFLOWS_LABEL = 7, 8, 9
KILLS_AT = 6  # step at which the first job of that class in this process kills it

embedding, put, open_inbox, moved = F.embedding, obstore.put, worker.main.open_inbox, Attempt.moved
killing_steps = itertools.count(1)


def breakable_embedding(labels: Tensor, *args: Any, **options: Any) -> Tensor:
    """The label embedding of the networks: one class raises, one kills the process, rows of another become NaN."""
    if (labels == RAISES_LABEL).any():
        raise RuntimeError("no kernel for this row")
    if (labels == KILLS_LABEL).any() and next(killing_steps) == KILLS_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    rows: Tensor = embedding(labels, *args, **options)
    return rows.masked_fill((labels == OVERFLOWS_LABEL)[:, None], torch.nan)


def slow_put(*args: Any, **options: Any) -> Any:
    """The store's put, delayed."""
    try:
        seconds = float((Path(os.environ[CONTROL]) / SLOW_FILE).read_text())
    except (FileNotFoundError, ValueError):
        seconds = 0.0
    time.sleep(seconds)
    return put(*args, **options)


def moved_and_counted(self: Attempt, trajectory: Trajectory, stage: str, seconds: float) -> None:
    moved(self, trajectory, stage, seconds)
    path = Path(os.environ[CONTROL]) / STEPS_FOLDER / f"{self.claim.job_id}.{os.getpid()}"
    # tests that fill the disk do not compare steps, so a lost byte does not matter
    with contextlib.suppress(OSError), path.open("ab") as file:
        file.write(b"\0")


def open_inbox_and_arm(inbox: Inbox, stopping: Stopping) -> None:
    F.embedding = breakable_embedding  # type: ignore[assignment] # passes on whatever options there are
    obstore.put = slow_put
    open_inbox(inbox, stopping)


if __name__ == "__main__":
    (Path(os.environ[CONTROL]) / STEPS_FOLDER).mkdir(exist_ok=True)
    worker.main.open_inbox = open_inbox_and_arm
    Attempt.moved = moved_and_counted  # type: ignore[method-assign]
    Engine.__init__.__defaults__ = (int(sys.argv[1]),)  # the depth
    worker.main.main()
