"""Callers: API keys, turns between callers, quotas."""
