"""The deployment files against the settings and the command line that they speak of."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from os import environ
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.main import app
from jobs.settings import Settings
from service.app import create_app
from standalone.embedded import DRAIN_MARGIN_SECONDS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROMETHEUS = yaml.safe_load((ROOT / "deploy/observability/prometheus/prometheus.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = ("service", "worker", "worker-gpu")
FILES = ("Dockerfile", "docker-compose.yml", "deploy/observability/prometheus/prometheus.yml")
COMMANDS = {each.name for each in app.registered_commands} | {each.name for each in app.registered_groups}


def targets() -> Mapping[str, str]:
    """The Dockerfile's text of each target."""
    parts = re.split(r"^FROM \S+ AS (\w+)\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def settings_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The environment of a container: the image's variables, then compose's."""
    for variable in [each for each in environ if each.startswith("ADM_")]:
        monkeypatch.delenv(variable)
    given = dict(re.findall(r"(ADM_\w+)=(\S+)", DOCKERFILE)) | COMPOSE["services"][name]["environment"]
    for variable, value in given.items():
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))  # compose's own defaults
    return Settings.load()


def copied(text: str) -> Iterator[str]:
    """Sources of a target's COPY lines, but for what another target has built."""
    for line in re.findall(r"^COPY (?!--from=)(.+)$", text, re.MULTILINE):
        yield from line.split()[:-1]


@pytest.mark.parametrize("name", FILES)
def test_every_variable_that_a_file_names_is_a_setting(name: str) -> None:
    named = set(re.findall(r"\bADM_[A-Z_]+", (ROOT / name).read_text()))
    assert named <= {f"ADM_{field.upper()}" for field in Settings.model_fields}


@pytest.mark.parametrize("name", OURS)
def test_environment_of_a_container_is_accepted_by_the_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(name, monkeypatch)
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.data == Path("/data")


def test_containers_share_one_image_store(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({settings_of(name, monkeypatch).store_address for name in OURS}) == 1
    assert all("data:/data" in COMPOSE["services"][name]["volumes"] for name in OURS)


def test_workers_are_named_after_their_containers_so_that_they_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(settings_of(name, monkeypatch).worker_name is None for name in OURS[1:])


def test_everything_is_published_on_loopback_alone() -> None:
    published = [port for each in COMPOSE["services"].values() for port in each.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_service_is_published_at_the_default_port_and_listens_where_compose_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, default = settings_of("service", monkeypatch), Settings.model_fields["port"].default
    (published,) = COMPOSE["services"]["service"]["ports"]
    assert published == f"127.0.0.1:${{ADM_PORT:-{default}}}:{settings.port}"
    assert f"EXPOSE {settings.port}\n" in targets()["web"]
    assert f"http://127.0.0.1:{settings.port}/livez" in targets()["web"]


def test_prometheus_scrapes_the_service_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["metrics_path"] in create_app(Settings()).openapi()["paths"]
    assert job["static_configs"] == [{"targets": [f"service:{settings_of('service', monkeypatch).port}"]}]


@pytest.mark.parametrize("name", OURS)
def test_container_runs_a_command_that_exists(name: str) -> None:
    target = targets()[COMPOSE["services"][name]["build"]["target"]]
    program, command = re.findall(r'^CMD \["(\w+)", "(\w+)"\]$', target, re.MULTILINE)[0]
    assert program == "adm"
    assert command in COMMANDS


def last_command_of(target: str) -> str:
    """The last command that make would run for a target; it runs none."""
    dry = ["make", "--dry-run", "--silent", "--always-make", target]
    return subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


@pytest.mark.parametrize(("target", "command"), [("up", "up"), ("demo", "demo"), ("judge", "evaluate")])
def test_make_target_runs_a_command_that_there_is(target: str, command: str) -> None:
    program, first, *_ = last_command_of(target).split()
    assert (Path(program).name, first) == ("adm", command)
    assert command in COMMANDS


def test_make_golden_runs_the_cases_of_the_golden_folder() -> None:
    *_, module, folder = last_command_of("golden").split()
    assert module == "tests.golden_runner"
    assert list((ROOT / folder).iterdir())


def test_images_run_as_an_ordinary_user() -> None:
    for name in ("web", "worker"):
        assert "USER adm\n" in targets()[name]


def test_images_copy_only_what_exists_and_what_the_ignore_file_lets_through() -> None:
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    sources = {source for text in targets().values() for source in copied(text)}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_image_of_the_service_has_no_torch() -> None:
    web = targets()["web"]
    assert "compute" not in web
    assert not {"engine", "diffusion", "worker", "weights"} & set(copied(web))


def test_worker_may_drain_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS[1:]:
        grace = COMPOSE["services"][name]["stop_grace_period"]
        assert int(grace.removesuffix("s")) >= settings_of(name, monkeypatch).drain_seconds + DRAIN_MARGIN_SECONDS


def test_workers_of_containers_see_the_weights_of_the_host_and_offer_what_is_named() -> None:
    for name in OURS[1:]:
        assert "./weights:/app/weights:ro" in COMPOSE["services"][name]["volumes"]
        default = ",".join(Settings(weights=ROOT / "weights").pipelines)
        assert COMPOSE["services"][name]["environment"]["ADM_PIPELINES"] == f"${{ADM_PIPELINES:-{default}}}"


def test_redis_acknowledges_nothing_that_is_not_on_disk() -> None:
    command: list[Any] = COMPOSE["services"]["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--appendfsync") + 1] == "always"
    assert "ports" not in COMPOSE["services"]["redis"]


def test_gpu_is_asked_for_by_the_worker_of_the_gpu_profile_alone() -> None:
    with_gpu = [name for name, each in COMPOSE["services"].items() if "deploy" in each]
    assert with_gpu == ["worker-gpu"]
    assert COMPOSE["services"]["worker-gpu"]["profiles"] == ["gpu"]
