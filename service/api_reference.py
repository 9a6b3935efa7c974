"""Writes docs/api.md from the OpenAPI document: python -m service.api_reference.

A test compares the page with the document.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.settings import Settings
from service.app import create_app

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
METHODS = ("get", "post", "delete")
TAGS = {
    "jobs": "Jobs",
    "grids": "Grids",
    "files": "Pictures",
    "models": "Pipelines, workers, the queue",
    "openai": "OpenAI's images API",
    "runs": "Training runs",
    "health": "Health and metrics",
}
HEAD = """# HTTP API

Written by `python -m service.api_reference` from the OpenAPI document, which a running service has at `/openapi.json`.
Its page `/docs` has forms to try the calls. [Clients](clients.md) shows the Python package, the command line and
OpenAI's client; [serving](serving.md) is about keys, quotas and limits.

- **Keys**: once a key exists, every call sends `Authorization: Bearer KEY`. Another caller's objects answer 404.
- **Errors** are `application/problem+json` (RFC 9457) with `type` (`urn:adm:problem:KIND`, or `about:blank` if the
  status says enough), `title`, `status`, `detail` and `instance` (the path of the call). `errors` lists the wrong
  fields, each with its JSON pointer. OpenAI's routes have OpenAI's envelope.
- **Repeating a POST**: with the same `Idempotency-Key` and body, it returns the job of the first call.
- **Times** are Unix seconds, lengths of time are seconds.
"""
# Answers that any call may get; a route's own table omits them.
COMMON = {
    "400": "the request is not HTTP, not JSON, or its key is malformed",
    "401": "no key, or a wrong one",
    "403": "the key's role does not allow the call, or a page of another site made it",
    "408": "the body arrived too slowly",
    "413": "the body is too large",
    "415": "the body has a type that the call does not accept, or is compressed",
    "421": "the Host is not one of the service's (`ADM_HOSTS`)",
    "422": "a field, parameter or header has a wrong value",
    "429": "above a quota; `Retry-After` has the seconds to wait, unless the job is larger than the quota",
    "431": "the request line and headers are too large",
    "503": "Redis is unavailable, the queue is full, or no worker is ready; `Retry-After` has the seconds to wait",
}


def page(document: Mapping[str, Any]) -> str:
    """The page's text."""
    parts = [HEAD, table(("answer of any call", "means"), sorted(COMMON.items()))]
    routes = [
        (method, path, operations[method])
        for path, operations in document["paths"].items()
        for method in METHODS
        if method in operations
    ]
    for tag, title in TAGS.items():
        parts.append(f"## {title}\n")
        parts += [route(*each) for each in routes if each[2]["tags"] == [tag]]
    parts.append("## Objects\n")
    parts += [schema(name, each) for name, each in document["components"]["schemas"].items()]
    return "\n".join(parts)


def route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    lines = [f"### {method.upper()} {path}\n", f"{operation['summary']}.\n"]
    if text := operation.get("description"):
        lines.append(f"{text.strip()}\n")
    if given := operation.get("parameters"):
        rows = [(f"`{each['name']}`", each["in"], kind(each["schema"]), about(each)) for each in given]
        lines.append(table(("parameter", "in", "type", "means"), rows))
    for media, form in operation.get("requestBody", {}).get("content", {}).items():
        lines.append(f"Body: `{media}`, {kind(form['schema'])}.\n")
    answers = [
        (status, ", ".join(content(each)) or "nothing", each["description"].replace("Successful Response", ""))
        for status, each in operation["responses"].items()
        if status not in COMMON
    ]
    return "\n".join([*lines, table(("answer", "body", "means"), answers)])


def content(answer: Mapping[str, Any]) -> Iterator[str]:
    for media, each in answer.get("content", {}).items():
        form = each.get("schema", {})
        yield f"`{media}`" + (f" {kind(form)}" if "$ref" in str(form) and "problem" not in media else "")


def schema(name: str, form: Mapping[str, Any]) -> str:
    lines = [f"### {name}\n"]
    if text := form.get("description"):
        lines.append(f"{' '.join(text.split())}\n")
    if "enum" in form:
        lines.append(", ".join(f"`{each}`" for each in form["enum"]) + "\n")
    needed = form.get("required", ())
    rows = [
        (f"`{field}`" + ("" if field in needed else ", optional"), kind(each), about(each))
        for field, each in form.get("properties", {}).items()
    ]
    return "\n".join([*lines, table(("field", "type", "means"), rows)] if rows else lines)


def kind(form: Mapping[str, Any]) -> str:
    """A schema's type in a few words, with a link to an object's own section."""
    if "$ref" in form:
        name = form["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in form:
            return " or ".join(dict.fromkeys(kind(each) for each in form[several]))
    if "allOf" in form:
        return kind(form["allOf"][0])
    if "const" in form or "enum" in form:
        return ", ".join(f"`{each}`" if each else "empty" for each in form.get("enum", [form.get("const")]))
    if form.get("type") == "array":
        return f"list of {kind(form.get('items', {}))}"
    named = form.get("format") or form.get("type", "anything")
    return f"{named}{limits(form)}"


def limits(form: Mapping[str, Any]) -> str:
    least, most = form.get("minimum", form.get("exclusiveMinimum")), form.get("maximum", form.get("exclusiveMaximum"))
    if least is not None and most is not None:
        return f", {least} to {most}"
    return f", from {least}" if least is not None else "" if most is None else f", up to {most}"


def about(form: Mapping[str, Any]) -> str:
    """The description of a field or parameter, with its default."""
    default = form.get("default", form.get("schema", {}).get("default"))
    shown = "" if default is None or default in ([], {}) else f"default `{str(default).lower()}`"
    return "; ".join(each for each in (" ".join(form.get("description", "").split()), shown) if each)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table, one row per line; "" if there are no rows."""
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(create_app(Settings()).openapi()))
