"""Storage of bytes: the store, its images and checkpoints, uploaded files."""
