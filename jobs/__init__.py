"""Jobs: what both ends of the queue agree on, in four rooms. `contract` knows no Redis, `views` writes nothing."""
