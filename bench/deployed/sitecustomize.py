"""Hides libraries that only this repository's tests install; Python imports this file where PYTHONPATH has its folder.

Libraries of the service import them where they are there, so a measured process would have more memory than a deployed
one: limits imports valkey, and redis and FastAPI import opentelemetry's SDK.
"""

import sys
from importlib.abc import MetaPathFinder

HIDDEN = ("valkey", "opentelemetry.sdk", "opentelemetry.exporter")


class Hider(MetaPathFinder):
    """Answers as if the hidden libraries were not installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname in HIDDEN:
            raise ModuleNotFoundError(f"{fullname} is not deployed", name=fullname)


sys.meta_path.insert(0, Hider())
