"""Errors of the engine. Their fields describe the error; the programs add a remedy for users."""

from vocabulary.counts import counted


class UnknownOfferError(Exception):
    """A plan needs something that a stage does not offer."""


class UnknownSamplerError(UnknownOfferError):
    """There is no sampler of this name, or it cannot encode."""

    def __init__(self, sampler: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown sampler {sampler!r}; there are {', '.join(known)}")
        self.sampler, self.known = sampler, known


class StepCountError(UnknownOfferError):
    """An encoding cannot take this number of steps."""

    def __init__(self, num_steps: int, most: int) -> None:
        super().__init__(f"an encoding takes from 2 to {most} steps")
        self.num_steps, self.most = num_steps, most


class TimeGridError(UnknownOfferError):
    """A schedule has no such time grid, for the given reason."""

    def __init__(self, num_steps: int, num_timesteps: int, reason: str) -> None:
        super().__init__(f"{counted(num_steps, 'step')} of {num_timesteps}: {reason}")
        self.num_steps, self.num_timesteps, self.reason = num_steps, num_timesteps, reason


class NoClassifierError(UnknownOfferError):
    """A stage without a classifier was called to classify images."""

    def __init__(self) -> None:
        super().__init__("this stage has no classifier")


class ImageError(Exception):
    """An error about one image of a job."""

    def __init__(self, job_id: str, index: int, reason: str) -> None:
        super().__init__(f"image {index} of job {job_id} {reason}")
        self.job_id, self.index = job_id, index


class DuplicateImageError(ImageError):
    """The image is in the engine already."""

    def __init__(self, job_id: str, index: int) -> None:
        super().__init__(job_id, index, "is in the engine already")


class UnfitStateError(ImageError):
    """The state does not belong to the image, for the given reason."""


class NotFiniteError(ImageError):
    """An image's state has overflowed: its pixels would be noise or black without any error."""

    def __init__(self, job_id: str, index: int, stage: str) -> None:
        super().__init__(job_id, index, f"is not finite after stage {stage}")
        self.stage = stage
