import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from diffusion.noise import Draw, normals, philox

PROPERTY = settings(max_examples=50)
ALL_ONES = 0xFFFFFFFF

draws = st.builds(
    Draw,
    seed=st.integers(0, 2**63 - 1),
    image_index=st.integers(0, 63),
    stage=st.integers(0, 2),
    step=st.integers(0, 1000),
)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ALL_ONES] * 4, [ALL_ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_words_are_the_published_ones(counter: list[int], key: list[int], words: list[int]) -> None:
    """Random123's kat_vectors for philox4x32, 10 rounds."""
    assert philox(torch.tensor(counter), torch.tensor(key)).tolist() == words


def plain_philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & ALL_ONES, (first >> 32) ^ c[3] ^ k[1], first & ALL_ONES]
        k = [(k[0] + 0x9E3779B9) & ALL_ONES, (k[1] + 0xBB67AE85) & ALL_ONES]
    return c


words = st.integers(0, ALL_ONES)


@PROPERTY
@given(st.lists(st.tuples(st.tuples(words, words, words, words), st.tuples(words, words)), min_size=1, max_size=5))
def test_words_of_many_counters_equal_those_of_python_integers(
    addresses: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    counters, keys = torch.tensor([c for c, _ in addresses]), torch.tensor([k for _, k in addresses])
    assert philox(counters, keys).tolist() == [plain_philox(c, k) for c, k in addresses]


@PROPERTY
@given(draw=draws, count=st.integers(1, 9))
def test_normals_are_box_muller_of_those_words(draw: Draw, count: int) -> None:
    blocks = (count + 1) // 2
    cosines, sines = [], []
    for block in range(blocks):
        counter, key = (block, draw.step, draw.image_index, draw.stage), (draw.seed & ALL_ONES, draw.seed >> 32)
        a, b, c, d = plain_philox(counter, key)
        u, v = ((high * 2**20 + low // 2**12 + 0.5) / 2**52 for high, low in ((a, b), (c, d)))
        radius = math.sqrt(-2 * math.log(u))
        cosines.append(radius * math.cos(2 * math.pi * v))
        sines.append(radius * math.sin(2 * math.pi * v))
    want = torch.tensor((cosines + sines)[:count], dtype=torch.float32)
    torch.testing.assert_close(normals([draw], (count,))[0], want, rtol=1e-6, atol=1e-7)


@PROPERTY
@given(drawn=st.lists(draws, min_size=1, max_size=6), shape=st.sampled_from([(1,), (3, 5, 7), (3, 8, 8), (2, 33)]))
def test_noise_of_an_image_does_not_depend_on_who_is_drawn_beside_it(drawn: list[Draw], shape: tuple[int, ...]) -> None:
    together = normals(drawn, shape)
    for draw, noise in zip(drawn, together, strict=True):
        assert torch.equal(noise, normals([draw], shape)[0])


@PROPERTY
@given(one=draws, other=draws)
def test_other_addresses_give_other_noise(one: Draw, other: Draw) -> None:
    assume(one != other)
    first, second = normals([one, other], (64,))
    assert not bool((first == second).any())


@pytest.mark.parametrize(
    "other", [Draw(6, 1, 0, 3), Draw(5 + 2**32, 1, 0, 3), Draw(5, 2, 0, 3), Draw(5, 1, 1, 3), Draw(5, 1, 0, 4)]
)
def test_every_part_of_the_address_matters(other: Draw) -> None:
    first, second = normals([Draw(5, 1, 0, 3), other], (64,))
    assert not bool((first == second).any())


def test_noise_is_standard_normal() -> None:
    noise = normals([Draw(1, index, 0, 0) for index in range(32)], (3, 32, 32)).double()
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.var().item() - 1) < 0.01
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01


def test_neighbouring_draws_are_uncorrelated() -> None:
    addresses = [Draw(1, 0, 0, 0), Draw(2, 0, 0, 0), Draw(1, 1, 0, 0), Draw(1, 0, 1, 0), Draw(1, 0, 0, 1)]
    correlation = torch.corrcoef(normals(addresses, (4096,)))
    assert bool(((correlation - torch.eye(5)).abs() < 0.06).all())  # four standard deviations of 1 / sqrt(4096)


def test_noise_is_float32_whatever_the_default() -> None:
    assert normals([Draw(0, 0, 0, 0)], (3, 4, 4)).dtype == torch.float32
