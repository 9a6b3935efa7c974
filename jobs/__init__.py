"""What both ends of the queue agree on: settings, requests, jobs, errors, Redis keys, events, images."""
