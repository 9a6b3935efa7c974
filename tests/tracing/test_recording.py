"""Spans are off unless the standard variables ask for them; what asks for the impossible is refused in one line."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tracing import recording
from tracing.propagation import current_traceparent, remote_context, trace_id_of
from tracing.recording import OFF, TracingError, check, is_asked_for, start

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("environment", "asked_for"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_SERVICE_NAME": "adm"}, False),
    ],
)
def test_spans_are_recorded_where_a_collector_is_named_and_nothing_turns_them_off(
    environment: Mapping[str, str], asked_for: bool
) -> None:
    assert is_asked_for(environment) is asked_for


def test_unsupported_protocol_is_refused_by_its_variable() -> None:
    with pytest.raises(TracingError, match=r"^OTEL_EXPORTER_OTLP_PROTOCOL: grpc is not supported; use http/protobuf"):
        check(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    check({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})  # nobody asks for spans


def test_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # the extra is installed here, so a package that is not stands for it
    monkeypatch.setattr(recording, "SDK", ("opentelemetry.sdk", "no_such_package.http"))
    with pytest.raises(TracingError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: .*pip install 'adm-serve\[otel\]'"):
        check(ENDPOINT)


@pytest.mark.slow
def test_without_variables_nothing_is_recorded_and_no_exporter_is_even_imported() -> None:
    code = (
        "import sys, threading; import worker.main, service.serving; from tracing.recording import OFF, start;"
        "threads = threading.active_count(); assert start('worker') is OFF; assert threading.active_count() == threads;"
        # redis-py imports the SDK where it is installed, so the check looks for the exporter
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.exporter')]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False, env={})
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", ["service", "worker"])
def test_program_that_cannot_send_what_is_asked_for_ends_with_one_line(program: str, tmp_path: Path) -> None:
    environment = ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "ADM_DATA": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "cli", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"adm {program}: OTEL_EXPORTER_OTLP_PROTOCOL: grpc is not supported")


def test_start_without_variables_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in recording.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert start("worker") is OFF


@pytest.mark.parametrize("given", ["", "x", TRACEPARENT[:-1], TRACEPARENT.upper(), f"00-{0:032}-{0:016}-01"])
def test_what_is_no_traceparent_begins_no_trace(given: str) -> None:
    assert not remote_context(given)


def test_trace_id_is_that_of_the_traceparent_and_there_is_none_outside_of_a_trace() -> None:
    assert trace_id_of(TRACEPARENT) == "0af7651916cd43dd8448eb211c80319c"
    assert trace_id_of("garbage") == ""
    assert current_traceparent() == ""
