"""Bytes: the store, the images and checkpoints in it, uploaded files."""
