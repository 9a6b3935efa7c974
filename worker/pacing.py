"""When a worker begins the next step of a device that works by itself: late, and yet in time.

Late, so that whoever comes while a step runs has a place in the next one. In time, so that the device never waits.
"""

SHARE = 1 / 8  # of what lies ahead of the device: as far as what is expected may be off
SECONDS = 0.005  # to look for jobs, and for the rest
OVER_HOST = 1.25  # times what the host takes to begin a step


def patience(seconds_ahead: float, host_seconds: float) -> float:
    """For how long after a step's end the next to be begun may wait, when so much lies ahead of the device; seconds.

    host_seconds is what it takes to begin one. That includes waiting where the device takes no more work for now, and
    then the worker does not wait on top of it.
    """
    return seconds_ahead - max(SECONDS, SHARE * seconds_ahead, OVER_HOST * host_seconds)
