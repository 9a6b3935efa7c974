"""docs/api.md is what the OpenAPI document says."""

import re

from service.api_reference import PAGE, page
from tests.service.test_openapi import document


def test_page_agrees_with_the_document() -> None:
    assert PAGE.read_text() == page(document()), "python -m service.api_reference writes it anew"


def test_page_has_every_route_and_object_and_no_broken_link() -> None:
    text, described = PAGE.read_text(), document()
    routes = {f"{method.upper()} {path}" for path, operations in described["paths"].items() for method in operations}
    assert set(re.findall(r"^### ((?:GET|POST|DELETE) .+)$", text, re.MULTILINE)) == routes
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == set(described["components"]["schemas"])
    assert {each.lower() for each in described["components"]["schemas"]} >= set(re.findall(r"\(#(\w+)\)", text))
