import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import psutil
import pytest
from PIL import Image
from redis import Redis

from jobs.contract.caller import Role
from jobs.queue.announcements import announce_pipelines
from jobs.redis import keys
from jobs.settings import Settings
from tests.jobs.samples import DEMO, png
from tests.jobs.test_file_counts import pass_time
from tests.pictures.hostile import decoders, slow_jpeg, wide_webp
from tests.service.conftest import MakeKey, running_service
from tests.service.test_jobs import is_problem
from tests.waiting import eventually

PNG = png(7)
ID = "file-" + hashlib.sha256(PNG).hexdigest()[:32]


@pytest.fixture
def uploaded(client: httpx2.Client) -> dict[str, Any]:
    response = client.post("/v1/files", content=PNG)
    assert response.status_code == 201
    found: dict[str, Any] = response.json()
    return found


@pytest.fixture
def stored(uploaded: dict[str, Any], redis: Redis, service_settings: Settings) -> Path:
    """The file of the uploaded picture in the store."""
    record = json.loads(cast(bytes, redis.get(keys.file(ID))))
    return service_settings.data / "images" / str(record["key"])


def test_raw_bytes_and_multipart_give_the_same_file(client: httpx2.Client, uploaded: dict[str, Any]) -> None:
    response = client.post("/v1/files", files={"file": ("anything.exe", PNG, "text/plain")})
    assert (response.status_code, response.headers["location"]) == (201, f"/v1/files/{ID}")
    again = response.json()
    assert again.pop("expires_at") >= uploaded["expires_at"] - 1
    assert again == {
        "id": ID,
        "object": "file",
        "sha256": hashlib.sha256(PNG).hexdigest(),
        "width": 2,
        "height": 2,
        "bytes": len(PNG),
    }


def test_file_is_kept_as_long_as_jobs_are(
    client: httpx2.Client, uploaded: dict[str, Any], redis: Redis, service_settings: Settings
) -> None:
    assert uploaded["expires_at"] - time.time() == pytest.approx(service_settings.retention_seconds, abs=60)
    redis.expire(keys.file(ID), 100)
    assert client.get(f"/v1/files/{ID}").json()["expires_at"] == pytest.approx(time.time() + 100, abs=60)
    client.post("/v1/files", content=PNG)
    assert client.get(f"/v1/files/{ID}").json()["expires_at"] == pytest.approx(uploaded["expires_at"], abs=20)


def test_content_is_the_normalised_png(client: httpx2.Client, uploaded: dict[str, Any]) -> None:
    response = client.get(f"/v1/files/{ID}/content")
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (2, 2), (7, 7, 7))
    etag = response.headers["etag"]
    assert etag == f'"{hashlib.sha256(response.content).hexdigest()}"'
    assert client.get(f"/v1/files/{ID}/content", headers={"If-None-Match": etag}).status_code == 304


def test_removed_file_is_gone_and_may_be_uploaded_again(
    client: httpx2.Client, uploaded: dict[str, Any], stored: Path
) -> None:
    assert client.delete(f"/v1/files/{ID}").status_code == 204
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert is_problem(client.request(method, f"/v1/files/{ID}{path}"), 404)
    assert not stored.exists()
    assert client.post("/v1/files", content=PNG).json()["id"] == ID


def test_file_whose_object_was_lost_is_stored_again(
    client: httpx2.Client, uploaded: dict[str, Any], stored: Path
) -> None:
    stored.unlink()
    assert is_problem(client.get(f"/v1/files/{ID}/content"), 404)
    client.post("/v1/files", content=PNG)
    assert client.get(f"/v1/files/{ID}/content").status_code == 200


@pytest.mark.parametrize("content", [b"", b"not a picture", PNG[:40]])
def test_what_is_no_picture_is_422_at_file(client: httpx2.Client, content: bytes) -> None:
    assert is_problem(client.post("/v1/files", content=content), 422, "/file")
    assert is_problem(client.post("/v1/files", files={"file": content}), 422, "/file")


