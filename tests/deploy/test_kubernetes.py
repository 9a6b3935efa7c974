"""The manifests of deploy/kubernetes: valid, complete, closed, and in agreement with the programs that they run."""

import re
from os import environ
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bench.autoscaling import Rule
from jobs.settings import Settings
from models.checkpoints.presets import OFFICIAL_PIPELINES
from service.app import create_app
from standalone.embedded import DRAIN_MARGIN_SECONDS
from tests.deploy.manifests import FOLDER, OVERLAYS, ROOT, WORKLOADS, Manifest, matches, name_of, of_kind, pods, render

VERSIONS = ("1.25", "1.37")  # the oldest that has all kinds and labels that are used, and the newest that is known
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETS = {"cpu": {"demo"}, "gpu": {"demo", "imagenet"}, "keda": {"demo", "imagenet"}, "external-redis": {"demo"}}
OURS = ("adm-serve-web", "adm-serve-worker")

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def containers(overlay: str) -> list[tuple[str, Manifest]]:
    """Every container with the name of its workload."""
    return [(name, each) for name, _, spec in pods(overlay) for each in spec["containers"]]


def image_of(container: Manifest) -> str:
    return str(container["image"]).rpartition(":")[0]


def variables(overlay: str, container: Manifest) -> dict[str, str]:
    """The environment of a container, without what comes from Secrets; variables with the pod's name are "a-pod"."""
    (settings,) = [each["data"] for each in of_kind(overlay, "ConfigMap") if "ADM_STORE" in each["data"]]
    own = {each["name"]: each.get("value", "a-pod") for each in container["env"] if "secretKeyRef" not in str(each)}
    return {**settings, **own}


def workers(overlay: str) -> dict[str, Manifest]:
    """The StatefulSets of workers, by the name of their set of pipelines."""
    found = [each for each in of_kind(overlay, "StatefulSet") if name_of(each).startswith("adm-worker-")]
    return {name_of(each).removeprefix("adm-worker-"): each for each in found}


@each_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_of_built_in_kinds_are_valid(overlay: str, version: str) -> None:
    for each in render(overlay):
        if not each["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(dict(each), version, strict=True)


@each_overlay
def test_objects_have_names_of_their_own_in_one_namespace(overlay: str) -> None:
    names = [(each["kind"], name_of(each)) for each in render(overlay)]
    assert len(set(names)) == len(names)
    (namespace,) = of_kind(overlay, "Namespace")
    others = [each for each in render(overlay) if each is not namespace]
    assert {each["metadata"]["namespace"] for each in others} == {name_of(namespace)}


@each_overlay
def test_what_an_object_refers_to_is_there(overlay: str) -> None:
    there = {(each["kind"], name_of(each)) for each in render(overlay)}
    for each in of_kind(overlay, "StatefulSet"):
        assert ("Service", each["spec"]["serviceName"]) in there
    for each in of_kind(overlay, "HorizontalPodAutoscaler", "ScaledObject"):
        target = each["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in there
    for _, _, spec in pods(overlay):
        volumes = {each["name"]: each for each in spec.get("volumes", ())}
        for each in volumes.values():
            if "configMap" in each:
                assert ("ConfigMap", each["configMap"]["name"]) in there
            if "persistentVolumeClaim" in each:
                assert ("PersistentVolumeClaim", each["persistentVolumeClaim"]["claimName"]) in there
        for container in spec["containers"]:
            for source in container.get("envFrom", ()):
                assert "secretRef" in source or ("ConfigMap", source["configMapRef"]["name"]) in there


@each_overlay
def test_every_service_budget_and_policy_selects_pods_that_there_are(overlay: str) -> None:
    labels = [each for _, each, _ in pods(overlay)]
    for each in of_kind(overlay, "Service"):
        assert any(each["spec"]["selector"].items() <= one.items() for one in labels), name_of(each)
    for each in of_kind(overlay, "PodDisruptionBudget"):
        assert any(matches(each["spec"]["selector"], one) for one in labels), name_of(each)
    for each in of_kind(overlay, "NetworkPolicy"):
        assert any(matches(each["spec"]["podSelector"], one) for one in labels), name_of(each)


@each_overlay
def test_sets_of_workers_do_not_select_each_others_pods(overlay: str) -> None:
    for each in of_kind(overlay, *WORKLOADS, "PodDisruptionBudget"):
        selected = [name for name, labels, _ in pods(overlay) if matches(each["spec"]["selector"], labels)]
        assert selected == [name_of(each)]


@each_overlay
def test_containers_may_do_nothing_beyond_their_work(overlay: str) -> None:
    for name, _, spec in pods(overlay):
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


@each_overlay
def test_our_containers_run_as_the_user_that_the_images_make_and_write_below_their_data_alone(overlay: str) -> None:
    user = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)
    for _, _, spec in pods(overlay):
        (container,) = spec["containers"]
        if image_of(container) in OURS:
            assert [str(spec["securityContext"][each]) for each in ("runAsUser", "fsGroup")] == user * 2
            writable = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]
            assert writable == [variables(overlay, container)["ADM_DATA"]] == ["/data"]


