"""Names for workers that tests open without the lock on the name; all of them have the same start."""

from worker.name import Name, Start

START = Start.current()


def owned(name: str) -> Name:
    return Name(name, START)
