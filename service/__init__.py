"""HTTP: routes that only translate, problem+json, events, metrics, the web page."""

import sys

if "rich" not in sys.modules:
    # structlog imports rich if it is installed: 3 MB of each process, for tracebacks that the logs do not use
    sys.modules["rich"] = None  # type: ignore[assignment] # None makes its import fail, which typeshed omits
    import structlog  # noqa: F401

    del sys.modules["rich"]
