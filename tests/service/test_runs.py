"""Training runs through HTTP: read-only, and nothing but what lies below the configured folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from jobs.settings import Settings
from runfolder.stats import append_line
from tests.runfolder import write_run
from tests.service.conftest import running_service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "mine" / "base", started_at=2.0)
    write_run(folder / "long", steps=30_000, started_at=1.0)
    (folder / "no run").mkdir()
    (folder / "no run" / "config.json").write_text("damaged")
    return folder


@pytest.fixture(scope="module")
def runs(service_settings: Settings, folder: Path) -> Iterator[httpx2.Client]:
    settings = service_settings.model_copy(update={"runs": folder})
    with running_service(settings) as (address, _, _), httpx2.Client(base_url=address, timeout=60) as client:
        yield client


def test_runs_are_listed_newest_first(runs: httpx2.Client) -> None:
    rows = runs.get("/v1/runs").json()["data"]
    assert [(row["id"], row["step"], row["steps"]) for row in rows] == [("mine~base", 100, 100), ("long", 30000, 30000)]
    assert rows[0]["figures"]["loss"] == 0.01


def test_run_has_its_configuration_figures_and_previews(runs: httpx2.Client) -> None:
    run = runs.get("/v1/runs/mine~base").json()
    assert run["config"]["optimiser"] == {"steps": 100}
    assert [line["step"] for line in run["lines"]] == list(range(10, 101, 10))
    assert run["previews"] == ["00000050.png", "00000100.png"]
    picture = runs.get("/v1/runs/mine~base/previews/00000050.png")
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")


def test_long_run_is_thinned_and_keeps_its_newest_line(runs: httpx2.Client) -> None:
    lines = runs.get("/v1/runs/long").json()["lines"]
    assert 500 <= len(lines) <= 1000
    assert lines[-1]["step"] == 30000


def test_line_that_training_just_wrote_shows(runs: httpx2.Client, folder: Path) -> None:
    append_line(folder / "mine" / "base", {"step": 110, "loss": 0.5})
    assert runs.get("/v1/runs/mine~base").json()["lines"][-1] == {"step": 110, "loss": 0.5}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs/none",
        "/v1/runs/..",
        "/v1/runs/..~..~etc",
        "/v1/runs/mine~base/previews/..%2Fconfig.json",
        "/v1/runs/mine~base/previews/config.json",
    ],
)
def test_what_is_no_run_is_unknown(runs: httpx2.Client, path: str) -> None:
    response = runs.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_malformed_runs_and_what_is_no_file_are_left_out(runs: httpx2.Client, folder: Path) -> None:
    for name, file, text in (
        ("a", "config.json", "{}"),
        ("b", "config.json", "[" * 100_000),
        ("c", "run.json", "{}"),
        ("d", "stats.jsonl", '[1]\n{"loss": 1}\n{"step": NaN}\n{"step": 1, "loss": "x"}\n\xff\n'),
    ):
        run = write_run(folder / "odd" / name)
        (run / file).write_text(text)
    run = write_run(folder / "odd" / "e")
    os.mkfifo(run / "previews" / "pipe.png")
    (run / "previews" / "link.png").symlink_to("/etc/passwd")
    (run / "previews" / "folder.png").mkdir()
    (run / "stats.jsonl").unlink()
    os.mkfifo(run / "stats.jsonl")
    run = write_run(folder / "odd" / "f")
    os.mkfifo(run / "previews" / "pipe.png")
    (run / "previews" / "link.png").symlink_to("/etc/passwd")
    with (run / "previews" / "large.png").open("wb") as large:
        large.truncate(1 << 30)
    listed = {row["id"]: row["step"] for row in runs.get("/v1/runs").json()["data"]}
    assert {name: step for name, step in listed.items() if name.startswith("odd")} == {"odd~d": 0, "odd~f": 100}
    assert runs.get("/v1/runs/odd~f").json()["previews"] == ["00000050.png", "00000100.png", "large.png"]
    for name in ("pipe.png", "link.png", "large.png"):
        assert runs.get(f"/v1/runs/odd~f/previews/{name}").status_code == 404


def test_huge_file_of_figures_is_read_from_its_end(runs: httpx2.Client, folder: Path) -> None:
    run = write_run(folder / "huge")
    with (run / "stats.jsonl").open("a") as file:
        file.writelines(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(1000, 401_000))
    lines = runs.get("/v1/runs/huge").json()["lines"]
    assert lines[-1]["step"] == 400_999
    assert lines[0]["step"] > 200_000


def test_service_without_a_folder_says_so(client: httpx2.Client) -> None:
    response = client.get("/v1/runs")
    assert response.status_code == 404
    assert "set ADM_RUNS to one" in response.json()["detail"]
