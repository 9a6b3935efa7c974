"""Group norm of maps that lie by channels: as defined, and the same for an image however few there are.

Both forms: compiled code, which runs on the thread that calls it alone, and torch's operations.
"""

import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks import native_norm
from models.networks.norm import GroupNorm32

ROOT = Path(__file__).parents[2]
ROWS, CHANNELS = 4, 64


@pytest.fixture(params=["compiled", "torch"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """The form that is used: torch's, if its operations have several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if request.param == "compiled" else 2)
    yield request.param
    torch.set_num_threads(threads)


def test_compiled_norm_was_built_here() -> None:
    """Else all that follows tests one form twice: `make install` needs a C compiler for it."""
    assert native_norm.library() is not None


def test_form_is_the_one_asked_for(form: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert native_norm.computes(by_channels(drawn(ROWS, CHANNELS, 4, 4)).to(dtype)) == (form == "compiled")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def a_norm() -> GroupNorm32:
    norm = GroupNorm32(CHANNELS).requires_grad_(False)
    norm.weight.copy_(drawn(CHANNELS))
    norm.bias.copy_(drawn(CHANNELS) + 1)
    return norm


def by_channels(x: Tensor) -> Tensor:
    """The same values, each position's channels side by side."""
    return x.flatten(2).mT.contiguous().mT.reshape(x.shape) if x.ndim == 3 else x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (15,)], ids=str)
def test_norm_of_a_map_by_channels_is_the_norm(
    shape: tuple[int, ...], modulated: bool, silu: bool, dtype: torch.dtype, form: str
) -> None:
    x, norm = (3 * drawn(ROWS, CHANNELS, *shape) + 2).to(dtype), a_norm()
    moves = [drawn(2, ROWS, CHANNELS, *(1 for _ in shape))[i] for i in range(2)] if modulated else []
    laid = by_channels(x)
    assert not laid.is_contiguous()
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    if modulated:
        expected = expected * (1 + moves[0].double()) + moves[1].double()
    expected = F.silu(expected) if silu else expected
    result = norm(laid, *moves, silu=silu)
    assert result.dtype == dtype
    assert result.stride() == laid.stride()
    rtol = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
