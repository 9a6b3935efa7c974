"""Logs on stderr: JSON, or pretty on a terminal; what a context binds (request id, job id) is on every line."""

import logging
import sys

import structlog

from jobs.callers.caller import KEY
from jobs.settings import Settings

MAX_LENGTH = 500  # characters of a value, but for a traceback


def tidy(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Make values fit for a terminal: callers choose paths and names, and must not choose what the terminal does."""
    return {name: tidied(name, value) if isinstance(value, str) else value for name, value in event.items()}


def tidied(name: str, text: str) -> str:
    kept = "\n" if name == "exception" else ""
    text = KEY.sub(r"adm_\1_...", text)  # which careless callers put into paths
    if len(text) > MAX_LENGTH and not kept:
        text = f"{text[:MAX_LENGTH]}..."
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode() for each in text
    )


def configure(settings: Settings) -> None:
    """Set up structlog, and send what libraries log through it too."""
    level = getattr(logging, settings.log_level.upper())
    pretty = settings.log_format == "pretty" or (settings.log_format == "auto" and sys.stderr.isatty())
    # rich's tracebacks, which structlog would choose for a terminal, show local variables: request bodies, addresses
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer = console if pretty else structlog.processors.JSONRenderer()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    finish: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, tidy, renderer]
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
