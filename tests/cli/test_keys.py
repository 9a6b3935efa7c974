"""`adm keys`, as a program of its own: what it prints, what it logs, and what it says when it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from jobs.redis import keys
from jobs.settings import Settings

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.redis, pytest.mark.slow]


def adm_keys(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADM_")}
    return subprocess.run(
        [sys.executable, "-m", "cli", "keys", *arguments],
        check=False,
        cwd=ROOT,
        env=environment | {"ADM_REDIS_URL": str(settings.redis_url), "ADM_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_key_is_printed_once_and_every_change_is_logged_without_it(redis: Redis, settings: Settings) -> None:
    created = adm_keys(settings, "create", "--name", "ann", "--role", "user", "--json")
    made = json.loads(created.stdout)
    assert made.keys() == {"key", "id", "name", "role"}
    rotated = adm_keys(settings, "rotate", "ann")
    (listed,) = json.loads(adm_keys(settings, "list", "--json").stdout)
    assert (listed["id"], listed["name"], listed["role"]) == (made["id"], "ann", "user")
    revoked = adm_keys(settings, "revoke", made["id"])
    assert "revoked" in adm_keys(settings, "list").stdout
    for ended, action in ((created, "create_key"), (rotated, "rotate_key"), (revoked, "revoke_key")):
        (line,) = [json.loads(each) for each in ended.stderr.splitlines() if each.startswith("{")]
        assert (line["event"], line["action"], line["target"]) == ("audit", action, made["id"])
        for key in (made["key"], rotated.stdout.strip()):
            assert key not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--name", "ann", "--role", "king"], "--role: 'king' must be one of user, operator, metrics"),
        (["create", "--name", "a\tb", "--role", "user"], "--name: 'a\\tb' must have"),
        (["revoke", "nobody"], "'nobody': no such key"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    redis: Redis, settings: Settings, arguments: list[str], message: str
) -> None:
    ended = adm_keys(settings, *arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"adm: {message}")
    assert len(ended.stderr.splitlines()) == 1
    assert not redis.exists(keys.API_KEYS)


def test_redis_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ended = adm_keys(Settings(redis_url=f"unix://{tmp_path}/none.sock"), "list")
    assert ended.returncode == 1
    assert ended.stderr.startswith("adm: ADM_REDIS_URL: ")
    assert len(ended.stderr.splitlines()) == 1
