"""Names of workers that tests open without the lock on a name: all are of one start."""

from worker.name import Name, Start

START = Start.current()


def owned(name: str) -> Name:
    return Name(name, START)
