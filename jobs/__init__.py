"""The code about jobs that the service and the workers share. Each package imports only from the packages below it.

From the top: `queue`, `views` and `storage`, `callers`, `redis`, `logs`, `settings`, `contract`.
"""
