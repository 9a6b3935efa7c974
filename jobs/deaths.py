"""The deaths of workers that had a job in flight, and whether the job is their cause.

A job that kills its worker does so at the same step each time, and never gets past it. A kill from outside comes at any
step. So a job is the cause only if workers died in a row at the furthest step that it reached while it ran alone. It
starts a new count when it gets further, and also when it dies earlier: it has passed that step alive before.
"""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from jobs.job import Progress

DEATHS_ALONE = 5  # in a row, until the job is failed; default of ADM_WORKER_DEATHS_ALONE
DEATHS_TOGETHER = 2  # of workers that had other jobs in flight too, until the job runs alone
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0  # before the next try alone; doubled with every death alone


class Deaths(BaseModel):
    """All that the deaths so far say about one job."""

    model_config = ConfigDict(frozen=True)

    workers: int = 0  # that died with the job in flight
    since: float = 0.0  # Unix time of the first of these deaths
    alone: int = 0  # workers of these that had no other job in flight
    together: int = 0  # all others, since the job made its last checkpoint
    in_a_row: int = 0  # the latest deaths alone, as far as all of them were at the furthest step
    furthest: Progress | None = None  # None as long as the job died before its first step
    checkpoint: str = ""  # SHA-256 of the checkpoint that the job had at the last death

    @property
    def runs_alone(self) -> bool:
        """Whether only a run without other jobs can show if this one kills its worker."""
        return self.together >= DEATHS_TOGETHER

    @property
    def delay_seconds(self) -> float:
        """Time to leave to other jobs before the next try."""
        if not (self.runs_alone and self.alone):
            return 0.0
        return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(self.alone - 1, 16))

    def with_another(self, reached: Progress | None, checkpoint: str, now: float) -> "Deaths":
        """Return the record with one more death, of a worker that had reported `reached`."""
        is_further = fraction(reached) > fraction(self.furthest)
        is_furthest, in_a_row, together = is_further, self.in_a_row, self.together
        if self.runs_alone:
            is_furthest |= self.alone == 0  # beside others it is not each step that is reported
            is_same = fraction(reached) == fraction(self.furthest)
            in_a_row = 1 if is_furthest else in_a_row + 1 if is_same else 0
        else:
            together += 1
        if is_further and checkpoint != self.checkpoint:  # its work lasts, so it ends however often it is killed
            in_a_row, together = 0, 1
        return Deaths(
            workers=self.workers + 1,
            since=self.since or now,
            alone=self.alone + self.runs_alone,
            together=together,
            in_a_row=in_a_row,
            furthest=reached if is_furthest else self.furthest,
            checkpoint=checkpoint,
        )

    def __str__(self) -> str:
        where = "before its first step"
        if self.furthest is not None:
            where = f"at step {self.furthest.step} of {self.furthest.steps} of stage {self.furthest.stage}"
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return (
            f"{self.workers} workers died with this job in flight since {since}, {self.alone} of them while it ran "
            f"alone, the last {self.in_a_row} {where}, and it never got further"
        )


def fraction(progress: Progress | None) -> float:
    """Share of the job's steps that were done; 0 before the first."""
    return 0.0 if progress is None else progress.fraction
