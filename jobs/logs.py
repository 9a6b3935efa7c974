"""Logs on stderr: JSON, or coloured text on a terminal. Each line has the values of its context."""

import logging
import sys

import structlog

from jobs.contract.caller import KEY
from jobs.settings import Settings

MAX_LENGTH = 500  # characters of a value; tracebacks are not cut


def tidy(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape and cut values, because callers choose paths and names and must not send control codes to a terminal."""
    texts = "".join([each for each in event.values() if isinstance(each, str)])
    if len(texts) <= MAX_LENGTH and texts.isprintable() and "adm_" not in texts:  # most lines, in a third of the time
        return event
    return {name: tidied(name, value) if isinstance(value, str) else value for name, value in event.items()}


def tidied(name: str, text: str) -> str:
    kept = "\n" if name == "exception" else ""
    if "adm_" in text:
        text = KEY.sub(r"adm_\1_...", text)  # keys, which careless callers put into paths
    if len(text) > MAX_LENGTH and not kept:
        text = f"{text[:MAX_LENGTH]}..."
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode() for each in text
    )


def configure(settings: Settings, **labels: str) -> None:
    """Set up structlog, also for the logs of libraries; `labels` are on every line."""
    level = getattr(logging, settings.log_level.upper())
    pretty = settings.log_format == "pretty" or (settings.log_format == "auto" and sys.stderr.isatty())
    # not rich's tracebacks, structlog's default, because they show local variables: request bodies, addresses
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer = console if pretty else structlog.processors.JSONRenderer()
    shared: list[structlog.typing.Processor] = [
        lambda _, __, event: {**labels, **event},
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
