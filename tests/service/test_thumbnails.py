"""Images in other formats and sizes: made from the PNG, with their own type, and only for those who may see them."""

import io
import re
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from PIL import Image
from redis import Redis

from jobs.settings import Settings
from pictures.decoding import PictureError
from pictures.thumbnails import Form, formed
from service.accept_header import preferred_format
from tests.jobs.samples import png
from tests.service.conftest import MakeKey, ToyWorker, body
from tests.service.test_jobs import is_problem

BROWSERS_IMAGE = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
BROWSERS_LINK = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"


def large(size: int) -> bytes:
    """A PNG whose pixels differ."""
    out = io.BytesIO()
    Image.radial_gradient("L").resize((size, size)).convert("RGB").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def url(client: httpx2.Client, worker: ToyWorker, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a finished image of 256 px."""
    monkeypatch.setattr("tests.service.conftest.png", lambda index: large(256))
    job = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()
    return str(job["images"][0]["url"])


def opened(answer: httpx2.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("image/webp", "webp"),
        ("image/webp, image/jpeg", "webp"),
        ("image/jpeg", "jpeg"),
        ("image/webp;q=0.5, image/jpeg", "jpeg"),
        ("IMAGE/WEBP; Q=0.5", "webp"),
        ("image/png;q=0.5, image/webp", "webp"),
        ("image/png, image/webp", "png"),
        ("image/webp;q=0", "png"),
        ("image/webp;q=0.0000", "png"),  # malformed: as if the range were not there
        ("image/webp;q=-1", "png"),
        ("image/webp;q=2, image/jpeg;q=0.1", "jpeg"),
        ("image/webp;q=", "png"),
        ("*/webp", "png"),
        ("image/*", "png"),
        ("*/*", "png"),
        (BROWSERS_IMAGE, "png"),
        (BROWSERS_LINK, "png"),
        ("image/png;q=0.1, image/jpeg;q=0.9, */*", "jpeg"),
        ("application/json", "png"),
        ("image/webpx", "png"),
        ("", "png"),
    ],
)
def test_other_format_is_sent_only_if_it_is_preferred_by_name(accept: str, name: str) -> None:
    assert preferred_format([accept]) == name


def test_lines_of_the_header_count_together() -> None:
    assert preferred_format(["image/png;q=0.1", "image/jpeg"]) == "jpeg"


@pytest.mark.parametrize("name", ["webp", "jpeg"])
def test_image_is_sent_in_the_format_that_is_asked_for(client: httpx2.Client, url: str, name: str) -> None:
    answer = client.get(url, headers={"Accept": f"image/{name}"})
    assert answer.headers["content-type"] == f"image/{name}"
    picture = opened(answer)
    assert (picture.format, picture.size) == (name.upper(), (256, 256))


def test_size_makes_a_thumbnail_and_never_enlarges(client: httpx2.Client, url: str) -> None:
    whole = client.get(url)
    small = client.get(url, params={"size": 64})
    assert (opened(small).format, opened(small).size) == ("PNG", (64, 64))
    assert len(small.content) < len(whole.content)
    same = client.get(url, params={"size": 1024})
    assert (same.content, same.headers["etag"]) == (whole.content, whole.headers["etag"])
    assert opened(client.get(url, params={"size": 64}, headers={"Accept": "image/webp"})).size == (64, 64)


@pytest.mark.parametrize("size", ["0", "15", "1025", "-1", "64x64", "1e2"])
def test_size_out_of_bounds_is_refused(client: httpx2.Client, url: str, size: str) -> None:
    assert is_problem(client.get(url, params={"size": size}), 422, "/size")


def test_each_form_has_its_own_weak_etag_and_all_vary_by_accept(client: httpx2.Client, url: str) -> None:
    forms: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({}, {}), ({"size": 64}, {}), ({"size": 65}, {}), ({}, {"Accept": "image/webp"}),
        ({}, {"Accept": "image/jpeg"}), ({"size": 64}, {"Accept": "image/webp"}),
    ]  # fmt: skip
    answers = [client.get(url, params=params, headers=headers) for params, headers in forms]
    etags = [each.headers["etag"] for each in answers]
    assert len(set(etags)) == len(forms)
    assert [each.startswith("W/") for each in etags] == [False] + [True] * 5, "the PNG alone is the same to the byte"
    for (params, headers), answer in zip(forms, answers, strict=True):
        assert answer.headers["vary"] == "Accept"
        assert re.fullmatch(r"private, max-age=\d+, immutable", answer.headers["cache-control"])
        again = client.get(url, params=params, headers=headers | {"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content, again.headers["vary"]) == (304, b"", "Accept")
        assert again.headers["etag"] == answer.headers["etag"]
    other = client.get(url, headers={"Accept": "image/webp", "If-None-Match": etags[0]})
    assert other.status_code == 200, "what the caller holds is the PNG"


def test_form_of_anothers_image_does_not_exist(client: httpx2.Client, worker: ToyWorker, make_key: MakeKey) -> None:
    ann, bob = make_key("ann"), make_key("bob")
    job = client.post("/v1/jobs", json=body(), headers=ann | {"Prefer": "wait=30"}).json()
    url = job["images"][0]["url"]
    etag = client.get(url, params={"size": 16}, headers=ann).headers
    assert {each.strip() for each in etag["vary"].split(",")} == {"Accept", "Authorization"}
    for more in ({}, {"If-None-Match": "*"}, {"Accept": "image/webp"}):
        assert is_problem(client.get(url, params={"size": 16}, headers=bob | more), 404)


def test_damaged_or_larger_png_of_the_store_is_refused_and_the_service_continues(
    client: httpx2.Client, worker: ToyWorker, service_settings: Settings, redis: Redis
) -> None:
    job = client.post("/v1/jobs", json=body(n=2), headers={"Prefer": "wait=30"}).json()
    keys = {each.key[-5]: each.key for each in worker.images.images(job["id"])}
    worker.images.objects.put(keys["0"], b"\x89PNG\r\n\x1a\n")
    worker.images.objects.put(keys["1"], large(300))
    for each in job["images"]:
        assert is_problem(client.get(each["url"], headers={"Accept": "image/webp"}), 404)
    assert client.get("/livez").status_code == 200


def test_limits_of_the_decoder_hold() -> None:
    with pytest.raises(PictureError, match="pixels"):
        formed(large(64), Form("webp", 16), max_pixels=64 * 64 - 1)
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    with pytest.raises(PictureError):
        formed(jpeg.getvalue(), Form("webp", None), max_pixels=100)
    assert Image.open(io.BytesIO(formed(png(3, 8), Form("jpeg", None), 64))).size == (8, 8)


@pytest.mark.parametrize("index", ["+0", "-0", "00", "0_0", " 0", "0 ", "\u0660", "0.0", "1e0", "-1", "99999999999"])
def test_image_has_one_address(client: httpx2.Client, url: str, index: str) -> None:
    """Other numerals that Python's int accepts are no addresses of the same image."""
    assert opened(client.get(url)).width == 256
    assert is_problem(client.get(url.rpartition("/")[0] + "/" + quote(index)), 404)
