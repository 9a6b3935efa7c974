"""What the API shows: jobs, estimates, the fleet. Reads Redis, and writes nothing."""
