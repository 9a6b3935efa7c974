"""Redis, for the packages above: the server and its clock, names of keys, records of jobs, replies."""
