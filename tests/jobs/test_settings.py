from pathlib import Path

import pytest

from jobs.contract.errors import SettingsError
from jobs.settings import Settings
from jobs.settings.environment import masked
from jobs.storage.images import ImageStore

SHIPPED = ("demo", "demo-uncond", "fashion", "fashion-uncond")


@pytest.fixture(autouse=True)
def no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"ADM_{name.upper()}", raising=False)


def test_every_setting_is_documented() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_defaults_are_those_of_a_loopback_demo() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port, settings.pipelines) == ("127.0.0.1", 8000, SHIPPED)
    assert settings.redis_address == f"unix://{Path.cwd()}/data/run/redis.sock"
    assert settings.store_address == f"{Path.cwd()}/data/images"


def test_added_stack_is_served_without_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_WEIGHTS", str(tmp_path))
    for name, text in (("mine", '{"pipelines": {"mine": {}, "mine-uncond": {}}}'), ("other", "damaged")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stack.json").write_text(text)
    assert Settings.load().pipelines == ("mine", "mine-uncond")


def test_unknown_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_PROT", "1")
    with pytest.raises(SettingsError, match="ADM_PROT: no such setting; the nearest is ADM_PORT"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ADM_PORT", "http"),
        ("ADM_PIPELINES", ","),
        ("ADM_PRECISION", "fp8"),
        ("ADM_HEARTBEAT_SECONDS", "40"),
        ("ADM_CLIENT_SECONDS", "inf"),
        ("ADM_LEASE_SECONDS", "nan"),
        ("ADM_REDIS_URL", "localhost:6379"),
        ("ADM_REDIS_URL", "redis://localhost:port"),
        ("ADM_STORE", "ftp://host/images"),
        ("ADM_STORE", "s3://"),
    ],
)
def test_wrong_value_is_one_line_naming_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"\A{name}: .*\Z"):
        Settings.load()


def test_lists_are_comma_separated_and_empty_means_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_PIPELINES", "a, b")
    monkeypatch.setenv("ADM_STORE", "")
    settings = Settings.load()
    assert (settings.pipelines, settings.store) == (("a", "b"), None)


def test_socket_path_that_the_system_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_DATA", "/" + "x" * 107)
    with pytest.raises(SettingsError, match=r"ADM_DATA: .*107 bytes"):
        Settings.load()


def test_worker_is_named_after_its_machine_where_others_may_share_its_redis() -> None:
    assert Settings().name_of_worker("cpu-0") == "cpu-0"
    assert Settings(redis_url="redis://elsewhere", worker_name="left").name_of_worker("cpu-0") == "left"
    name = Settings(redis_url="redis://elsewhere").name_of_worker("cpu-0")
    assert name.endswith("-cpu-0")
    assert name != "-cpu-0"
    assert Settings(worker_name=name).worker_name == name


def test_store_that_cannot_be_used_is_one_line_naming_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"\AADM_STORE: .*\Z"):
        ImageStore(str(tmp_path / "file" / "images"))


def test_sources_name_the_origin_of_a_value_and_hide_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_REDIS_URL", "redis://user:secret@host:6379/0")
    lines = {each.variable: each for each in Settings.load().sources()}
    assert (lines["ADM_REDIS_URL"].value, lines["ADM_REDIS_URL"].source) == ("redis://***@host:6379/0", "environment")
    assert (lines["ADM_PIPELINES"].value, lines["ADM_PIPELINES"].source) == (",".join(SHIPPED), "default")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://u:secret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://secret@host/0", "redis://***@host/0"),
        ("redis://host/0?password=secret&db=1", "redis://host/0?password=***&db=1"),
        ("unix://:secret@/run/redis.sock?db=2", "unix://***@/run/redis.sock?db=2"),
        ("rediss://host/0?ssl_keyfile_Password=secret", "rediss://host/0?ssl_keyfile_Password=***"),
        ("s3://secret@bucket/prefix", "s3://***@bucket/prefix"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("a folder@home", "a folder@home"),
    ],
)
def test_addresses_are_shown_without_passwords(value: str, shown: str) -> None:
    assert masked(value) == shown


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_pipelines_of_a_stack_are_read_with_a_byte_order_mark_too(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "stack.json").write_text('{"pipelines": {"mine": {}}}', encoding=encoding)
    assert Settings(weights=tmp_path).pipelines == ("mine",)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ADM_HOSTS", "https://images.example"),
        ("ADM_HOSTS", "images.example:8000"),
        ("ADM_HOSTS", "images.example/adm"),
        ("ADM_TRUSTED_PROXIES", "proxy.example"),
        ("ADM_TRUSTED_PROXIES", "10.0.0.0/64"),
        ("ADM_ROOT_PATH", "adm"),
        ("ADM_ROOT_PATH", "/adm/"),
    ],
)
def test_what_cannot_be_a_host_a_proxy_or_a_path_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^{variable}: [^\n]+$"):
        Settings.load()


def test_hosts_and_proxies_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_HOSTS", "images.example, [fd00::1]")
    monkeypatch.setenv("ADM_TRUSTED_PROXIES", "10.0.0.0/8,::1")
    settings = Settings.load()
    assert (settings.hosts, settings.trusted_proxies) == (("images.example", "[fd00::1]"), ("10.0.0.0/8", "::1"))
