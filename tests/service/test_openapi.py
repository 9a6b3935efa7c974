"""The document: pinned in openapi.json beside it, and true.

After a change that is meant, `python -m tests.service.test_openapi` writes the golden file anew.
"""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from jobs.settings import Settings
from service.app import create_app
from tests.service.conftest import ToyWorker

GOLDEN = Path(__file__).with_name("openapi.json")
ROUTES = {
    "/v1/jobs": {"get", "post"},
    "/v1/jobs/{job_id}": {"get", "delete"},
    "/v1/jobs/{job_id}/cancel": {"post"},
    "/v1/jobs/{job_id}/events": {"get"},
    "/v1/jobs/{job_id}/images/{index}": {"get"},
    "/v1/files": {"post"},
    "/v1/files/{file_id}": {"get", "delete"},
    "/v1/files/{file_id}/content": {"get"},
    "/v1/models": {"get"},
    "/v1/models/{name}": {"get"},
    "/v1/workers": {"get"},
    "/livez": {"get"},
    "/readyz": {"get"},
    "/healthz": {"get"},
    "/metrics": {"get"},
}


def document() -> dict[str, Any]:
    found = create_app(Settings()).openapi()
    found["info"]["version"] = "0"  # not what this file is to pin
    return found


def test_document_is_the_golden_one() -> None:
    assert document() == json.loads(GOLDEN.read_text())


def test_document_has_the_routes_of_the_contract() -> None:
    assert {path: set(methods) for path, methods in document()["paths"].items()} == ROUTES


def test_every_reference_of_the_document_leads_somewhere() -> None:
    text = json.dumps(document())
    schemas = document()["components"]["schemas"]
    references = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert references <= set(schemas)


@pytest.mark.slow
def test_service_answers_as_its_document_says(address: str, worker: ToyWorker, client: httpx2.Client) -> None:
    """Generated requests, good and bad: no 500, and nothing that the document does not announce."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json").exclude(path_regex="events$")
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)

        @given(case=found.ok().as_strategy())
        @settings(
            max_examples=15,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        def answers_as_announced(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(checks=checks)

        answers_as_announced()


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(document(), indent=1, sort_keys=True) + "\n")
