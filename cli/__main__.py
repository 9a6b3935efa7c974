"""Runs the `adm` command as `python -m cli`, without the installed script."""

from cli.main import app

app()
