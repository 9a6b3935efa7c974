"""Errors that are shown to the user in one line; all finished images stay on disk."""


class BulkError(Exception):
    """The run cannot start or continue."""


class StoppedError(BulkError):
    """The run was stopped by Ctrl-C; the same command resumes it."""
