"""Keeping the memory of one step for the next one, on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
NEVER = -1
LARGEST = 2**30, 2**25  # the second for glibc before 2.35, which takes no more


def keep_freed_memory() -> None:
    """Let the C library keep what tensors leave, for this process's life; to be called before any is made.

    By default it gives large blocks back to the system at once, and every step asks for them anew: the system clears
    each page, a tenth to a quarter of the processors' time in networks of few channels. What is kept is what a step
    takes at its peak. A C library without these settings (musl, macOS) stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST):
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_ARENA_MAX, 1)  # a thread's own memory would be given back at once, whatever the thresholds
