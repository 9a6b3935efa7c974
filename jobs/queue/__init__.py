"""Changes of jobs in Redis: submissions, all changes of state, events, webhooks and upkeep."""
