"""`python -m cli` is `adm`, also where no script is installed."""

from cli.main import app

app()
