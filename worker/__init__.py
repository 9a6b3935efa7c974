"""The worker: claims jobs, runs their images in the engine, stores results, and drains when it stops."""
