"""A run from options to result, with a source of plain colours: what is kept, refused, resumed."""

import io
import json
import queue
import re
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from bulk import progress
from bulk.chunks import ChunkPlan
from bulk.classes import parse_classes
from bulk.disk import sole_run
from bulk.errors import BulkError, StoppedError
from bulk.run import RunOptions, run
from tests.bulk.painter import Painter, contents, painted, sampled
from tests.jobs.samples import DEMO

FORMS = ("samples.npz", "samples")


def stop_before(chunk: int, kind: type[BaseException] = KeyboardInterrupt) -> Callable[[int], None]:
    calls = iter(range(chunk + 1))

    def before(made: int) -> None:
        if next(calls) == chunk:
            raise kind

    return before


def test_npz_has_each_image_at_its_index_with_its_class(tmp_path: Path) -> None:
    sampled(tmp_path / "samples.npz", Painter(), classes="0,3,7")
    with np.load(tmp_path / "samples.npz") as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert images.shape == (50, 32, 32, 3)
    assert labels.tolist() == [(0, 3, 7)[index % 3] for index in range(50)]
    kept = json.loads((tmp_path / "samples.npz.json").read_text())
    assert kept["numerics"] == ["paint"]


def test_pixels_of_npz_and_folder_are_those_of_the_plan(tmp_path: Path) -> None:
    for form in FORMS:
        sampled(tmp_path / form, Painter(), count=20)
    with np.load(tmp_path / "samples.npz") as archive:
        images = archive["arr_0"]
    for chunk in ChunkPlan(0, 20, parse_classes("uniform", DEMO.classes, 0)).chunks():
        for row, index in enumerate(chunk.indices):
            wanted = painted(chunk.seed, row, 32)
            assert images[index].tobytes() == wanted
            with Image.open(tmp_path / "samples" / f"{chunk.class_label:04d}_{index:06d}.png") as png:
                assert png.tobytes() == wanted


def test_folder_without_classes_is_numbered(tmp_path: Path) -> None:
    sampled(tmp_path / "samples", Painter(), count=3, classes="none")
    assert list(contents(tmp_path / "samples")) == ["000000.png", "000001.png", "000002.png"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@example(stops=[0, 1, 2])
@hypothesis.settings(max_examples=5)  # every image is on disk before the next one starts, and disks are slow
@given(stops=st.lists(st.integers(0, 5), max_size=3))
def test_run_that_was_stopped_anywhere_ends_as_one_that_was_not(form: str, stops: list[int]) -> None:
    few = {"count": 40, "classes": "0,1,1"}
    with TemporaryDirectory() as folder:
        out, undisturbed = Path(folder) / "a" / form, Path(folder) / "b" / form
        sampled(undisturbed, Painter(), **few)
        made: Counter[int] = Counter()
        for chunk in stops:
            painter = Painter(stop_before(chunk))
            with suppress(StoppedError):  # there may be fewer chunks left
                sampled(out, painter, **few)
            made.update(painter.made)
        last = Painter()
        sampled(out, last, **few)
        made.update(last.made)
        assert made == Counter(range(40))
        assert contents(out) == contents(undisturbed)


def test_stopped_run_says_how_far_it_came(tmp_path: Path) -> None:
    painter = Painter(stop_before(2))
    with pytest.raises(StoppedError) as caught:
        sampled(tmp_path / "samples.npz", painter)
    assert f"stopped at {len(painter.made)} of 50 images; the same command resumes" in str(caught.value)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: a longer write stops in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [40_000, 100_000], ids=["of a chunk", "of the result"])
def test_full_disk_ends_a_run_in_one_line_and_the_same_command_continues_it(tmp_path: Path, size: int) -> None:
    out = tmp_path / "samples.npz"
    with full_disk(size), pytest.raises(BulkError, match=r"^--out .*samples.npz: File too large$"):
        sampled(out, Painter(), classes="0")
    assert not out.exists()
    sampled(out, Painter(), classes="0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.npz", "samples.npz.json"]
    with np.load(out) as archive:
        assert len(archive["arr_0"]) == 50


def test_bar_says_how_far_the_run_is_and_when_it_ends(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with pytest.raises(StoppedError):
        run(RunOptions(tmp_path / "samples.npz", "demo", 50, "0", upsample=False), Painter(stop_before(2)), console)
    assert re.search(r"images.*32/50.*ETA.*\d:\d\d:\d\d", screen.getvalue())


def test_log_says_now_and_then_how_far_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.001)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.001)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Log(io.StringIO):
        def flush(self) -> None:
            lines.put(self.getvalue())
            self.truncate(self.seek(0))

    def wait_for_line(made: int) -> None:
        while not re.fullmatch(rf"images: {made} of 50(, \d:\d\d:\d\d left)?\n", line := lines.get(timeout=60)):
            assert re.fullmatch(r"images: \d+ of 50(, \d:\d\d:\d\d left)?\n", line)

    options = RunOptions(tmp_path / "samples.npz", "demo", 50, "0", upsample=False)
    run(options, Painter(wait_for_line), Console(file=Log()))


@pytest.mark.parametrize("form", FORMS)
def test_finished_run_does_nothing_again(tmp_path: Path, form: str) -> None:
    sampled(tmp_path / form, Painter())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    painter = Painter(stop_before(0))
    sampled(tmp_path / form, painter)
    assert painter.made == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("stopped_at", "counts"), [(None, (50, 51, 400)), (2, (50, 200)), (None, (1, 16, 17))])
