"""Jobs in Redis: keys, records, all changes of state, events, webhooks and upkeep."""
