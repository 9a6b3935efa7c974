"""The service's fixtures: the client is tested against the real service."""

from tests.service.conftest import address, client, fleet, service_settings, worker

__all__ = ["address", "client", "fleet", "service_settings", "worker"]
