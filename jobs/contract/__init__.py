"""The contract of service and workers: requests, jobs, errors, announcements of workers. No Redis, no I/O."""
