"""`adm worker` in a world with faults: a store that may be slow, and networks that some rows break.

What is changed is PyTorch and the store's driver; the program itself is as it is, but that it counts each job's steps
in files, which a kill cannot take back. Faults begin when it is loaded, so that it warms up and checks its weights in
peace. The argument says how many steps its engine begins at once; on a GPU they are 2.
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
from worker.inbox import Inbox
from worker.job_runs import JobRun
from worker.stopping import Stopping

CONTROL = "CHAOS_CONTROL"  # folder in which the suite says how slow the store is
SLOW_FILE = "slow-store-seconds"
STEPS_FOLDER = "row-steps"  # in it; a file of each job and process, a byte for each step of one of the job's images
RAISES, KILLS, OVERFLOWS = "octahedron", "prism", "star"  # classes whose rows break the network, or the process
RAISES_LABEL, KILLS_LABEL, OVERFLOWS_LABEL = 7, 8, 9
KILLS_AT = 6  # step of a job of that class, the first that this process runs

embedding, put, open_inbox, moved = F.embedding, obstore.put, worker.main.open_inbox, JobRun.moved
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
    """The store's put, after a while."""
    try:
        seconds = float((Path(os.environ[CONTROL]) / SLOW_FILE).read_text())
    except (FileNotFoundError, ValueError):
        seconds = 0.0
    time.sleep(seconds)
    return put(*args, **options)


def moved_and_counted(self: JobRun, trajectory: Trajectory, stage: str, seconds: float) -> None:
    moved(self, trajectory, stage, seconds)
    path = Path(os.environ[CONTROL]) / STEPS_FOLDER / f"{self.claim.job_id}.{os.getpid()}"
    # a disk may be full; where steps are compared, none is
    with contextlib.suppress(OSError), path.open("ab") as file:
        file.write(b"\0")


def open_inbox_and_arm(inbox: Inbox, stopping: Stopping) -> None:
    F.embedding = breakable_embedding  # type: ignore[assignment] # passes on whatever options there are
    obstore.put = slow_put
    open_inbox(inbox, stopping)


if __name__ == "__main__":
    (Path(os.environ[CONTROL]) / STEPS_FOLDER).mkdir(exist_ok=True)
    worker.main.open_inbox = open_inbox_and_arm
    JobRun.moved = moved_and_counted  # type: ignore[method-assign]
    Engine.__init__.__defaults__ = (int(sys.argv[1]),)  # the depth
    worker.main.main()
