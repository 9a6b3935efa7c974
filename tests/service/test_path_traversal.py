"""No path, parameter or field of a request leads to a file that the service does not mean to show or remove.

Paths are written to a socket as they stand here: an HTTP client would tidy them up.
"""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from PIL import Image
from redis import Redis

from jobs.settings import Settings
from tests.service.conftest import ToyWorker, body
from tests.service.test_jobs import is_problem

WAYS_OUT = [
    "..",
    "../secret.png",
    "../../secret.png",
    "%2e%2e",
    "%2e%2e%2fsecret.png",
    "%2e%2e/%2e%2e/secret.png",
    "..%2f..%2fsecret.png",
    "..%5c..%5csecret.png",
    "%252e%252e%252fsecret.png",
    "%c0%ae%c0%ae%c0%afsecret.png",
    "%00",
    "secret.png%00.png",
]
PLACES = [
    ("GET", "/v1/jobs/{}"),
    ("DELETE", "/v1/jobs/{}"),
    ("POST", "/v1/jobs/{}/cancel"),
    ("GET", "/v1/jobs/{}/events"),
    ("GET", "/v1/jobs/{}/images/0"),
    ("GET", "/v1/jobs/{}/images.zip"),
    ("GET", "/v1/jobs/JOB/images/{}"),
    ("GET", "/v1/images.zip?image={}"),
    ("GET", "/v1/images.zip?image={}/0"),
    ("GET", "/v1/images.zip?image=JOB/{}"),
    ("GET", "/v1/files/{}"),
    ("GET", "/v1/files/{}/content"),
    ("DELETE", "/v1/files/{}"),
    ("GET", "/v1/models/{}"),
    ("GET", "/static/{}"),
    ("GET", "/docs/{}"),
]


@pytest.fixture
def secrets(service_settings: Settings) -> Iterator[dict[Path, bytes]]:
    """Pictures in every folder that a way out of the store or of the page's files may lead to."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    data = service_settings.data
    written = {folder / "secret.png": file.getvalue() for folder in (data.parent, data, data / "images")}
    for path, content in written.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    yield written
    for path in written:
        path.unlink(missing_ok=True)


def answer_to(client: httpx2.Client, method: str, path: str) -> tuple[int, bytes]:
    """The status and the bytes of the answer to a path sent as it is."""
    host, port = client.base_url.host, client.base_url.port or 0
    with socket.create_connection((host, port), timeout=60) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    return int(answer.split(b" ", 2)[1]), answer


@pytest.mark.parametrize(("method", "place"), PLACES)
def test_path_out_of_the_store_is_no_job_file_or_image(
    client: httpx2.Client, fleet: ToyWorker, redis: Redis, secrets: dict[Path, bytes], method: str, place: str
) -> None:
    fleet.release()
    job = client.post("/v1/jobs", json=body(upsample=False), headers={"Prefer": "wait=30"}).json()
    before = {name for name in redis.scan_iter("*") if b"secret" in name or b".." in name}
    absolute = [str(each) for each in secrets] + [quote(str(each), safe="") for each in secrets] + ["/etc/passwd"]
    for way in WAYS_OUT + absolute:
        status, answer = answer_to(client, method, place.replace("JOB", job["id"]).format(way))
        assert status in (404, 405, 422), (way, answer)
        assert not any(content in answer for content in secrets.values()), way
        assert b"root:" not in answer, way
    assert {path: path.read_bytes() for path in secrets} == secrets
    assert {name for name in redis.scan_iter("*") if b"secret" in name or b".." in name} == before == set()
    assert client.get(job["images"][0]["url"]).status_code == 200


def test_raw_nul_in_a_path_is_no_request(client: httpx2.Client) -> None:
    status, _ = answer_to(client, "GET", "/v1/jobs/a\0b")
    assert status == 400


@pytest.mark.parametrize(
    "way", ["../../secret.png", "..", "/etc/passwd", "file-\0", "..\\secret.png", "file-x/../../secret.png"]
)
def test_path_in_place_of_a_files_id_is_an_unknown_file(
    client: httpx2.Client, fleet: ToyWorker, secrets: dict[Path, bytes], way: str
) -> None:
    fields = {"kind": "reconstruct", "images": [way], "steps": 5}
    answer = client.post("/v1/jobs", content=json.dumps(fields), headers={"Content-Type": "application/json"})
    assert is_problem(answer, 422, "/images/0")
    assert {path: path.read_bytes() for path in secrets} == secrets