def test_form_without_a_file_is_422(client: httpx2.Client) -> None:
    assert is_problem(client.post("/v1/files", files={"picture": PNG}), 422, "/file", "/picture")
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    as_text = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--x--\r\n'
    assert is_problem(client.post("/v1/files", content=as_text, headers=head), 422, "/file")


def test_form_with_two_files_of_its_name_is_422(client: httpx2.Client) -> None:
    """This holds even if the first is text, because the service must not guess which of them is meant."""
    twice = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="file"%s\r\n\r\n%s\r\n' % part
        for part in ((b"", b"text"), (b'; filename="a.png"', PNG))
    )
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/files", content=twice + b"--x--\r\n", headers=head)
    assert is_problem(answer, 422, "/file")
    assert "given twice" in answer.text


def test_form_that_is_none_is_4xx(client: httpx2.Client) -> None:
    def post(kind: str) -> httpx2.Response:
        return client.post("/v1/files", content=b"--x\r\nnonsense", headers={"Content-Type": kind})

    assert is_problem(post("multipart/form-data"), 400)
    assert is_problem(post("multipart/form-data; boundary=x"), 422, "/file")


@pytest.mark.process
def test_file_over_the_limit_is_413_however_it_comes(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"max_upload_bytes": len(PNG)})
    with running_service(limited) as (address, _, _), httpx2.Client(base_url=address, timeout=60) as client:
        assert client.post("/v1/files", content=PNG).status_code == 201
        assert client.post("/v1/files", files={"file": PNG}).status_code == 201
        for given in ({"content": PNG + b"x"}, {"content": iter([PNG, b"x"])}, {"files": {"file": PNG + b"x"}}):
            assert is_problem(client.post("/v1/files", **given), 413)
        assert is_problem(client.post("/v1/files", content=bytes(70_000)), 413)


def test_large_upload_passes_where_other_bodies_may_not(client: httpx2.Client) -> None:
    noise = Image.frombytes("RGB", (256, 256), os.urandom(256 * 256 * 3))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    assert len(buffer.getvalue()) > 65_536
    assert client.post("/v1/files", content=buffer.getvalue()).status_code == 201
    assert is_problem(client.post("/v1/jobs", content=buffer.getvalue()), 413)


@pytest.mark.process
def test_store_that_does_not_take_a_picture_is_503(redis: Redis, settings: Settings) -> None:
    folder = settings.data / "images" / "files"
    folder.parent.mkdir()
    folder.write_text("in the way")
    with running_service(settings) as (address, _, _), httpx2.Client(base_url=address, timeout=60) as client:
        assert is_problem(client.post("/v1/files", content=PNG), 503)
        folder.unlink()
        assert client.post("/v1/files", content=PNG).status_code == 201


def announce_with_base(redis: Redis, size: int) -> None:
    """Announce a pipeline whose base makes images of this size."""
    base = DEMO.stages[0].model_copy(update={"image_size": size})
    with redis.pipeline() as pipe:
        announce_pipelines(pipe, [DEMO.model_copy(update={"stages": (base, *DEMO.stages[1:])})])
        pipe.execute()


def test_picture_is_kept_no_larger_than_pipelines_can_use_and_kept_again_for_a_larger_one(
    client: httpx2.Client, redis: Redis
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2400, 2200), "teal").save(buffer, "PNG")

    def size_kept() -> tuple[int, int]:
        posted = client.post("/v1/files", content=buffer.getvalue()).json()
        assert (posted["width"], posted["height"]) == (2400, 2200), "as it was uploaded"
        content = client.get(f"/v1/files/{posted['id']}/content").content
        return Image.open(io.BytesIO(content)).size

    assert size_kept() == (600, 550), "512 is the most that a published model makes"
    announce_with_base(redis, 1024)
    eventually(lambda: size_kept() == (1200, 1100), "a larger pipeline is known")
    redis.delete(keys.PIPELINES)
    assert size_kept() == (1200, 1100), "it is not made smaller again"


