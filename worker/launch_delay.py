"""Decides when to launch the next step on an asynchronous device: as late as possible without letting the device idle.

A late launch lets jobs that arrive during a step join the next one. A launch in time never lets the device wait.
"""

SHARE = 1 / 8  # margin for the error of the estimate, as a share of the device's estimated work
SECONDS = 0.005  # margin for the poll of Redis and the loop's other work
OVER_HOST = 1.25  # margin for the launch, as a multiple of the host's time to launch a step


def launch_delay(seconds_ahead: float, host_seconds: float) -> float:
    """Return the seconds that the next launch may wait after a step's end, given the work already queued on the device.

    host_seconds is the host's time to launch a step. It includes waiting for a device whose queue is full, and then the
    worker does not wait in addition.
    """
    return seconds_ahead - max(SECONDS, SHARE * seconds_ahead, OVER_HOST * host_seconds)
