"""Who calls: API keys, roles, turns between callers, quotas."""
