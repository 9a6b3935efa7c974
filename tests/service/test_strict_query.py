"""Query parameters that would be ignored are refused by name."""

import httpx2
import pytest

from tests.service.test_jobs import is_problem

LISTED = "/v1/images.zip?image=a/0&image=b/0"


@pytest.mark.parametrize(
    ("url", "pointer", "detail"),
    [
        ("/v1/jobs?stauts=failed", "/stauts", "unknown parameter; there are: status, limit, after"),
        ("/v1/jobs?status=failed&status=completed", "/status", "is given more than once"),
        ("/v1/jobs?limit=1&%6Cimit=1", "/limit", "is given more than once"),
        ("/v1/jobs/a?Wait=1", "/Wait", "unknown parameter; there are: wait"),
        ("/v1/jobs/a/events?last=1", "/last", "unknown parameter; this call has none"),
        ("/v1/jobs/a/images/0?size=64&size=32", "/size", "is given more than once"),
        (f"{LISTED}&size=64", "/size", "unknown parameter; there are: image"),
    ],
)
def test_parameter_that_would_be_ignored_is_refused_by_name(
    client: httpx2.Client, url: str, pointer: str, detail: str
) -> None:
    answer = client.get(url)
    assert is_problem(answer, 422, pointer)
    assert detail in answer.json()["detail"]


def test_parameter_that_is_a_list_may_be_given_several_times(client: httpx2.Client) -> None:
    assert client.get("/v1/jobs?metadata=a=1&metadata=b=2").status_code == 200
    assert is_problem(client.get(LISTED), 404)  # the jobs do not exist


def test_unknown_parameter_of_a_call_that_changes_something_stops_it(client: httpx2.Client) -> None:
    assert is_problem(client.delete("/v1/jobs/a?dry_run=true"), 422, "/dry_run")
    assert is_problem(client.post("/v1/jobs?wait=5", json={}), 422, "/wait")
