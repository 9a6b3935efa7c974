import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.settings import Settings
from standalone.host_checks import check_data, check_files, check_port, check_store
from tests.store_server import BUCKET


def test_store_in_a_folder_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    found = check_store(Settings(data=tmp_path))
    assert found.verdict == "ok"
    assert "wrote, read and deleted" in found.text
    assert list((tmp_path / "images").iterdir()) == []


def test_store_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    found = check_store(Settings(data=tmp_path / "data"))
    assert found.verdict == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("store", ["file/images", "file", "/proc/self"], ids=["below a file", "a file", "read-only"])
def test_store_that_cannot_be_written_is_a_fault_that_names_the_setting(tmp_path: Path, store: str) -> None:
    (tmp_path / "file").touch()
    found = check_store(Settings(data=tmp_path, store=str(tmp_path / store)))
    assert found.verdict == "fault"
    assert "ADM_STORE" in found.text
    assert "\n" not in found.text


def test_bucket_is_written_read_and_left_empty(bucket: str) -> None:
    assert check_store(Settings(store=bucket)).verdict == "ok"


def test_bucket_that_is_not_there_is_a_fault(bucket: str) -> None:
    found = check_store(Settings(store=bucket.replace(BUCKET, "no-such-bucket")))
    assert found.verdict == "fault"
    assert "AWS_" in found.text


def test_data_folder_below_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = check_data(Settings(data=tmp_path / "file/data"))
    assert found.verdict == "fault"
    assert "ADM_DATA" in found.text


def test_data_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    assert check_data(Settings(data=tmp_path / "a/b")).verdict != "fault"
    assert list(tmp_path.iterdir()) == []


def test_free_port_is_in_order(tmp_path: Path) -> None:
    assert check_port(Settings(data=tmp_path, port=0)).verdict == "ok"


def test_port_of_a_program_that_is_not_ours_is_a_fault(tmp_path: Path) -> None:
    with answering(b"hello") as port:
        found = check_port(Settings(data=tmp_path, port=port))
    assert found.verdict == "fault"
    assert "ADM_PORT" in found.text


def test_port_of_our_own_service_is_in_order_and_of_another_stacks_a_warning(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with answering(b'{"status":"ok"}') as port:
        settings = Settings(data=tmp_path, port=port)
        anothers = check_port(settings)
        (tmp_path / "run/service.pid").write_text(f"{os.getpid()}\n")
        ours = check_port(settings)
    assert (ours.verdict, anothers.verdict) == ("ok", "warning")


def test_more_connections_than_files_may_be_open_is_a_warning_that_says_how_many_there_will_be() -> None:
    settings = Settings(max_connections=4096)
    enough, few = check_files(settings, usable=4224, others=128), check_files(settings, usable=1024, others=128)
    assert (enough.verdict, few.verdict) == ("ok", "warning")
    assert "the service takes 896 connections" in few.text
    assert "ADM_MAX_CONNECTIONS" in few.text


@contextmanager
def answering(body: bytes) -> Iterator[int]:
    """The port of a real HTTP server that gives every GET the same body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
