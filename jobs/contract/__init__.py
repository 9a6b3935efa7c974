"""The contract of service and workers: requests, jobs, callers, errors, announcements of workers. No Redis, no I/O."""