@each_overlay
def test_environment_of_a_container_is_accepted_by_the_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [each for each in environ if each.startswith("ADM_")]:
        monkeypatch.delenv(variable)
    for _, container in containers(overlay):
        if image_of(container) not in OURS:
            continue
        with monkeypatch.context() as patch:
            for name, value in variables(overlay, container).items():
                patch.setenv(name, value)
            settings = Settings.load()
        assert settings.store_address.startswith("s3://")  # pods share no folder
        assert not settings.allow_anonymous


@each_overlay
def test_no_service_of_kubernetes_becomes_a_variable_that_no_setting_knows(overlay: str) -> None:
    """Kubernetes makes ADM_REDIS_SERVICE_HOST of a Service adm-redis, and programs refuse unknown variables."""
    ours = [spec for _, _, spec in pods(overlay) if image_of(spec["containers"][0]) in OURS]
    assert ours
    assert all(spec["enableServiceLinks"] is False for spec in ours)


@each_overlay
def test_set_of_workers_is_named_stably_and_has_pipelines_that_exist(overlay: str) -> None:
    assert workers(overlay).keys() == SETS[overlay]
    shipped = set(Settings(weights=ROOT / "weights").pipelines)
    for each in workers(overlay).values():
        (container,) = each["spec"]["template"]["spec"]["containers"]
        assert {"fieldRef": {"fieldPath": "metadata.name"}} in [one.get("valueFrom") for one in container["env"]]
        pipelines = variables(overlay, container)["ADM_PIPELINES"].split(",")
        assert set(pipelines) <= shipped | OFFICIAL_PIPELINES.keys()


@each_overlay
def test_worker_may_drain_before_it_is_killed(overlay: str) -> None:
    for each in workers(overlay).values():
        grace = each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace >= Settings.model_fields["drain_seconds"].default + DRAIN_MARGIN_SECONDS


@each_overlay
def test_probes_ask_what_programs_answer(overlay: str) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    for name, container in containers(overlay):
        probes: dict[str, Any] = {kind: container[kind] for kind in container if kind.endswith("Probe")}
        assert "readinessProbe" in probes, name
        if image_of(container) == "adm-serve-web":
            assert all(each["httpGet"]["path"] in paths for each in probes.values())
            (port,) = container["ports"]
            assert port["containerPort"] == Settings.model_fields["port"].default
        if image_of(container) == "adm-serve-worker":
            assert probes.keys() == {"readinessProbe"}  # a worker without Redis goes on, and one that hangs ends itself
            assert probes["readinessProbe"]["exec"]["command"] == ["python", "-m", "worker.probe"]


def test_docker_uses_the_same_probe_for_a_worker() -> None:
    assert 'CMD ["python", "-m", "worker.probe"]\nCMD ["adm", "worker"]' in DOCKERFILE


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "keda"])
def test_redis_and_prometheus_are_those_of_compose(overlay: str) -> None:
    by_name = dict(containers(overlay))
    redis = by_name["adm-redis"]
    assert redis["image"] == COMPOSE["redis"]["image"]
    assert set(COMPOSE["redis"]["command"]) <= set(redis["args"])
    if prometheus := by_name.get("adm-prometheus"):
        assert prometheus["image"] == COMPOSE["prometheus"]["image"]


def test_external_redis_is_reached_by_a_secret_and_none_is_run() -> None:
    assert "adm-redis" not in {name for name, _ in containers("external-redis")}
    for _, container in containers("external-redis"):
        (url,) = [each for each in container["env"] if each["name"] == "ADM_REDIS_URL"]
        assert url["valueFrom"] == {"secretKeyRef": {"name": "adm-redis", "key": "url", "optional": True}}


@each_overlay
def test_nothing_is_let_in_or_out_that_no_policy_names(overlay: str) -> None:
    policies = of_kind(overlay, "NetworkPolicy")
    for _, labels, _ in pods(overlay):
        closed = [each for each in policies if matches(each["spec"]["podSelector"], labels) and deny(each)]
        assert closed


def deny(policy: Manifest) -> bool:
    spec = policy["spec"]
    return set(spec["policyTypes"]) == {"Ingress", "Egress"} and not ({"ingress", "egress"} & spec.keys())


