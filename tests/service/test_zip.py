"""All images of a job at once, and the request behind one of them."""

import io
import json
import random
import time
from zipfile import ZIP_STORED, ZipFile

import httpx2
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from redis import Redis

from jobs.callers.keyring import IN_FORCE_SECONDS, KeyStore
from tests.jobs.samples import png
from tests.service.conftest import MakeKey, ToyWorker, body
from tests.service.test_jobs import is_problem

FACTS = {
    "version": 3, "kind": "generate", "images": [], "seeds": None, "strength": None, "frames": None, "model": "demo",
    "class_label": 4, "class_weights": None, "guidance_scale": 2.5, "guidance_schedule": "constant",
    "guidance_interval": [0, 1000], "steps": 25, "sampler": "ddim", "eta": 0.0, "time_grid": "official",
    "thresholding": "clip", "eps_scale": 1.0, "seed": 2**62 + 1, "image_index": 3, "upsample": False, "stages": [],
    "numerics": "fingerprint",
}  # fmt: skip


def picture(text: str | None, keyword: str = "adm-serve") -> bytes:
    info, file = PngInfo(), io.BytesIO()
    if text is not None:
        info.add_text(keyword, text)
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def test_zip_contains_every_image_unchanged(client: httpx2.Client, worker: ToyWorker) -> None:
    job = client.post("/v1/jobs", json=body(n=64), headers={"Prefer": "wait=30"}).json()
    answer = client.get(f"/v1/jobs/{job['id']}/images.zip")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{job["id"]}.zip"'
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    with ZipFile(io.BytesIO(answer.content)) as zipped:
        assert zipped.testzip() is None
        assert {each.compress_type for each in zipped.infolist()} == {ZIP_STORED}
        found = {each: zipped.read(each) for each in zipped.namelist()}
    assert found == {f"{index:02d}.png": png(index) for index in range(64)}


def test_zip_is_named_by_its_content_and_not_sent_twice(client: httpx2.Client, worker: ToyWorker) -> None:
    job = client.post("/v1/jobs", json=body(n=2), headers={"Prefer": "wait=30"}).json()
    path = f"/v1/jobs/{job['id']}/images.zip"
    first, second = client.get(path), client.get(path)
    assert (first.content, first.headers["ETag"]) == (second.content, second.headers["ETag"])
    again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_there_is_no_zip_before_the_end_nor_of_what_failed_nor_without_images(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    job_id = client.post("/v1/jobs", json=body()).json()["id"]
    assert is_problem(client.get(f"/v1/jobs/{job_id}/images.zip"), 409)
    client.post(f"/v1/jobs/{job_id}/cancel")
    client.get(f"/v1/jobs/{job_id}?wait=30")
    assert is_problem(client.get(f"/v1/jobs/{job_id}/images.zip"), 409)
    fleet.release()
    file_id = client.post("/v1/files", content=png(7)).json()["id"]
    score = {"kind": "score", "images": [file_id]}
    scored = client.post("/v1/jobs", json=score, headers={"Prefer": "wait=30"}).json()
    assert is_problem(client.get(f"/v1/jobs/{scored['id']}/images.zip"), 404)
    assert is_problem(client.get("/v1/jobs/none/images.zip"), 404)


def test_request_of_a_picture_of_ours_can_be_posted(client: httpx2.Client, worker: ToyWorker) -> None:
    for sent in ({"content": picture(json.dumps(FACTS))}, {"files": {"file": picture(json.dumps(FACTS))}}):
        request = client.post("/v1/requests/from-image", **sent).raise_for_status().json()
        asked = {"class_label": 4, "seed": 2**62 + 1, "first_index": 3, "steps": 25, "upsample": False, "model": "demo"}
        assert {name: request[name] for name in asked} == asked
        assert client.post("/v1/jobs", json=request).status_code == 202


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        png(1),
        picture(None),
        picture("a cat\nSteps: 20, Sampler: Euler a", "parameters"),
        picture("{"),
        picture("[]"),
        picture("{}"),
        picture("[" * 20_000),
        picture(json.dumps(FACTS | {"kind": "paint"})),
        picture(json.dumps(FACTS | {"steps": "many"})),
        picture(json.dumps(FACTS | {"image_index": None})),
        picture(json.dumps(FACTS | {"model": "x" * 100_000})),
    ],
)
def test_other_pictures_are_refused_by_name(client: httpx2.Client, content: bytes) -> None:
    answer = client.post("/v1/requests/from-image", content=content)
    assert is_problem(answer, 422, "/file")


def test_zip_of_chosen_images_contains_those_alone_in_folders_of_their_jobs(
    client: httpx2.Client, worker: ToyWorker
) -> None:
    jobs = [client.post("/v1/jobs", json=body(n=3), headers={"Prefer": "wait=30"}).json()["id"] for _ in range(2)]
    chosen = [f"{jobs[0]}/2", f"{jobs[1]}/0", f"{jobs[1]}/00"]
    answer = client.get("/v1/images.zip", params={"image": chosen})
    assert answer.headers["Content-Disposition"] == 'attachment; filename="images.zip"'
    with ZipFile(io.BytesIO(answer.content)) as zipped:
        found = {each: zipped.read(each) for each in zipped.namelist()}
    assert found == {f"{jobs[0]}/02.png": png(2), f"{jobs[1]}/00.png": png(0)}
    again = client.get("/v1/images.zip", params={"image": chosen}, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert is_problem(client.get("/v1/images.zip", params={"image": [chosen[0], f"{jobs[0]}/3"]}), 404)
    many = [f"{jobs[0]}/{each}" for each in range(513)]
    for wrong, pointer in (([], "/image"), (["../0"], "/image/0"), (many, "/image")):
        assert is_problem(client.get("/v1/images.zip", params={"image": wrong}), 422, pointer)


def test_zip_of_chosen_images_never_contains_anothers(
    client: httpx2.Client, worker: ToyWorker, make_key: MakeKey
) -> None:
    ann, bob = make_key("ann"), make_key("bob")
    theirs = client.post("/v1/jobs", json=body(), headers=ann | {"Prefer": "wait=30"}).json()["id"]
    own = client.post("/v1/jobs", json=body(), headers=bob | {"Prefer": "wait=30"}).json()["id"]
    answer = client.get("/v1/images.zip", params={"image": [f"{own}/0", f"{theirs}/0"]}, headers=bob)
    assert is_problem(answer, 404)
    assert client.get("/v1/images.zip", params={"image": f"{own}/0"}, headers=bob).status_code == 200


def test_zip_breaks_off_when_its_callers_key_is_revoked(
    client: httpx2.Client, worker: ToyWorker, redis: Redis, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive has more bytes than the connection buffers, so the service still reads images when that happens."""
    noise = Image.frombytes("RGB", (1024, 1024), random.Random(7).randbytes(3 << 20))
    file = io.BytesIO()
    noise.save(file, "PNG", compress_level=0)
    monkeypatch.setattr("tests.service.conftest.png", lambda index: file.getvalue())
    headers = make_key("ann")
    job = client.post("/v1/jobs", json=body(n=16), headers=headers).json()
    while job["status"] != "completed":  # 50 MB are stored, durably
        job = client.get(f"/v1/jobs/{job['id']}?wait=30", headers=headers).json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/images.zip", headers=headers) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_raw()
        received = [next(pieces)]
        KeyStore(redis).revoke("ann")
        time.sleep(IN_FORCE_SECONDS)
        with pytest.raises(httpx2.RemoteProtocolError):
            received.extend(pieces)
    assert sum(map(len, received)) < 16 * len(file.getvalue())
