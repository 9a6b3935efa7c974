import pytest
from redis import Redis

from jobs.errors import SettingsError
from jobs.server import check_server, check_version


@pytest.mark.parametrize("version", ["2.8.24", "6.2.14"])
def test_old_redis_is_refused_in_one_line_that_says_what_is_needed(version: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_version(version)
    told = f"ADM_REDIS_URL: the server is Redis {version}; Redis 7 or newer, or Valkey, is needed"
    assert str(caught.value) == told


@pytest.mark.parametrize("version", ["7.0.0", "7.2.4", "10.1.0", "255.255.255"])
def test_newer_redis_will_do(version: str) -> None:
    check_version(version)


def test_server_of_the_tests_will_do(redis: Redis) -> None:
    check_server(redis)