@each_overlay
def test_only_the_service_lets_strangers_in_and_nobody_reaches_the_nodes_metadata(overlay: str) -> None:
    for policy in of_kind(overlay, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            assert "from" in rule or name_of(policy) == "adm-service"
        for rule in policy["spec"].get("egress", ()):
            for peer in rule.get("to", ()):
                if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    assert "169.254.0.0/16" in peer["ipBlock"]["except"]


@each_overlay
def test_spans_reach_a_collector_in_the_cluster_from_the_programs_that_send_them_and_from_no_other(
    overlay: str,
) -> None:
    """Port 4318 is OTLP over HTTP; a `to` of a namespace selector selects pods, so nothing outside the cluster."""
    for _, labels, spec in pods(overlay):
        rules = [rule for rule in egress(overlay, labels) if {"protocol": "TCP", "port": 4318} in rule["ports"]]
        sends_spans = image_of(spec["containers"][0]) in OURS
        assert [rule["to"] for rule in rules] == ([[{"namespaceSelector": {}}]] if sends_spans else [])


def egress(overlay: str, labels: Manifest) -> list[Manifest]:
    """The rules by which pods with these labels reach others."""
    policies = [each["spec"] for each in of_kind(overlay, "NetworkPolicy")]
    selecting = [each for each in policies if matches(each["podSelector"], labels)]
    return [rule for each in selecting for rule in each.get("egress", ())]


def test_gpu_is_asked_for_by_workers_alone_and_by_none_on_cpus() -> None:
    for overlay, wanted in (("cpu", set()), ("gpu", {"adm-worker-demo", "adm-worker-imagenet"})):
        limits = {name: each.get("resources", {}).get("limits", {}) for name, each in containers(overlay)}
        assert {name for name, each in limits.items() if "nvidia.com/gpu" in each} == wanted


def test_procedure_for_a_set_that_was_never_announced_names_what_there_is() -> None:
    text = (ROOT / "docs/fleet.md").read_text()
    (script,) = re.findall(r"<!-- first start -->\n```sh\n(.*?)```", text, re.DOTALL)
    there = {name_of(each) for each in of_kind("keda", "ScaledObject", *WORKLOADS)}
    (named,) = set(re.findall(r"\b(?:pod|exec) (adm-worker-[a-z]+)-0", script))
    assert named in there
    assert script.count("autoscaling.keda.sh/paused-replicas=1") == 1
    assert script.count("autoscaling.keda.sh/paused-replicas-") == 1  # a set that stays paused never scales
    (secret,) = [each for _, _, spec in pods("keda") for each in spec.get("volumes", ()) if "secret" in each]
    assert f"secret generic {secret['secret']['secretName']} --from-literal=metrics-key=" in script


def query_names(query: str) -> set[str]:
    return set(re.findall(r"\badm_[a-z_]+", query))


def test_each_set_is_scaled_by_the_work_of_its_own_pipelines_and_by_metrics_that_there_are() -> None:
    code = (ROOT / "service/metrics.py").read_text()
    scaled = {name_of(each): each["spec"] for each in of_kind("keda", "ScaledObject")}
    assert scaled.keys() == {f"adm-worker-{each}" for each in workers("keda")}
    for name, each in workers("keda").items():
        spec = scaled[f"adm-worker-{name}"]
        (container,) = each["spec"]["template"]["spec"]["containers"]
        pipelines = variables("keda", container)["ADM_PIPELINES"].replace(",", "|")
        queries = [one["metadata"]["query"] for one in spec["triggers"]]
        assert all(f'"{metric}"' in code for query in queries for metric in query_names(query))
        assert {found for query in queries for found in re.findall(r'pipeline=~"([^"]+)"', query)} == {pipelines}
        (pods_of,) = {found for query in queries for found in re.findall(r'worker=~"([^"]+)"', query)}
        assert re.fullmatch(pods_of, f"adm-worker-{name}-7")
        assert {one["metadata"]["serverAddress"] for one in spec["triggers"]} == {"http://adm-prometheus.adm.svc:9090"}


def test_rule_is_the_one_that_was_simulated() -> None:
    for each in of_kind("keda", "ScaledObject"):
        spec = each["spec"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        queued, rows, waiting = (one["metadata"] for one in spec["triggers"])
        (up,), (down,) = (behavior[way]["policies"] for way in ("scaleUp", "scaleDown"))
        assert up["periodSeconds"] == down["periodSeconds"] == Rule.period_seconds
        assert Rule() == Rule(
            threshold_seconds=float(queued["threshold"]),
            activation_seconds=float(queued["activationThreshold"]),
            rows=int(rows["threshold"]),
            patience_seconds=60.0 * int(re.findall(r"\[(\d+)m\]", waiting["query"])[0]),
            polling_seconds=spec["pollingInterval"],
            cooldown_seconds=spec["cooldownPeriod"],
            stabilization_seconds=behavior["scaleDown"]["stabilizationWindowSeconds"],
            up=up["value"],
            down=down["value"],
            min_replicas=spec["minReplicaCount"],
            max_replicas=spec["maxReplicaCount"],
        )
        assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
        assert rows["activationThreshold"] == waiting["activationThreshold"] == "0"


def test_pipelines_stay_known_for_longer_than_a_set_is_likely_to_be_at_zero() -> None:
    (settings,) = [each["data"] for each in of_kind("keda", "ConfigMap") if "ADM_STORE" in each["data"]]
    assert int(settings["ADM_PIPELINE_RETENTION_SECONDS"]) >= 7 * 86_400


def test_every_file_of_the_folder_is_part_of_an_overlay() -> None:
    """A file that no kustomization names would be changed without effect."""
    named = " ".join(path.read_text() for path in FOLDER.rglob("kustomization.yaml"))
    others = [path.name for path in FOLDER.rglob("*.y*ml") if path.name != "kustomization.yaml"]
    assert all(name in named for name in others)
