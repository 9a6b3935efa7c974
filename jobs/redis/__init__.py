"""Redis as all rooms see it: the server and its clock, names of keys, records of jobs, answers."""
