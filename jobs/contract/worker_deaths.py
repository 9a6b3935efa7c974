"""The deaths of workers that had a job in flight, and whether the job is their cause.

A job that kills its worker does so at the same step each time, and never gets past it. A kill from outside comes at any
step. So deaths are counted at the furthest step that a job reached while it ran alone; enough of them show that the job
is the cause. The count starts at 1 again when the job gets further, and is cleared when it leaves a checkpoint further
on. A death at an earlier step is no evidence about the furthest step and leaves the count as it is.
"""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from jobs.contract.job import Progress

DEATHS_ALONE = 5  # deaths at the furthest step after which the job is failed; default of ADM_WORKER_DEATHS_ALONE
DEATHS_TOGETHER = 2  # deaths of workers that had other jobs in flight too, after which the job runs alone
# Once so many workers have died while they ran only this job, each further death is logged as a warning, because a job
# that kills its worker at varying steps is never failed.
MANY_ALONE = 20
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0  # before the next attempt alone; doubled after each such attempt


class Deaths(BaseModel):
    """The workers' deaths so far with one job in flight, as evidence about the job."""

    model_config = ConfigDict(frozen=True)

    workers: int = 0  # that died with the job in flight
    since: float = 0.0  # Unix time of the first of these deaths
    no_progress_since: float = 0.0  # Unix time of the first death since the last checkpoint that went further
    alone: int = 0  # workers of these that had no other job in flight
    together: int = 0  # all others, since the job made its last checkpoint
    at_furthest: int = 0  # workers of these, counted in `alone`, that died at the furthest step
    furthest: Progress | None = None  # None if all deaths were before the first step
    checkpoint: str = ""  # SHA-256 of the checkpoint that the job had at the last death

    @property
    def runs_alone(self) -> bool:
        """Return whether the job must run alone, to show if it kills its worker."""
        return self.together >= DEATHS_TOGETHER

    @property
    def delay_seconds(self) -> float:
        """Seconds before the next try, in which other jobs run."""
        if not (self.runs_alone and self.alone):
            return 0.0
        return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(self.alone - 1, 16))

    def with_another(self, reached: Progress | None, checkpoint: str, now: float) -> "Deaths":
        """Return the record with one more death, of a worker that had reported `reached`."""
        is_further = fraction(reached) > fraction(self.furthest)
        is_furthest, at_furthest, together = is_further, self.at_furthest, self.together
        no_progress_since = self.no_progress_since or now
        if self.runs_alone:
            is_furthest |= self.alone == 0  # with other jobs in flight, not every step is reported
            is_same = fraction(reached) == fraction(self.furthest)
            at_furthest = 1 if is_furthest else at_furthest + is_same
        else:
            together += 1
        if is_further and checkpoint != self.checkpoint:  # its checkpoints advance, so it ends in spite of kills
            at_furthest, together, no_progress_since = 0, 1, now
        return Deaths(
            workers=self.workers + 1,
            since=self.since or now,
            no_progress_since=no_progress_since,
            alone=self.alone + self.runs_alone,
            together=together,
            at_furthest=at_furthest,
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
            f"alone, {self.at_furthest} of these {where}, and it never got further"
        )


def fraction(progress: Progress | None) -> float:
    """Share of the job's steps that were done; 0 before the first."""
    return 0.0 if progress is None else progress.fraction