def test_run_that_is_extended_ends_as_one_of_that_many_and_makes_no_whole_chunk_again(
    tmp_path: Path, form: str, stopped_at: int | None, counts: tuple[int, ...]
) -> None:
    if stopped_at is not None:
        with pytest.raises(StoppedError):
            sampled(tmp_path / form, Painter(stop_before(stopped_at)), count=counts[0], classes="0,3")
    made: list[int] = []
    for count in counts:
        painter = Painter()
        sampled(tmp_path / form, painter, count=count, classes="0,3")
        made += painter.made
    (tmp_path / "whole").mkdir()
    sampled(tmp_path / "whole" / form, Painter(), count=counts[-1], classes="0,3")
    assert contents(tmp_path / form) == contents(tmp_path / "whole" / form)
    assert len(made) < counts[-1] + 2 * 16 * len(counts)  # beside what the end of a run had cut short


def test_extension_that_was_killed_anywhere_continues(tmp_path: Path) -> None:
    """Until the run file has the new count, the run is still the smaller one; its parts exist, and its .npz may not."""
    out = tmp_path / "samples.npz"
    sampled(out, Painter(), count=40, classes="0")
    before = (tmp_path / "samples.npz.json").read_text()
    with pytest.raises(StoppedError):
        sampled(out, Painter(stop_before(0)), count=100, classes="0")
    assert not out.exists()
    (tmp_path / "samples.npz.json").write_text(before)
    sampled(out, Painter(), count=100, classes="0")
    sampled(tmp_path / "whole.npz", Painter(), count=100, classes="0")
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_parts_go_once_the_npz_is_there_also_if_the_run_was_killed_between(tmp_path: Path) -> None:
    sampled(tmp_path / "samples.npz", Painter())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.npz", "samples.npz.json"]
    (tmp_path / "samples.npz.parts").mkdir()
    (tmp_path / "samples.npz.parts" / "0-0.rgb").write_bytes(b"x")
    sampled(tmp_path / "samples.npz", Painter())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.npz", "samples.npz.json"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"steps": 30}, "steps 25, not 30"),
        ({"count": 49}, "count 50, not 49"),
        ({"classes": "0,1"}, "classes uniform, not 0,1"),
        ({"guidance_scale": 0.0}, "guidance scale 1.5, not 0.0"),
        ({"sampler": "ddpm"}, "sampler ddim, not ddpm"),
        ({"upsample": None}, "size 32, not 64"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_run_of_other_parameters_is_refused_and_they_are_named(
    tmp_path: Path, other: dict[str, object], message: str, finished: bool
) -> None:
    out = tmp_path / "samples.npz"
    if finished:
        sampled(out, Painter())
    else:
        with pytest.raises(StoppedError):
            sampled(out, Painter(stop_before(1)))
    with pytest.raises(BulkError) as caught:
        sampled(out, Painter(), **other)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_run_of_other_weights_is_refused(tmp_path: Path) -> None:
    sampled(tmp_path / "samples.npz", Painter())
    changed = DEMO.model_copy(
        update={"stages": (DEMO.stages[0].model_copy(update={"model_hash": "d" * 16}), *DEMO.stages[1:])}
    )
    with pytest.raises(BulkError, match="weights"):
        sampled(tmp_path / "samples.npz", Painter(pipeline=changed))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_runs_is_not_touched(tmp_path: Path, form: str) -> None:
    out = tmp_path / form
    if form.endswith(".npz"):
        out.write_bytes(b"somebody's")
    else:
        out.mkdir()
        (out / "holiday.png").write_bytes(b"somebody's")
    with pytest.raises(BulkError, match="were not made by adm sample"):
        sampled(out, Painter())


def test_two_runs_never_share_an_output(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        sampled(tmp_path / "samples.npz", Painter(stop_before(1)))
    with (
        sole_run(tmp_path / "samples.npz.parts"),
        pytest.raises(BulkError, match="another adm sample uses this folder"),
    ):
        sampled(tmp_path / "samples.npz", Painter())


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".3-0.rgb.123.tmp"
    left.write_bytes(b"half")
    with sole_run(tmp_path):
        assert not left.exists()


def test_npz_that_a_killed_run_left_unfinished_is_removed_and_others_are_not(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        sampled(tmp_path / "samples.npz", Painter(stop_before(1)))
    ours, others = (f".{name}.123.tmp" for name in ("samples.npz", "samples.npz.2.npz"))
    for each in (ours, others):
        (tmp_path / each).write_bytes(b"half")
    sampled(tmp_path / "samples.npz", Painter())
    assert sorted(path.name for path in tmp_path.iterdir()) == [others, "samples.npz", "samples.npz.json"]


@pytest.mark.parametrize("form", FORMS)
def test_run_that_was_killed_while_it_wrote_its_run_file_starts_again_and_leaves_nothing_of_it(
    tmp_path: Path, form: str
) -> None:
    sampled(tmp_path / "undisturbed" / form, Painter())
    run_file = tmp_path / "killed" / ("samples.npz.json" if form.endswith(".npz") else "samples/run.json")
    run_file.parent.mkdir(parents=True)
    (run_file.parent / f".{run_file.name}.123.tmp").write_bytes(b"{")
    sampled(tmp_path / "killed" / form, Painter())
    files = [
        {path.relative_to(tmp_path / run) for path in (tmp_path / run).rglob("*")} for run in ("killed", "undisturbed")
    ]
    assert files[0] == files[1]


def test_damaged_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        sampled(tmp_path / "samples.npz", Painter(stop_before(1)))
    part = next((tmp_path / "samples.npz.parts").glob("*.rgb"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(BulkError, match=f"{part.name}: is damaged; remove it"):
        sampled(tmp_path / "samples.npz", Painter())
    part.unlink()
    sampled(tmp_path / "samples.npz", Painter())
