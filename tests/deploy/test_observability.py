"""The dashboard and the alerts, against a real Prometheus that scrapes a real service with a real worker behind it."""

import json
import re
import shutil
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from jobs.callers.keyring import KeyStore
from jobs.contract.caller import Role
from jobs.settings import Settings
from tests.conftest import running_redis
from tests.service.conftest import running_service
from tests.waiting import eventually
from tests.worker.programs import WorkerProcess
from tests.worker.tiny_stack import write_tiny_stack

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/observability"
PROGRAMS = ROOT / "build/prometheus/usr/bin"  # `make test` puts them there
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES}
CASES = yaml.safe_load((FOLDER / "prometheus/alerts.test.yml").read_text())["tests"]
DASHBOARD = json.loads((FOLDER / "grafana/adm-serve.json").read_text())
RUNBOOK = (ROOT / "docs/observability.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {f"{panel['title']} {each['refId']}": each["expr"] for panel in PANELS for each in panel["targets"]}
# Series without samples in a healthy stack of one minute without keys.
TROUBLE = re.compile(r"5\.\.|503|429|job_requeues|webhook_attempts|audit_differences")
METRIC = re.compile(r"\badm_[a-z_]+")


def filled_in(expression: str) -> str:
    """An expression as Grafana sends it for all pipelines."""
    return expression.replace("$__rate_interval", "1m").replace("$pipeline", ".*")


class Prometheus:
    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def wait_ready(self) -> None:
        def ready() -> bool:
            try:
                return self._client.get("/-/ready").status_code == 200
            except httpx2.TransportError:
                return False

        eventually(ready, "Prometheus is ready")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A service with keys and a worker that has completed jobs; its address, and a key of role metrics."""
    folder = tmp_path_factory.mktemp("observed")
    write_tiny_stack(folder / "weights")
    with running_redis() as server, server.client() as redis:
        settings = Settings(
            data=folder / "data", redis_url=server.address, weights=folder / "weights", fleet_refresh_seconds=0
        )
        operator = {"Authorization": f"Bearer {KeyStore(redis).create('ann', Role.OPERATOR).key}"}
        key = KeyStore(redis).create("prometheus", Role.METRICS).key
        with running_service(settings) as (address, _, _):
            worker = WorkerProcess(settings, folder, ADM_AUDIT_SHARE="1")
            try:
                worker.wait_ready()
                for number in range(4):
                    body = {"class_label": "torus", "guidance_scale": 2, "steps": 5, "seed": number}
                    wait = {"Prefer": "wait=60"}
                    job = httpx2.post(f"{address}/v1/jobs", json=body, headers=operator | wait, timeout=90).json()
                    assert job["status"] == "completed", job
                    httpx2.get(f"{address}{job['images'][0]['url']}", headers=operator, timeout=60).raise_for_status()
                yield address, key
            finally:
                worker.end()


@pytest.fixture(scope="module")
def prometheus(stack: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """The shipped configuration with this service as its target, scraping each second."""
    address, key = stack
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(FOLDER / "prometheus", folder, dirs_exist_ok=True)
    (folder / "metrics.key").write_text(f"{key}\n")
    text = (folder / "prometheus.yml").read_text()
    text = text.replace("service:8000", address.removeprefix("http://")).replace("interval: 5s", "interval: 1s")
    (folder / "prometheus.yml").write_text(text.replace("evaluation_interval: 15s", "evaluation_interval: 1s"))
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                str(PROGRAMS / "prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            prometheus = Prometheus(client)
            prometheus.wait_ready()
            # three scrapes, of which rates can be made
            eventually(lambda: prometheus.query('count_over_time(up{job="adm"}[1m]) >= 3') != [], "three scrapes")
            yield prometheus
    finally:
        process.terminate()
        process.wait(300)


@pytest.mark.slow
def test_alerts_fire_and_stay_quiet_as_their_cases_say() -> None:
    command = [str(PROGRAMS / "promtool"), "test", "rules", "alerts.test.yml"]
    done = subprocess.run(command, cwd=FOLDER / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: defaultdict[str, set[bool]] = defaultdict(set)
    for case in CASES:
        for each in case["alert_rule_test"]:
            fires[each["alertname"]].add(bool(each["exp_alerts"]))
    assert fires == {name: {True, False} for name in ALERTS}


def test_runbook_says_of_every_alert_what_to_do_and_of_no_other() -> None:
    assert re.findall(r"^### (Adm\w+)$", RUNBOOK, re.MULTILINE) == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/observability.md#{name.lower()}"


@pytest.mark.slow
@pytest.mark.process
def test_prometheus_scrapes_with_a_key_of_role_metrics_and_has_loaded_every_alert(prometheus: Prometheus) -> None:
    assert [each["value"][1] for each in prometheus.query('up{job="adm"}')] == ["1"]
    groups = prometheus.get("rules")["groups"]
    loaded = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert loaded.keys() == ALERTS.keys()
    eventually(
        lambda: all(rule["health"] == "ok" for group in prometheus.get("rules")["groups"] for rule in group["rules"]),
        "every alert's expression was evaluated without an error",
    )


@pytest.mark.slow
@pytest.mark.process
def test_stack_that_is_well_fires_no_alert(prometheus: Prometheus) -> None:
    assert [each for each in prometheus.get("alerts")["alerts"] if each["state"] == "firing"] == []


@pytest.mark.slow
@pytest.mark.process
def test_every_panel_shows_what_a_stack_that_has_completed_jobs_did(prometheus: Prometheus) -> None:
    for name, expression in EXPRESSIONS.items():
        found = prometheus.query(filled_in(expression))
        assert found or TROUBLE.search(expression), f"{name}: {expression}"


@pytest.mark.slow
@pytest.mark.process
def test_every_metric_that_is_named_is_one_that_the_service_shows(stack: tuple[str, str]) -> None:
    address, key = stack
    text = (
        httpx2.get(f"{address}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=60).raise_for_status().text
    )
    shown: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        shown |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"} if kind == "histogram" else {name}
    expressions = [*EXPRESSIONS.values(), *(rule["expr"] for rule in RULES)]
    named = {each for expression in expressions for each in METRIC.findall(expression)}
    assert named <= shown, named - shown
    in_prose = set(METRIC.findall(RUNBOOK))
    assert in_prose <= shown | {each.removesuffix("_count") for each in shown if each.endswith("_count")}


@pytest.mark.slow
@pytest.mark.process
def test_variable_of_the_dashboard_lists_the_pipelines(prometheus: Prometheus) -> None:
    variable = next(each for each in DASHBOARD["templating"]["list"] if each["name"] == "pipeline")
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
    assert found
    values = prometheus.get(f"label/{found[2]}/values", **{"match[]": found[1]})
    assert values == ["demo", "demo-uncond"]


def test_panels_of_the_dashboard_do_not_overlap_and_say_where_they_read() -> None:
    ids = [each["id"] for each in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for each in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(each["datasource"]["uid"] == "${datasource}" for each in PANELS)


def test_compose_mounts_what_is_shipped_where_the_programs_read_it_and_only_on_demand() -> None:
    services = COMPOSE["services"]
    mounted = {}
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["observability"]
        for volume in services[name]["volumes"]:
            source, target = re.fullmatch(r"(\$\{[^}]*\}|[^:]+):([^:]+)(?::ro)?", volume).groups()  # type: ignore[union-attr] # a volume that is written otherwise fails here
            mounted[target] = source
    assert (ROOT / mounted["/etc/prometheus/prometheus.yml"]).is_file()
    config = yaml.safe_load((ROOT / mounted["/etc/prometheus/prometheus.yml"]).read_text())
    (rule_file,), (job,) = config["rule_files"], config["scrape_configs"]
    assert (ROOT / mounted[f"/etc/prometheus/{rule_file}"]).is_file()
    assert f"/etc/prometheus/{job['authorization']['credentials_file']}" in mounted
    provisioning = ROOT / mounted["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/adm.yml").read_text())["providers"]
    assert (ROOT / mounted[f"{provider['options']['path']}/adm-serve.json"]) == FOLDER / "grafana/adm-serve.json"
