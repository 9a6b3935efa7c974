import asyncio
import os
import signal
import socket
from importlib.metadata import version
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from jobs.settings import Settings
from standalone.child import Child
from standalone.embedded import (
    child_specs,
    environment,
    local_host,
    page_address,
    redis_spec,
    with_free_port,
    worker_name,
)
from standalone.supervisor import StartError
from tests.standalone.programs import Lines, written_pid


def test_busy_port_is_one_clear_error_that_names_the_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} .* in use: set ADM_PORT") as caught:
            with_free_port(Settings(port=port))
    assert "\n" not in str(caught.value)


def test_port_0_takes_a_free_port() -> None:
    port = with_free_port(Settings(port=0)).port
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_address_of_no_interface_is_an_error_that_names_adm_host() -> None:
    with pytest.raises(StartError, match="ADM_HOST"):
        with_free_port(Settings(host="192.0.2.1"))  # TEST-NET-1 (RFC 5737): nobody's


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80")],
)
def test_page_address_can_be_opened_on_this_machine(host: str, address: str) -> None:
    assert page_address(Settings(host=host, port=80)) == address
    assert local_host(Settings(host=host)) in address


def test_children_read_back_exactly_the_settings_of_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_REDIS_URL", "redis://elsewhere")
    secret = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    settings = Settings(port=8123, pipelines=("demo",), threads=2, allow_anonymous=True, webhook_secret=secret)
    variables = environment(settings)
    for name in [name for name in os.environ if name.startswith("ADM_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        if name.startswith("ADM_"):
            monkeypatch.setenv(name, value)
    assert Settings.load() == settings


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(worker_name="left"), "left"),
        (Settings(device="cpu"), "cpu-0"),
        (Settings(device="cuda"), "cuda-0"),
        (Settings(device="cuda:3"), "cuda-3"),
    ],
)
def test_worker_is_named_after_its_device_unless_it_has_a_name(settings: Settings, name: str) -> None:
    assert worker_name(settings) == name


@pytest.mark.skipif("+cpu" not in version("torch"), reason="this torch can use a GPU")
def test_worker_of_a_torch_without_cuda_is_named_after_the_cpu() -> None:
    assert worker_name(Settings()) == "cpu-0"


def test_another_redis_means_no_embedded_one(tmp_path: Path) -> None:
    specs = child_specs(Settings(data=tmp_path, redis_url="redis://elsewhere"))
    assert [spec.name for spec in specs] == ["service", "worker"]


def test_children_stop_in_the_order_service_worker_redis(tmp_path: Path) -> None:
    assert [spec.name for spec in child_specs(Settings(data=tmp_path))] == ["service", "worker", "redis"]


def test_worker_may_drain_for_as_long_as_its_setting_says(tmp_path: Path) -> None:
    worker = next(spec for spec in child_specs(Settings(data=tmp_path, drain_seconds=100)) if spec.name == "worker")
    assert worker.stop_seconds >= 115  # it drains, then its interpreter still has to end


@pytest.mark.redis
def test_embedded_redis_keeps_every_acknowledged_write_through_kill_9(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    settings.run_dir.mkdir()

    async def scenario() -> None:
        log = Lines()
        child = Child(redis_spec(settings), settings.run_dir, log)
        child.start()
        await child.ready.wait()
        client = AsyncRedis.from_url(settings.redis_address)
        for i in range(100):
            await client.rpush("acknowledged", i)
        pid = written_pid(settings.run_dir / "redis.pid")
        assert pid is not None
        assert pid == (await client.info("server"))["process_id"]
        os.kill(pid, signal.SIGKILL)
        await log.first("starting it again")
        log.lines.clear()
        await log.first("redis is ready")
        assert await client.llen("acknowledged") == 100
        await client.aclose()
        await child.stop()

    asyncio.run(scenario())


@pytest.mark.redis
def test_embedded_redis_listens_on_its_socket_alone_and_syncs_always(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    settings.run_dir.mkdir()

    async def scenario() -> dict[str, str]:
        child = Child(redis_spec(settings), settings.run_dir, Lines())
        child.start()
        await child.ready.wait()
        with Redis.from_url(settings.redis_address, decode_responses=True) as client:
            config = client.config_get("port", "unixsocketperm", "appendonly", "appendfsync", "maxmemory-policy")
        await child.stop()
        return dict(config)

    assert asyncio.run(scenario()) == {
        "port": "0",
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
    }
