"""Jobs in Redis: keys, records, every change of a state, events, and what is done now and then."""
