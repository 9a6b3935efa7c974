"""Jobs, as the service and the workers share them, in rooms of which each imports only from those below it.

From the top: `queue`, `views` and `storage`, `callers`, `redis`, `logs`, `settings`, `contract`.
"""
