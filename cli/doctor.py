"""`adm doctor`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobs.settings import Settings
    from vocabulary.doctor_finding import Finding

STYLES = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "fault": typer.colors.RED}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document, with the settings, for support")] = False,
) -> None:
    """Check the prerequisites of a start, one line per check; status 0 without faults. Starts nothing."""
    from jobs.contract.errors import SETTINGS_STATUS, SettingsError
    from jobs.settings import Settings
    from vocabulary.doctor_finding import Finding

    try:
        settings = Settings.load()
    except SettingsError as error:
        report([Finding("settings", "fault", str(error))], None, as_json=as_json)
        raise typer.Exit(SETTINGS_STATUS) from error
    findings = [Finding("settings", "ok", "all known and valid; adm config prints them"), *checks(settings)]
    report(findings, settings, as_json=as_json)
    if any(each.verdict == "fault" for each in findings):
        raise typer.Exit(1)


def checks(settings: "Settings") -> "Iterator[Finding]":
    """Run all checks, quick ones first; run a worker's checks only if torch is installed."""
    from importlib.util import find_spec

    from service.serving import OTHER_FILES, usable_files
    from standalone import host_checks
    from standalone.redis_checks import check_redis

    yield host_checks.check_python()
    yield host_checks.check_torch()
    yield host_checks.check_data(settings)
    yield host_checks.check_port(settings)
    yield host_checks.check_files(settings, usable_files(), OTHER_FILES)
    yield from check_redis(settings)
    yield host_checks.check_store(settings)
    if find_spec("torch"):
        from worker.checks import check_machine, check_weights

        yield from check_machine(settings)
        yield from check_weights(settings)


def report(findings: "list[Finding]", settings: "Settings | None", *, as_json: bool) -> None:
    """Print one line per finding, or all of them as one JSON document."""
    if as_json:
        values = {} if settings is None else {name: value for name, value, *_ in settings.sources()}
        typer.echo(json.dumps({"findings": [asdict(each) for each in findings], "settings": values}, indent=2))
        return
    for each in findings:
        verdict = typer.style(f"{each.verdict:8}", fg=STYLES[each.verdict])
        typer.echo(f"{verdict} {each.check}: {each.text}")
