"""Settings of the C library's allocator for CPUs, with which a step reuses the memory of the step before."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
NEVER = -1
LARGEST = 2**30, 2**25  # the second for glibc before 2.35, which accepts no larger value


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors until the process ends; call this before any tensor is made.

    By default it returns large blocks to the system at once, and every step requests them again: the system clears each
    page, which takes a tenth to a quarter of the processors' time in networks of few channels. The memory kept is the
    peak of a step. A C library without these settings (musl, macOS) stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST):
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_ARENA_MAX, 1)  # a thread's own arena would be returned at once, whatever the thresholds
