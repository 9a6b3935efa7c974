"""The web page and Swagger UI, without files of other sites."""

import mimetypes
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from fastapi import FastAPI, Header, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from service.conditional_requests import etag_of, matches

INDEX, OPERATOR, RUNS = (f"/static/{name}.html" for name in ("index", "operator", "runs"))
STATIC = Path(__file__).parent / "static"
SWAGGER = Path(str(resources("fastapi_offline"))) / "static"  # Swagger UI's own build, as that wheel ships it
SWAGGER_FILES = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"})

# blob: and data: are for images fetched with a key and for previews; no other origins and no inline code
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI sets style attributes and draws its icons from data URLs
DOCS_POLICY = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
IfNoneMatch = Annotated[str | None, Header()]

DOCS_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>ADM Serve: API</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/init.js"></script>
</body>
</html>
"""
DOCS_SCRIPT = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});\n'


class PageFile(NamedTuple):
    """A file of the page, with its headers."""

    content: bytes
    headers: dict[str, str]

    @classmethod
    def read(cls, path: Path, policy: str) -> Self:
        content = path.read_bytes()
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers = {"Content-Security-Policy": policy, "Content-Type": media_type}
        return cls(content, headers | {"ETag": etag_of(content), "Cache-Control": "no-cache"})

    def answer(self, if_none_match: str | None) -> Response:
        """The file, or 304 for a caller that has it, so that a new version of the page is used at the next visit."""
        if matches(if_none_match, self.headers["ETag"]):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def page_files() -> dict[str, PageFile]:
    """The page's files, and Swagger UI's, by path; a build may have no page."""
    page = {
        f"/static/{path.relative_to(STATIC).as_posix()}": PageFile.read(path, PAGE_POLICY)
        for path in STATIC.rglob("*")
        if path.is_file()
    }
    return page | {f"/docs/{name}": PageFile.read(SWAGGER / name, DOCS_POLICY) for name in SWAGGER_FILES}


def install(app: FastAPI) -> None:
    """Add the page at /, its files under /static, and Swagger UI at /docs.

    All files are read once, here, and sent without a thread, so that a slow Redis or disk does not delay the page.
    """
    files = page_files()

    def answer(path: str, if_none_match: str | None) -> Response:
        if path not in files:
            raise HTTPException(404)
        return files[path].answer(if_none_match)

    @app.get("/", include_in_schema=False)
    async def index(if_none_match: IfNoneMatch = None) -> Response:
        if INDEX not in files:
            raise HTTPException(404, "this build has no page; /docs describes the API")
        return answer(INDEX, if_none_match)

    @app.get("/operator", include_in_schema=False)
    async def operator(if_none_match: IfNoneMatch = None) -> Response:
        return answer(OPERATOR, if_none_match)

    @app.get("/runs", include_in_schema=False)
    async def runs(if_none_match: IfNoneMatch = None) -> Response:
        return answer(RUNS, if_none_match)

    @app.get("/static/{name:path}", include_in_schema=False)
    async def static_file(name: str, if_none_match: IfNoneMatch = None) -> Response:
        return answer(f"/static/{name}", if_none_match)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(DOCS_HTML, headers={"Content-Security-Policy": DOCS_POLICY})

    @app.get("/docs/init.js", include_in_schema=False)
    async def docs_script() -> Response:
        return Response(DOCS_SCRIPT, media_type="text/javascript")

    @app.get("/docs/{name}", include_in_schema=False)
    async def docs_file(name: str, if_none_match: IfNoneMatch = None) -> Response:
        return answer(f"/docs/{name}", if_none_match)

    @cache  # anybody may ask for it, and writing it takes 10 ms
    def document() -> bytes:
        return bytes(JSONResponse(app.openapi()).body)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(document(), media_type="application/json")
