"""Callers: API keys, roles, turns between callers, quotas."""
