"""Errors that are shown to the user in one line; all finished images stay on disk."""

from collections.abc import Mapping


class BulkError(Exception):
    """The run cannot start or continue."""


class OptionError(BulkError):
    """Options cannot be used. reasons: pairs of an option of `adm sample` and what is wrong with it."""

    def __init__(self, *reasons: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{option}: {reason}" for option, reason in reasons))
        self.reasons = reasons

    def renamed(self, names: Mapping[str, str]) -> "OptionError":
        """The same reasons for a command that has other names for some of the options."""
        return OptionError(*((names.get(option, option), reason) for option, reason in self.reasons))


class StoppedError(BulkError):
    """The run was stopped by Ctrl-C; the same command resumes it."""
