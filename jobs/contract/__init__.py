"""What both ends of the queue agree on: requests, jobs, errors, what workers announce. No Redis, no I/O."""
