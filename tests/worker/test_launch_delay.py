"""A device that runs asynchronously never waits for its host, and a new job waits for little more than one step."""

from hypothesis import given
from hypothesis import strategies as st

from worker.launch_delay import OVER_HOST, SECONDS, SHARE, launch_delay

TURNS = 100


class Device:
    """A simulated device and its worker; their durations are given, and time is counted instead of spent."""

    def __init__(self, step_seconds: float, begin_seconds: float, report_seconds: float) -> None:
        self.step_seconds, self.begin_seconds, self.report_seconds = step_seconds, begin_seconds, report_seconds
        self.now = 0.0
        self.ends: list[float] = []  # of the launched steps
        self.waits: list[float] = []  # of a job that comes just too late for a step, until the next one has run

    def serve(self) -> None:
        self._begin()
        for turn in range(TURNS):
            ahead = self.step_seconds if self.ends[-1] > self.now else 0.0
            self.now = max(self.now + self.report_seconds, self.now + launch_delay(ahead, self.begin_seconds))
            self._begin()
            self.now = max(self.now, self.ends[turn])  # until it is retired

    def _begin(self) -> None:
        """The launched part of a step runs while the rest of it is still being launched."""
        looked, start = self.now, max(self.now, self.ends[-1] if self.ends else 0.0)
        self.now += self.begin_seconds
        self.ends.append(max(start + self.step_seconds, self.now))
        self.waits.append(self.ends[-1] - looked)

    @property
    def seconds_a_step(self) -> float:
        return (self.ends[-1] - self.ends[9]) / (len(self.ends) - 10)


seconds = st.floats(0.0005, 0.5)


@given(step=seconds, begin=seconds, report=st.floats(0, 0.01))
def test_device_is_as_fast_as_itself_or_its_host(step: float, begin: float, report: float) -> None:
    device = Device(step, begin, report)
    device.serve()
    assert device.seconds_a_step <= 1.01 * max(step, begin + report)


@given(step=seconds, share=st.floats(0, 1))
def test_newcomer_waits_for_little_more_than_a_step(step: float, share: float) -> None:
    begin = share * step
    device = Device(step, begin, 0.0)
    device.serve()
    assert max(device.waits) <= step + max(SECONDS, SHARE * step, OVER_HOST * begin) + 1e-9
