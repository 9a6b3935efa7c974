"""Launches a child: binds the process to its supervisor, locks its pid file, then executes the program.

Run as a script, `python -I launcher.py SUPERVISOR_PID PID_FILE PROGRAM ARGUMENT...`, with only the standard library. It
runs between supervisor and program, because these steps must happen in the child. A `preexec_fn` would run Python
between fork and exec, where a lock of another thread is never released.

The pid stays the same through exec, and so do the two things set up here:

- the lock on the pid file, kept by an inherited descriptor until the program and all its children have ended. A pid
  alone may be stale or belong to another process; a lock cannot, and the next supervisor on the folder waits for it.
- on Linux, the parent-death signal: if the supervisor gets SIGKILL, its children get it too. With SIGTERM a worker
  would finish its jobs, and nothing would be left to end a slow one. Every program tolerates SIGKILL at any time.
"""

import ctypes
import fcntl
import os
import signal
import sys
import time

LOCK_SECONDS = 10.0  # for the predecessor and its children to end
PR_SET_PDEATHSIG = 1  # linux/prctl.h
EX_TEMPFAIL = 75  # sysexits.h


def die_with(supervisor_pid: int) -> None:
    """Have the system send SIGKILL when the supervisor dies; exit if it has already died."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor_pid:  # it died before the request, so no signal will come
        sys.exit(EX_TEMPFAIL)


def take_pid_file(path: str) -> None:
    """Lock the pid file until this process ends, also after exec, and write the pid."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, True)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.exit(f"{path}: the process in it, or one it started, still runs")
            time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def main() -> None:
    supervisor_pid, pid_file, *program = sys.argv[1:]
    die_with(int(supervisor_pid))
    take_pid_file(pid_file)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.exit(f"{program[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
