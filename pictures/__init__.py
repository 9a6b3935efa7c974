"""Decoding of pictures, one way for training, uploads and the command line: Pillow, no torch, no Redis."""
