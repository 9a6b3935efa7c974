"""`adm service`."""

import os
import sys


def service() -> None:
    """Serve HTTP: jobs, images, events, metrics and the page, on ADM_HOST and ADM_PORT."""
    # a new program, without the command line's 3 MB of modules; -P: the working folder is not on the import path
    os.execv(sys.executable, [sys.executable, "-P", "-m", "service.main"])
