"""The version of how this code rounds, part of every numerics fingerprint."""

ROUNDING = 3
"""Raise it with any change after which the same request may give other bits.

Then checkpoints of before start over, and compiled networks are compiled anew. tests/engine/test_rounding.py compares
recorded outputs and fails where a change needs it.
"""
