"""`python -m cli` is `adm`, for use without the installed script."""

from cli.main import app

app()
