"""Downloads a checkpoint: resumes a partial download, records a complete file, refuses a changed one."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx2

from models.checkpoints.provenance import ChangedFileError, hash_file, read_provenance, recorded_hash, write_provenance

ATTEMPTS = 5  # connections without any progress before a fetch fails
TIMEOUT_SECONDS = 30.0
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if the server states them


class FetchError(Exception):
    """A file could not be fetched from `url`; `reason` is the cause and what is kept."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url, self.reason = url, reason


def fetch(url: str, target: Path, progress: Progress = lambda done, total: None) -> bool:
    """Fetch a file; NAME.partial beside it has an incomplete download. Returns False if the file existed already.

    A later call resumes if the server supports ranges and a strong entity tag shows that its file is the same. With a
    weak tag, which two files may share, or without one, it starts over.
    Raises: FetchError; ChangedFileError if the local or the remote file is not the recorded one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    provenance = read_provenance(target)
    with httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True) as client:
        if target.exists():
            recorded_hash(target)  # raises if the local file has changed
            size = _remote_size(client, url)
            if size is not None and size != target.stat().st_size:
                raise ChangedFileError(target.name, f"has {target.stat().st_size:,} bytes here and {size:,} at {url}")
            if provenance is None:
                write_provenance(target, hash_file(target), url)
            return False
        partial = target.with_name(target.name + ".partial")
        _fetch_all(client, url, partial, progress)
    sha256 = hash_file(partial)
    if provenance is not None and provenance.sha256 != sha256:
        raise ChangedFileError(
            target.name, f"the file at {url} is not the recorded one; if that is intended, delete {target.name}.json"
        )
    partial.replace(target)
    _source_path(partial).unlink(missing_ok=True)
    write_provenance(target, sha256, url)
    return True


def _remote_size(client: httpx2.Client, url: str) -> int | None:
    try:
        response = client.head(url)
    except httpx2.HTTPError as error:
        raise FetchError(url, str(error) or type(error).__name__) from error
    length = response.headers.get("content-length", "")
    return int(length) if response.is_success and length.isdigit() else None


def _fetch_all(client: httpx2.Client, url: str, partial: Path, progress: Progress) -> None:
    failures = 0
    while True:
        before = _length(partial)
        try:
            if _fetch_rest(client, url, partial, progress):
                return
            reason = "the connection ended early"
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
        failures = 0 if _length(partial) > before else failures + 1
        if failures == ATTEMPTS or (failures and not partial.exists()):
            resumable = _length(partial) and _strong_tag(partial)
            kept = f"; {_length(partial):,} bytes are kept; the same command resumes" if resumable else ""
            raise FetchError(url, f"{reason}{kept}")


def _fetch_rest(client: httpx2.Client, url: str, partial: Path, progress: Progress) -> bool:
    """Download over one connection; return whether the file is complete."""
    have, tag = _length(partial), _strong_tag(partial)
    headers = {"Accept-Encoding": "identity"}
    if have and tag:  # with If-Range, a changed file is sent whole and not appended to this part
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
            total = response.headers.get("content-range", "").rpartition("/")[2]
            if total == str(have):
                return True  # complete: a former call was killed before it recorded the file
            partial.write_bytes(b"")
            return False
        resumed = response.status_code == httpx2.codes.PARTIAL_CONTENT
        if resumed and response.headers.get("etag") != tag:  # the server ignored If-Range
            partial.write_bytes(b"")
            return False
        if not response.is_success:
            raise FetchError(url, f"the server answers {response.status_code} {response.reason_phrase}")
        if response.headers.get("content-type", "").startswith("text/html"):
            raise FetchError(url, "the server sends a web page in place of the file; give the file's own address")
        if not resumed:  # a server without ranges, or with another file, sends all of it
            have = 0
            # before the tag is written, so that a tag never belongs to another file's part
            partial.unlink(missing_ok=True)
        length = response.headers.get("content-length")
        total_bytes = None if length is None else have + int(length)
        _source_path(partial).write_text(json.dumps({"etag": response.headers.get("etag")}))
        with partial.open("ab" if resumed else "wb") as file:
            progress(have, total_bytes)
            for chunk in response.iter_bytes():  # chunks of any size, so that all bytes before an interruption are kept
                file.write(chunk)
                have += len(chunk)
                progress(have, total_bytes)
    return total_bytes is None or have == total_bytes


def _source_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _strong_tag(partial: Path) -> str | None:
    """The strong entity tag of a partial download; None for a weak one, which does not guarantee the same bytes."""
    try:
        etag = json.loads(_source_path(partial).read_text()).get("etag")
    except (OSError, ValueError):
        return None
    return etag if etag and not etag.startswith("W/") else None


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
