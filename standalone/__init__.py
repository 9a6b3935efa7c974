"""All programs on one machine: Redis, service and worker as children of a supervisor, and the demo on them."""
