import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.pixels import from_uint8, to_uint8

PROPERTY = settings(max_examples=50)
EVERY_VALUE = torch.arange(256, dtype=torch.uint8)


def test_values_are_truncated_not_rounded() -> None:
    x = torch.tensor([-1.0, -0.9922, 0.0, 0.999, 1.0])
    assert to_uint8(x).tolist() == [0, 0, 127, 254, 255]  # the second is 0.99 of a step above black


def test_round_trip_loses_one_at_most() -> None:
    lost = EVERY_VALUE.int() - to_uint8(from_uint8(EVERY_VALUE)).int()
    assert set(lost.tolist()) == {0, 1}


def test_round_trip_keeps_black_and_white() -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(ends)), ends)


def test_pixels_span_the_models_range() -> None:
    x = from_uint8(EVERY_VALUE)
    assert (x[0].item(), x[-1].item(), x.dtype) == (-1.0, 1.0, torch.float32)


@PROPERTY
@given(st.lists(st.floats(-3, 3, width=32), min_size=2))
def test_brighter_never_becomes_darker(values: list[float]) -> None:
    pixels = to_uint8(torch.tensor(sorted(values))).int()
    assert bool((pixels.diff() >= 0).all())


def test_values_beyond_the_range_are_clamped() -> None:
    assert to_uint8(torch.tensor([-7.0, 7.0, -torch.inf, torch.inf])).tolist() == [0, 255, 0, 255]
