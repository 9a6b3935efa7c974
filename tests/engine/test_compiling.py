"""Compiled networks: the same images within rounding, indifferent to neighbours, found again by a second start."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.guidance import guidance_gradient
from engine.compiling import (
    MARKER,
    UNUSED_SECONDS,
    Compiler,
    NoCompilerError,
    WrongCodeError,
    find_command,
    first_line_of_version,
    refuse_wrong_code,
)
from engine.numerics import fingerprint
from engine.pipeline import BASE, Pipeline, build_stages
from engine.shape_probes import trajectory_states
from engine.stage import Stage
from engine.step_inputs import network_inputs
from models.checkpoints.network_file import save_network
from models.networks.attention import attend
from models.networks.classifier import NoisyClassifier
from models.networks.unet import UNet, build_unet
from models.stack import Stack, load_stack
from tests.engine.bench import Bench, finish
from tests.models.samples import BASE as BASE_CONFIG
from tests.models.samples import CLASSIFIER, seeded, write_stack

try:
    find_command()
    WHY_NOT = ""
except NoCompilerError as error:
    WHY_NOT = str(error)

# of torch's own compiler, as it is imported
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.timeout(1800),  # two minutes of a core's compiling, which a busy machine draws out
]
needs_compiler = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
MAX_ROWS = 4
ROWS = (2,)


def base_of(folder: Path) -> Stack:
    return replace(load_stack(folder), upsampler=None)


@pytest.fixture(scope="module")
def shallow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack of one level: every layer takes its time to compile."""
    folder = write_stack(tmp_path_factory.mktemp("weights") / "tiny")
    base = replace(BASE_CONFIG, channel_mult=(1,), attention_resolutions=())
    classifier = replace(CLASSIFIER, channel_mult=(1,), attention_resolutions=())
    for name, network in (("base", build_unet(base)), ("classifier", NoisyClassifier(classifier))):
        state = seeded(network, 0).state_dict()
        save_network(folder / f"{name}.safetensors", state, network.config, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def eager(shallow_folder: Path) -> dict[str, Stage]:
    return build_stages([base_of(shallow_folder)], MAX_ROWS)


def compile_tiny(weights: Path, folder: Path) -> tuple[Compiler, Stack, dict[str, Stage], list[tuple[str, int]]]:
    stack = base_of(weights)
    announced: list[tuple[str, int]] = []
    compiler = Compiler(folder, [stack], "fp32", MAX_ROWS, lambda part, rows: announced.append((part, rows)), ROWS)
    return compiler, stack, build_stages([stack], MAX_ROWS, compiler=compiler), announced


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled(shallow_folder: Path, folder: Path) -> Bench:
    _, stack, stages, announced = compile_tiny(shallow_folder, folder)
    parts = [f"{BASE} {part}" for part in ("network", "guide")]
    assert announced == [*((part, MAX_ROWS) for part in parts), *((part, rows) for part in parts for rows in ROWS)]
    conditional, unconditional = (Pipeline(stack.pipelines[name], stack) for name in ("tiny", "tiny-uncond"))
    return Bench(conditional, unconditional, stages)


@needs_compiler
@pytest.mark.slow
def test_compiled_images_are_the_eager_ones_within_rounding(eager: dict[str, Stage], compiled: Bench) -> None:
    ours, theirs = compiled.stages[f"tiny/{BASE}"], eager[f"tiny/{BASE}"]
    # the parts of a step by themselves: a sampler would hide in which of them a difference is
    inputs = network_inputs(trajectory_states(ours, MAX_ROWS), ours.device)
    assert theirs.networks.guide is not None
    guides = (ours.networks._log_probabilities, theirs.networks.guide.log_probabilities)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.networks.predict(*inputs), theirs.networks.predict(*inputs), rtol=1e-4, atol=1e-5
        )
    gradients = [
        guidance_gradient(guide, inputs[0], inputs[1], torch.ones(MAX_ROWS, 3), 1.0) for guide in guides if guide
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@needs_compiler
@pytest.mark.slow
def test_nothing_is_compiled_after_warming_up_and_neighbours_change_nothing(compiled: Bench) -> None:
    stage = compiled.stages[f"tiny/{BASE}"]
    assert stage.row_shapes["network"][-1] == stage.row_shapes["guide"][-1] == MAX_ROWS
    request = compiled.image("me", sampler="ddpm", steps=4, scale=3.0)
    with torch.compiler.set_stance("fail_on_recompile"):
        alone, engine = compiled.alone(request), compiled.engine(MAX_ROWS)
        for each in (compiled.image("other", label=2, steps=2, seed=3), request, compiled.image("third", steps=5)):
            engine.add(each)
        (pixels,) = (each.pixels for each in finish(engine) if each.request == request)
        pictures = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
        answers = stage.classify(pictures)
        assert torch.equal(stage.classify(pictures[4:])[0], answers[4])
        assert torch.equal(stage.classify(pictures.roll(1, 0)), answers.roll(1, 0))
    assert torch.equal(pixels, alone)


@needs_compiler
@pytest.mark.slow
def test_the_fingerprint_says_that_it_is_compiled(shallow_folder: Path, compiled: Bench) -> None:
    eager = build_stages([base_of(shallow_folder)], MAX_ROWS)
    for stage in eager.values():
        stage.row_shapes = compiled.stages[f"tiny/{BASE}"].row_shapes
    assert fingerprint(eager, "fp32") != fingerprint(compiled.stages, "fp32")


@needs_compiler
@pytest.mark.slow
def test_a_second_start_finds_everything_compiled(shallow_folder: Path, folder: Path, compiled: Bench) -> None:
    compiler = Compiler(folder, [base_of(shallow_folder)], "fp32", MAX_ROWS, candidates=ROWS)
    assert compiler.is_warm
    objects = libraries(compiler.folder)
    assert objects
    program = (
        "import sys; from pathlib import Path; import torch;"
        "from tests.engine.test_compiling import compile_tiny;"
        "compiler, *_ = compile_tiny(Path(sys.argv[1]), Path(sys.argv[2]));"
        "print(compiler.folder)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(shallow_folder), str(folder)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == str(compiler.folder)
    assert libraries(compiler.folder) == objects


@needs_compiler
def test_row_counts_that_agreed_are_found_by_the_next_start(shallow_folder: Path, tmp_path: Path) -> None:
    def start() -> Compiler:
        return Compiler(tmp_path, [base_of(shallow_folder)], "fp32", 8, candidates=(1, 2, 4))

    first = start()
    assert first.agreed("base guide") is None
    for shapes in ((2, 8), (4, 8)):  # of two stacks
        first.note("base guide", shapes)
    first.note("base network", (8,))
    first.finish()
    assert [start().agreed(f"base {part}") for part in ("guide", "network")] == [[2, 4, 8], [8]]
    (first.folder / MARKER).write_text("{")
    assert start().agreed("base guide") is None


@pytest.mark.slow
@needs_compiler
def test_compiled_attention_of_half_precision_is_the_eager_one(tmp_path: Path) -> None:
    """Attention of 32 channels a head and 64 positions, whose tiles g++ 12 vectorises wrongly and leaves unwritten."""
    compiler = Compiler(tmp_path, [], "bf16", MAX_ROWS)
    compiler.begin()
    qkv = torch.randn(2, 3 * 96, 64).bfloat16()
    attention = partial(attend, num_heads=3, new_order=False)
    with torch.no_grad():
        found = compiler.compile(attention)(qkv)
    torch.testing.assert_close(found, attention(qkv), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("part", "factor"), [("network", 1.1), ("network", float("nan")), ("guide", 1.1)])
def test_compiled_code_that_computes_something_else_is_refused(
    shallow_folder: Path, tmp_path: Path, part: str, factor: float
) -> None:
    class Wrong(Compiler):
        """No real compiler miscompiles the same function on every machine, so this one makes wrong code itself."""

        def compile(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            wrong = isinstance(function, UNet) == (part == "network")
            return lambda *inputs, **named: function(*inputs, **named) * (factor if wrong else 1)

    stack = base_of(shallow_folder)
    with pytest.raises(WrongCodeError, match=f"^the base {part}, compiled by .*, differs from its eager form"):
        build_stages([stack], MAX_ROWS, compiler=Wrong(tmp_path, [stack], "fp32", MAX_ROWS))
    assert not Wrong(tmp_path, [stack], "fp32", MAX_ROWS).is_warm


@pytest.mark.parametrize("size", [0.0, 1e-6])
def test_compiled_code_is_not_refused_for_the_rounding_of_a_faint_result(size: float) -> None:
    """A classifier that sees nothing has a gradient of rounding alone, and an untrained network predicts zeros."""
    eager, compiled = (size * torch.randn(2, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    refuse_wrong_code("base guide", "g++", compiled, eager, 12)
    with pytest.raises(WrongCodeError):
        refuse_wrong_code("base guide", "g++", compiled + 1, eager, 12)


def libraries(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in folder.rglob("*.so")}


@needs_compiler
def test_other_rows_precision_or_threads_are_compiled_apart(shallow_folder: Path, tmp_path: Path) -> None:
    stack = base_of(shallow_folder)
    folders = {
        Compiler(tmp_path, [stack], "fp32", 2).folder,
        Compiler(tmp_path, [stack], "bf16", 2).folder,
        Compiler(tmp_path, [stack], "fp32", 3).folder,
        Compiler(tmp_path, [stack, stack], "fp32", 2).folder,
    }
    assert len(folders) == 4
    assert not Compiler(tmp_path, [stack], "fp32", 2).is_warm


@needs_compiler
def test_folders_that_no_start_has_used_for_long_are_removed(shallow_folder: Path, tmp_path: Path) -> None:
    stack, long_ago = base_of(shallow_folder), time.time() - UNUSED_SECONDS - 60
    old, recent, ours = (Compiler(tmp_path, [stack], "fp32", rows) for rows in (1, 2, 3))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    os.utime(unfinished, (long_ago, long_ago))
    for compiler in (ours, old, recent):
        compiler.finish()
    for compiler in (ours, old):
        os.utime(compiler.folder / MARKER, (long_ago, long_ago))
    ours.finish()
    assert sorted(tmp_path.iterdir()) == sorted([ours.folder, recent.folder])
    assert ours.is_warm
    assert not old.is_warm


def test_a_machine_without_a_compiler_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoCompilerError, match=r"^there is no C\+\+ compiler on this machine: g\+\+ or clang\+\+ was"):
        find_command()


@pytest.mark.parametrize("name", ["my data", "it's", 'a"b', "two\nlines"])
def test_folder_in_which_torch_cannot_compile_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(NoCompilerError, match=r"its path has a space or a quote$"):
        Compiler(tmp_path / name, [], "fp32", MAX_ROWS)


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "#!/no/such/shell\n"], ids=["fails", "cannot run"])
def test_compiler_that_does_not_run_is_none_and_says_so_in_one_line(tmp_path: Path, script: str) -> None:
    command = tmp_path / "g++"
    command.write_text(script)
    command.chmod(0o755)
    with pytest.raises(NoCompilerError, match=r"^the C\+\+ compiler does not run: .*g\+\+.*$"):
        first_line_of_version(str(command))


@needs_compiler
@pytest.mark.slow
def test_no_weight_gradients_are_formed(compiled: Bench) -> None:
    stage = compiled.stages[f"tiny/{BASE}"]
    assert stage.networks.guide is not None
    assert stage.networks.guide.module is not None
    assert stage.networks._log_probabilities is not None  # the compiled form, which `guide` does not have
    assert not any(each.requires_grad for each in stage.networks.guide.module.parameters())
    x = torch.randn(MAX_ROWS, *stage.shape, requires_grad=True)
    scores = stage.networks._log_probabilities(x, torch.zeros(MAX_ROWS))
    leaves, ahead = [], [scores.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None:
            ahead += [each for each, _ in node.next_functions]
            leaves += [node.variable] if hasattr(node, "variable") else []
    assert [each is x for each in leaves] == [True]
