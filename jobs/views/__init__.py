"""Views for the API: jobs, estimates, the fleet. Reads Redis, and writes nothing."""
