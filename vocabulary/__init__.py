"""Names, counts and roundings that the queue and the engine both need: plain Python, without torch and without I/O."""
