"""What is told to the user in one line; all that is finished stays on disk."""


class BulkError(Exception):
    """The run cannot begin, or cannot go on as it is."""


class StoppedError(BulkError):
    """Ctrl-C; the same command goes on."""