def test_job_whose_pipeline_needs_more_than_was_kept_of_a_picture_is_refused(
    client: httpx2.Client, redis: Redis
) -> None:
    """Its bytes would depend on which pipelines were loaded when the picture was uploaded."""
    announce_with_base(redis, DEMO.stages[0].image_size)
    buffer = io.BytesIO()
    Image.new("RGB", (2400, 2200), "teal").save(buffer, "PNG")
    file_id = client.post("/v1/files", content=buffer.getvalue()).json()["id"]
    body = {"kind": "reconstruct", "images": [file_id], "steps": 2}
    eventually(lambda: client.post("/v1/jobs", json=body).status_code == 202, "it was reduced for such a pipeline")
    announce_with_base(redis, 1024)
    eventually(lambda: client.post("/v1/jobs", json=body).status_code == 422, "a larger pipeline is known")
    (error,) = client.post("/v1/jobs", json=body).json()["errors"]
    assert error["pointer"] == "/images/0"
    assert "needs 1024 px: upload it again" in error["detail"]
    client.post("/v1/files", content=buffer.getvalue())
    assert client.post("/v1/jobs", json=body).status_code == 202


@contextmanager
def decoding_slowly(
    settings: Settings, cpu_seconds: int
) -> Iterator[tuple[httpx2.Client, psutil.Process, Future[httpx2.Response]]]:
    """A service with this limit while it decodes a picture that takes far longer; the block ends with the answer."""
    limited = settings.model_copy(update={"decode_cpu_seconds": cpu_seconds})
    with (
        running_service(limited) as (address, process, _),
        httpx2.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(1) as other,
    ):
        upload = other.submit(client.post, "/v1/files", content=slow_jpeg(40_000))
        service = psutil.Process(process.pid)
        eventually(lambda: bool(decoders(service)), "it is being decoded")
        yield client, service, upload


@pytest.mark.process
@pytest.mark.slow
def test_hostile_picture_delays_nobody_and_ends_at_its_limit(redis: Redis, settings: Settings) -> None:
    with decoding_slowly(settings, 2) as (client, service, hostile):
        assert client.post("/v1/files", content=PNG).status_code == 201
        assert not hostile.done()
        assert is_problem(hostile.result(), 422, "/file")
        assert "(ADM_DECODE_CPU_SECONDS)" in hostile.result().json()["detail"]
        assert decoders(service) == []


@pytest.mark.process
@pytest.mark.slow
def test_picture_that_a_busy_machine_has_no_time_to_decode_is_503(redis: Redis, settings: Settings) -> None:
    """The picture may be an honest one: its process got less than a sixth of a core. So the client should repeat it."""
    with decoding_slowly(settings, 1) as (_, service, upload):
        decoders(service)[0].suspend()
        assert is_problem(upload.result(), 503)
        assert int(upload.result().headers["retry-after"]) > 0
        assert decoders(service) == []


@pytest.mark.process
@pytest.mark.slow
def test_caller_that_hangs_up_ends_the_decoding(redis: Redis, settings: Settings) -> None:
    patient = settings.model_copy(update={"decode_cpu_seconds": 60})
    with running_service(patient) as (address, process, lines):
        host, port = address.removeprefix("http://").split(":")
        data = slow_jpeg(40_000)
        head = f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as caller:
            caller.sendall(head.encode() + data)
            eventually(lambda: bool(decoders(psutil.Process(process.pid))), "it is being decoded")
        eventually(lambda: not decoders(psutil.Process(process.pid)), "nobody waits for it")
    assert not [line for line in lines if "Traceback" in line or '"failed"' in line]


