"""Fetching from a real server: whole, resumed, without ranges, cut short, changed."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models.checkpoints.fetch import FetchError, fetch
from models.checkpoints.provenance import ChangedFileError, provenance_path, read_provenance, recorded_hash

CONTENT = bytes(range(256)) * 4000


class Source(ThreadingHTTPServer):
    """A file server that misbehaves on request; asked has the Range of every GET."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.ranges, self.conditions = CONTENT, '"one"', True, True
        self.sent_at_most: int | None = None  # of each answer; then the connection ends
        self.content_type = "application/octet-stream"
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.pt"


class Handler(BaseHTTPRequestHandler):
    server: Source

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Range"])
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        source, start, content = self.server, 0, self.server.content
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        if self.path != "/model.pt":
            self.send_error(404)
            return
        if wanted and source.ranges and (condition in (None, source.etag) or not source.conditions):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start < len(content) else 416)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(max(0, len(content) - start)))
        self.send_header("ETag", source.etag)
        self.send_header("Content-Type", source.content_type)
        self.end_headers()
        if body:
            self.wfile.write(content[start:][: source.sent_at_most])

    def log_message(self, format: str, *args: object) -> None:
        """Not on the screen."""


@pytest.fixture
def source() -> Iterator[Source]:
    server = Source()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "official" / "model.pt"


def begun(target: Path, content: bytes, etag: str | None = '"one"') -> Path:
    """The files of a killed run."""
    target.parent.mkdir()
    partial = target.with_name("model.pt.partial")
    partial.write_bytes(content)
    partial.with_name("model.pt.partial.json").write_text(json.dumps({"etag": etag}))
    return partial


def test_file_comes_whole_with_its_record_and_nothing_else(source: Source, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert fetch(source.url, target, lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    provenance = read_provenance(target)
    assert provenance is not None
    assert (provenance.size, provenance.url) == (len(CONTENT), source.url)
    assert provenance.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert sorted(each.name for each in target.parent.iterdir()) == ["model.pt", "model.pt.json"]
    assert (seen[0], seen[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))


def test_file_that_is_there_is_not_fetched_again(source: Source, target: Path) -> None:
    fetch(source.url, target)
    assert not fetch(source.url, target)
    assert len(source.asked) == 1


def test_killed_run_is_resumed_where_it_stopped(source: Source, target: Path) -> None:
    begun(target, CONTENT[:70_000])
    fetch(source.url, target)
    assert target.read_bytes() == CONTENT
    assert source.asked == ["bytes=70000-"]


def test_run_killed_after_the_last_byte_is_finished(source: Source, target: Path) -> None:
    begun(target, CONTENT)
    fetch(source.url, target)
    assert target.read_bytes() == CONTENT


def test_connection_that_ends_early_is_taken_up_again(source: Source, target: Path) -> None:
    source.sent_at_most = 300_000
    fetch(source.url, target)
    assert target.read_bytes() == CONTENT
    assert source.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_server_without_ranges_gives_it_from_the_start(source: Source, target: Path) -> None:
    source.ranges = False
    begun(target, b"x" * 70_000)
    fetch(source.url, target)
    assert target.read_bytes() == CONTENT


def test_server_that_never_gets_further_is_one_line_and_the_rest_is_kept(source: Source, target: Path) -> None:
    partial = begun(target, CONTENT[:1000])
    source.sent_at_most = 0
    with pytest.raises(FetchError, match=r"\Ahttp.*1,000 bytes are kept; the same command resumes\Z"):
        fetch(source.url, target)
    assert partial.read_bytes() == CONTENT[:1000]
    assert not target.exists()


def test_file_that_changed_at_the_source_half_way_is_not_glued(source: Source, target: Path) -> None:
    source.sent_at_most = 0
    begun(target, CONTENT[:1000], '"zero"')
    source.sent_at_most = None
    source.content = CONTENT[::-1]
    fetch(source.url, target)
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", ['W/"one"', None])
def test_beginning_that_no_strong_tag_vouches_for_is_not_built_on(
    source: Source, target: Path, etag: str | None
) -> None:
    source.etag = etag or ""
    begun(target, b"x" * 70_000, etag)
    fetch(source.url, target)
    assert target.read_bytes() == CONTENT
    assert source.asked == [None]


def test_server_that_ignores_the_condition_glues_nothing(source: Source, target: Path) -> None:
    source.conditions = False
    begun(target, b"x" * 70_000, '"zero"')
    fetch(source.url, target)
    assert target.read_bytes() == CONTENT
    assert source.asked == ["bytes=70000-", None]


def test_beginning_without_a_strong_tag_is_not_reported_as_kept(source: Source, target: Path) -> None:
    source.etag, source.sent_at_most = 'W/"one"', 1000
    with pytest.raises(FetchError) as refused:
        fetch(source.url, target)
    assert "are kept" not in str(refused.value)


def test_beginning_longer_than_the_file_is_dropped(source: Source, target: Path) -> None:
    begun(target, CONTENT + b"x")
    fetch(source.url, target)
    assert target.read_bytes() == CONTENT


def test_missing_file_is_one_line(source: Source, target: Path) -> None:
    with pytest.raises(FetchError, match=r"\Ahttp.*other\.pt: the server answers 404 Not Found\Z"):
        fetch(source.url.replace("model", "other"), target)


def test_no_server_is_one_line(target: Path) -> None:
    with pytest.raises(FetchError, match=r"\Ahttp://127\.0\.0\.1:9/model\.pt: .+\Z"):
        fetch("http://127.0.0.1:9/model.pt", target)


@pytest.mark.parametrize("changed", [CONTENT[:-1], CONTENT[:-1] + b"!"])
def test_file_that_changed_here_is_refused(source: Source, target: Path, changed: bytes) -> None:
    fetch(source.url, target)
    target.write_bytes(changed)
    with pytest.raises(ChangedFileError, match=r"\Amodel\.pt: has "):
        fetch(source.url, target)


def test_file_of_another_size_at_the_source_is_refused(source: Source, target: Path) -> None:
    fetch(source.url, target)
    source.content = CONTENT + b"more"
    with pytest.raises(ChangedFileError, match="bytes here and"):
        fetch(source.url, target)


def test_file_fetched_again_after_deletion_is_compared_with_its_provenance(source: Source, target: Path) -> None:
    fetch(source.url, target)
    target.unlink()
    source.content, source.etag = CONTENT[::-1], '"two"'
    with pytest.raises(ChangedFileError, match="is not the recorded one; if that is intended, delete"):
        fetch(source.url, target)
    assert not target.exists()


def test_record_spares_the_hash_until_the_file_is_touched(source: Source, target: Path) -> None:
    fetch(source.url, target)
    content = provenance_path(target).read_text()
    provenance_path(target).write_text(content.replace(hashlib.sha256(CONTENT).hexdigest(), "0" * 64))
    assert recorded_hash(target) == "0" * 64
    target.touch()
    with pytest.raises(ChangedFileError):
        recorded_hash(target)


def test_web_page_in_place_of_the_file_is_refused(source: Source, target: Path) -> None:
    source.content_type = "text/html; charset=utf-8"
    with pytest.raises(FetchError, match="sends a web page in place of the file"):
        fetch(source.url, target)
    assert list(target.parent.iterdir()) == []
