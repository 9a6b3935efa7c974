"""The embedded default: Redis, service and worker as children of one supervisor, and the demo run on top of it."""
