"""The local programs: Redis, service and worker as children of one supervisor, and the demo that runs on them."""