@pytest.mark.process
@pytest.mark.slow
def test_large_pictures_leave_the_services_memory_as_it_was(redis: Redis, settings: Settings) -> None:
    roomy = settings.model_copy(update={"max_upload_pixels": 50_000_000, "decode_memory_bytes": 1 << 30})
    with running_service(roomy) as (address, process, _), httpx2.Client(base_url=address, timeout=60) as client:
        assert client.post("/v1/files", content=PNG).status_code == 201
        before = psutil.Process(process.pid).memory_info().rss
        posted = client.post("/v1/files", content=wide_webp())
        assert posted.status_code == 201
        assert psutil.Process(process.pid).memory_info().rss < before + (32 << 20)
        content = client.get(f"{posted.headers['location']}/content").content
        assert max(Image.open(io.BytesIO(content)).size) <= 2048, "ends that no pipeline sees are not stored"


@pytest.mark.process
def test_pictures_are_kept_within_a_quota(redis: Redis, settings: Settings) -> None:
    small = settings.model_copy(update={"max_files_bytes": 2 * 65_536})
    with running_service(small) as (address, _, _), httpx2.Client(base_url=address, timeout=60) as client:
        first, second = (client.post("/v1/files", content=png(grey)).json()["id"] for grey in (1, 2))
        refused = client.post("/v1/files", content=png(3))
        assert is_problem(refused, 507)
        assert "ADM_MAX_FILES_BYTES" in refused.json()["detail"]
        assert is_problem(client.post("/v1/files", content=b"no picture"), 507), "it is refused before it is decoded"
        assert client.post("/v1/files", content=png(1)).status_code == 201, "it is kept already"
        client.delete(f"/v1/files/{first}")
        assert client.post("/v1/files", content=png(3)).status_code == 201
        pass_time(redis, second)
        assert client.post("/v1/files", content=png(4)).status_code == 201


@pytest.mark.process
@pytest.mark.slow
def test_pictures_of_one_caller_are_kept_within_a_quota_of_its_own(
    redis: Redis, settings: Settings, make_key: MakeKey
) -> None:
    with (
        running_service(settings, ADM_QUOTA_FILES_BYTES=str(2 * 65_536)) as (address, _, _),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        ann, bob, root = make_key("ann"), make_key("bob"), make_key("root", Role.OPERATOR)
        first, second = (client.post("/v1/files", content=png(grey), headers=ann).json()["id"] for grey in (1, 2))
        refused = client.post("/v1/files", content=png(3), headers=ann)
        assert is_problem(refused, 507)
        assert "ADM_QUOTA_FILES_BYTES" in refused.json()["detail"]
        assert client.post("/v1/files", content=png(1), headers=ann).status_code == 201, "it is kept already"
        for grey in range(3):
            assert client.post("/v1/files", content=png(grey), headers=root).status_code == 201
        assert client.post("/v1/files", content=png(1), headers=bob).status_code == 201
        client.delete(f"/v1/files/{first}", headers=ann)
        assert client.post("/v1/files", content=png(3), headers=ann).status_code == 201
        pass_time(redis, second)
        assert client.post("/v1/files", content=png(4), headers=ann).status_code == 201
        assert is_problem(client.post("/v1/files", content=png(5), headers=ann), 507)


def test_fields_beside_a_picture_are_refused_before_they_are_kept_in_memory(client: httpx2.Client) -> None:
    """The parser keeps a file's part on disk, and a field's in memory."""
    response = client.post("/v1/files", data={"more": "x" * 100_000}, files={"file": ("a.png", png())})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"


def test_unknown_field_beside_a_picture_is_named(client: httpx2.Client) -> None:
    response = client.post("/v1/files", data={"pur/pose": "edit"}, files={"file": ("a.png", png())})
    assert is_problem(response, 422, "/pur~1pose")


def test_form_of_a_charset_that_nobody_knows_is_400(client: httpx2.Client) -> None:
    content = b'--BB\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--BB--\r\n'
    head = {"Content-Type": "multipart/form-data; boundary=BB; charset=undefined"}
    for path in ("/v1/files", "/v1/requests/from-image", "/v1/images/edits", "/v1/images/variations"):
        assert client.post(path, content=content, headers=head).status_code == 400, path
