"""The web page and Swagger UI, all of it served from here."""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"
SWAGGER = Path(str(files("fastapi_offline"))) / "static"  # Swagger UI's own build, as that wheel ships it
SWAGGER_FILES = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"})

# blob: and data: show images fetched with a key, and previews; nothing comes from elsewhere, nothing is inline
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI sets style attributes and draws its icons from data URLs
DOCS_POLICY = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
REVALIDATED = {"Cache-Control": "no-cache"}  # a new version of the page shows at the next visit; ETags keep that cheap

DOCS_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>ADM Serve: API</title>
<link rel="icon" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/init.js"></script>
</body>
</html>
"""
DOCS_SCRIPT = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true});\n'


class PageFiles(StaticFiles):
    """The page's modules and styles."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type] # passed on as they are
        response.headers.update(REVALIDATED | {"Content-Security-Policy": PAGE_POLICY})
        return response


def install(app: FastAPI) -> None:
    """Add the page at /, its files under /static, and Swagger UI at /docs."""

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        if not (STATIC / "index.html").is_file():
            raise HTTPException(404, "this build has no page; /docs describes the API")
        return FileResponse(STATIC / "index.html", headers=REVALIDATED | {"Content-Security-Policy": PAGE_POLICY})

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(DOCS_HTML, headers={"Content-Security-Policy": DOCS_POLICY})

    @app.get("/docs/init.js", include_in_schema=False)
    def docs_script() -> Response:
        return Response(DOCS_SCRIPT, media_type="text/javascript")

    @app.get("/docs/{name}", include_in_schema=False)
    def docs_file(name: str, request: Request) -> FileResponse:
        if name not in SWAGGER_FILES:
            raise HTTPException(404)
        return FileResponse(SWAGGER / name, headers=REVALIDATED)

    if STATIC.is_dir():
        app.mount("/static", PageFiles(directory=STATIC), name="static")
