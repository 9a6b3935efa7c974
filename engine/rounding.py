"""The version of this code's rounding, a part of every numerics fingerprint."""

ROUNDING = 4
"""Raise it with any change after which the same request may give other bits.

Jobs with older checkpoints then start over, and networks are compiled again. tests/engine/test_rounding.py compares
recorded outputs, and fails if a change needs a new version.
"""