def test_gradient_through_a_map_by_channels_is_the_norms(modulated: bool, silu: bool, form: str) -> None:
    x, upstream, norm = 3 * drawn(ROWS, CHANNELS, 4, 4) + 2, drawn(1, ROWS, CHANNELS, 4, 4)[0], a_norm()
    moves = list(drawn(2, ROWS, CHANNELS, 1, 1)) if modulated else []
    ours = by_channels(x).requires_grad_()
    (gradient,) = torch.autograd.grad(norm(ours, *moves, silu=silu), ours, upstream)
    theirs = x.double().requires_grad_()
    h = F.group_norm(theirs, 32, norm.weight.double(), norm.bias.double(), norm.eps)
    h = h * (1 + moves[0].double()) + moves[1].double() if modulated else h
    (expected,) = torch.autograd.grad(F.silu(h) if silu else h, theirs, upstream.double())
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_norm_that_trains_gives_gradients_to_all_that_takes_them(
    threads: int, modulated: bool, silu: bool, dtype: torch.dtype
) -> None:
    """The same for any number of threads: each image is computed by one of them."""
    norm, exact = a_norm().requires_grad_(True), a_norm().double().requires_grad_(True)
    drawn_x, upstream = 3 * drawn(ROWS, CHANNELS, 5, 4) + 2, drawn(1, ROWS, CHANNELS, 5, 4)[0]
    moves = list(drawn(2, ROWS, CHANNELS, 1, 1)) if modulated else []
    inputs = [each.to(dtype).requires_grad_() for each in (by_channels(drawn_x), *moves)]
    doubled = [each.detach().double().requires_grad_() for each in inputs]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        norm(*inputs, silu=silu).backward(upstream.to(dtype))
    finally:
        torch.set_num_threads(before)
    h = F.group_norm(doubled[0], 32, exact.weight, exact.bias, norm.eps)
    h = h * (1 + doubled[1]) + doubled[2] if modulated else h
    (F.silu(h) if silu else h).backward(upstream.to(dtype).double())
    rtol = 1e-4 if dtype == torch.float32 else 2**-6
    for ours, theirs in zip((*inputs, *norm.parameters()), (*doubled, *exact.parameters()), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(
            ours.grad.double(), theirs.grad, rtol=rtol, atol=rtol * float(theirs.grad.abs().max())
        )


def test_scale_alone_may_train() -> None:
    """As where a network is frozen behind its timestep embedding."""
    norm, x = a_norm(), by_channels(drawn(ROWS, CHANNELS, 4, 4))
    scale, shift = drawn(2, ROWS, CHANNELS, 1, 1)
    norm(x, scale.requires_grad_(), shift).square().sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_norm_of_an_image_and_its_gradient_do_not_depend_on_how_many_there_are(
    rows: int, dtype: torch.dtype, form: str
) -> None:
    x, upstream = (by_channels(each).to(dtype) for each in 4 * drawn(2, ROWS, CHANNELS, 32, 32) + 1)
    moves, norm = drawn(2, ROWS, CHANNELS, 1, 1).to(dtype), a_norm()

    def computed(some: slice) -> list[Tensor]:
        rows_of_x = x[some].clone().requires_grad_()
        y = norm(rows_of_x, *(each[some] for each in moves), silu=True)
        return [y, *torch.autograd.grad(y, rows_of_x, upstream[some])]

    for few, all_ in zip(computed(slice(-rows, None)), computed(slice(None)), strict=True):
        assert torch.equal(few, all_[-rows:])


@pytest.mark.parametrize("silu", [False, True])
def test_what_is_not_finite_stays_so(silu: bool, form: str) -> None:
    """A step whose numbers have gone is found by them; the other images are none the worse."""
    x, norm = by_channels(drawn(ROWS, CHANNELS, 4, 4)), a_norm()
    x[0, 0, 0, 0], x[1, 5, 1, 1] = torch.inf, torch.nan
    y = norm(x, silu=silu)
    assert not y[0, :2].isfinite().any()
    assert not y[1, 4:6].isfinite().any()
    assert y[2:].isfinite().all()


@pytest.mark.slow
def test_all_processors_compute_equal_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the oldest instructions of this machine's kind, with all that this machine has, and with wider vectors."""
    torch.set_num_threads(1)
    extension, _ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    x, norm, upstream = by_channels(3 * drawn(2, 96, 9, 7)), GroupNorm32(96).requires_grad_(False), drawn(2, 96, 9, 7)

    def computed() -> list[Tensor]:
        results = []
        for dtype in (torch.float32, torch.bfloat16):
            leaf = x.to(dtype).requires_grad_()
            y = norm(leaf, silu=True)
            results += [y.detach(), *torch.autograd.grad(y, leaf, by_channels(upstream).to(dtype))]
        return results

    shipped = computed()
    for name, options in {"oldest": [], "native": ["-march=native"], "wide": ["-DWIDE=16"]}.items():
        path = tmp_path / f"{name}.so"
        flags = [*extension["extra-compile-args"], *options, "-DEACH_PROCESSOR=", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, ROOT / extension["sources"][0], "-lm", "-o", path], check=True)
        library = native_norm.loaded(path)
        monkeypatch.setattr(native_norm, "library", lambda library=library: library)  # another build, of the same code
        assert all(map(torch.equal, computed(), shipped)), name


def test_library_of_an_earlier_source_is_refused_and_not_called(tmp_path: Path) -> None:
    path = tmp_path / "earlier.so"
    source = "int adm_norm(void) { return 0; } int adm_norm_gradient(void) { return 0; }"
    subprocess.run(["cc", "-x", "c", "-", "-shared", "-fPIC", "-o", path], input=source, text=True, check=True)
    with pytest.raises(
        ImportError, match=r"earlier\.so was built from another version of its source; run make install"
    ):
        native_norm.loaded(path)


def test_compiled_silu_is_accurate_over_the_whole_range() -> None:
    torch.set_num_threads(1)
    norm = GroupNorm32(CHANNELS).requires_grad_(False)
    x = by_channels(drawn(1, CHANNELS, 64, 64))
    shift = torch.linspace(-120, 120, CHANNELS)[None, :, None, None]
    v, y = (norm(x, torch.zeros_like(shift), shift, silu=silu) for silu in (False, True))
    torch.testing.assert_close(y.double(), F.silu(v.double()), rtol=1e-6, atol=1e-30)
