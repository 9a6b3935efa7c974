"""Pages of other sites: those that a setting lists may call the service from a browser, and no others."""

from collections.abc import Iterator

import httpx2
import pytest

from jobs.settings import Settings
from tests.service.conftest import ToyWorker, body, running_service
from tests.service.test_jobs import is_problem

APP = "https://app.example"


@pytest.fixture(scope="module")
def address(service_settings: Settings) -> Iterator[str]:
    with running_service(service_settings, ADM_CORS_ORIGINS=f"{APP},http://localhost:5173") as (address, _, _):
        yield address


def preflight(client: httpx2.Client, origin: str) -> httpx2.Response:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return client.options("/v1/jobs", headers={"Origin": origin} | asked)


def test_listed_origin_may_post_and_read_the_answer(client: httpx2.Client, fleet: ToyWorker) -> None:
    before = preflight(client, APP)
    assert before.headers["Access-Control-Allow-Origin"] == APP
    assert "authorization" in before.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in before.headers
    answer = client.post("/v1/jobs", json=body(), headers={"Origin": APP, "Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (202, APP)
    assert "Location" in answer.headers["Access-Control-Expose-Headers"]
    assert "Origin" in answer.headers["Vary"]


def test_listed_origin_may_read_why_it_was_refused(client: httpx2.Client) -> None:
    answer = client.post("/v1/jobs", content=b"x" * 70_000, headers={"Origin": APP, "Sec-Fetch-Site": "cross-site"})
    assert is_problem(answer, 413)
    assert answer.headers["Access-Control-Allow-Origin"] == APP


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", "https://app.example:8443", "null"])
def test_other_origins_are_refused_as_without_the_setting(client: httpx2.Client, origin: str) -> None:
    assert "Access-Control-Allow-Origin" not in preflight(client, origin).headers
    assert is_problem(client.post("/v1/jobs", json=body(), headers={"Origin": origin}), 403)
    assert "Access-Control-Allow-Origin" not in client.get("/v1/jobs", headers={"Origin": origin}).headers


def test_preflight_is_answered_at_the_names_of_the_service_alone(client: httpx2.Client) -> None:
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST"}
    refused = client.options("/v1/jobs", headers=asked | {"Host": "evil.example"})
    assert is_problem(refused, 421)
    assert "Access-Control-Allow-Origin" not in refused.headers
    assert client.options("/v1/jobs", headers=asked | {"Host": "localhost:80"}).status_code == 200


def test_page_of_another_site_without_origin_is_refused(client: httpx2.Client) -> None:
    assert is_problem(client.post("/v1/jobs", json=body(), headers={"Sec-Fetch-Site": "cross-site"}), 403)


@pytest.mark.parametrize(
    "origin", ["*", "null", "app.example", "https://app.example/", "https://App.example", "ftp://a"]
)
def test_setting_takes_no_wildcard_and_nothing_that_browsers_never_send(origin: str) -> None:
    with pytest.raises(ValueError, match="must be a scheme and a host"):
        Settings(cors_origins=(origin,))
