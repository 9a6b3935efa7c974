"""The client package against the real service, whose worker draws grey pixels."""

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image
from redis import Redis

from adm_client import (
    AsyncClient,
    Client,
    DamagedError,
    JobFailedError,
    JobState,
    Patience,
    RefusedError,
    SettingError,
    Status,
    UnreachableError,
)
from adm_client.pictures import checked
from jobs.callers.keyring import NEEDED, KeyStore
from jobs.contract.caller import Role
from jobs.settings import Settings
from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, running_service
from tests.service.test_zip import FACTS, picture
from tests.waiting import eventually

AT_ONCE = Patience(silent_seconds=0, busy_seconds=0)


@pytest.fixture
def adm(address: str, worker: ToyWorker, client: httpx2.Client) -> Iterator[Client]:
    eventually(lambda: bool(client.get("/v1/models").json()["data"]), "the worker is known")
    with Client(address, patience=AT_ONCE) as adm:
        yield adm


def test_images_come_as_pictures_with_their_bytes_and_show_in_a_notebook(adm: Client) -> None:
    images = adm.generate(class_label="torus", n=3, seed=7)
    assert images.pngs == [png(0), png(1), png(2)]
    assert [each.size for each in images] == [(2, 2)] * 3
    assert images.job.request is not None
    assert (images.job.request.class_label, images.job.request.seed) == (4, 7)
    shown = images._repr_png_()
    assert shown is not None
    assert Image.open(io.BytesIO(shown)).size == (4, 4)


def test_many_jobs_are_queued_in_one_call_and_found_by_what_they_have(adm: Client) -> None:
    made = adm.submit_many([{"class_label": "torus"}, {"class_label": "cone", "n": 2}], metadata={"run": "7"})
    assert [len(each.wait().images()) for each in made] == [1, 2]
    again = adm.submit_many([{"class_label": "star"}], idempotency_key="k")
    assert [each.id for each in adm.submit_many([{"class_label": "star"}], idempotency_key="k")] == [again[0].id]
    assert [each.id for each in adm.jobs(metadata={"run": "7"}).data] == [made[1].id, made[0].id]
    assert [each.id for each in adm.jobs(metadata={"run": "7"}, class_label="torus", model="demo").data] == [made[0].id]
    with pytest.raises(RefusedError, match="/items/1/class_label"):
        adm.submit_many([{"class_label": 0}, {"class_label": "no such"}])


def test_grid_has_its_images_in_rows_and_a_sheet(adm: Client, tmp_path: Path) -> None:
    grid = adm.grid({"guidance_scale": [0, 1.5, 3]}, {"steps": [5, 9]}, class_label="torus", seed=7).wait()
    assert [[each.size for each in row] for row in grid.images()] == [[(2, 2)] * 3] * 2
    assert grid.png(2, 1) == png(0)
    cell = grid.state.cells[5].job
    assert cell is not None
    assert cell.request is not None
    assert (cell.request.guidance_scale, cell.request.steps, cell.request.seed) == (3, 9, 7)
    shown = grid._repr_png_()
    assert shown is not None
    assert Image.open(io.BytesIO(shown)).tobytes() == grid.sheet().tobytes()
    saved = [each.name.removeprefix(grid.id) for each in grid.save(tmp_path)]
    assert saved == ["-sheet.png", *(f"-{row}-{column}.png" for row in range(2) for column in range(3))]
    assert adm.grid_of(grid.id).state == grid.state
    with pytest.raises(IndexError, match="3 columns and 2 rows"):
        grid.png(3, 0)
    grid.delete()
    with pytest.raises(RefusedError) as caught:
        grid.refresh()
    assert (caught.value.status, caught.value.kind) == (404, "unknown-grid")


def test_cell_without_an_image_is_an_error_that_says_why(adm: Client, worker: ToyWorker) -> None:
    worker.hold()
    grid = adm.grid({"seed": [1, 2]}, class_label="torus")
    with pytest.raises(TimeoutError, match="0 of 2 cells have ended after 1 s"):
        grid.wait(1)
    grid.cancel()
    with pytest.raises(JobFailedError, match="it was cancelled"):
        grid.wait().images()
    with pytest.raises(ValueError, match="one field with its values, not 2"):
        adm.grid({"seed": [1], "steps": [2]}, class_label="torus")
    with pytest.raises(RefusedError, match="/x/values/1: steps 0"):
        adm.grid({"steps": [1, 0]}, class_label="torus")


def test_asynchronous_grid_does_the_same(adm: Client, address: str) -> None:
    async def made() -> tuple[int, tuple[int, int]]:
        async with AsyncClient(address, patience=AT_ONCE) as client:
            grid = await (await client.grid({"seed": [1, 2]}, class_label="torus")).wait()
            rows, sheet = await grid.images(), await grid.sheet()
            assert (await (await client.grid_of(grid.id)).cancel()).state.completed == 2
            await grid.delete()
            return len(rows[0]), sheet.size

    images, size = asyncio.run(made())
    assert images == 2
    assert size[0] > size[1]


def test_job_of_local_generate_that_nobody_removes_is_read() -> None:
    """`adm generate --local --json` prints null for `expires_at`."""
    answer = {
        "id": "7", "object": "job", "status": "completed", "created_at": 1.0, "started_at": 1.0, "ended_at": 2.0,
        "expires_at": None, "request": None, "progress": {"stage": "base", "step": 1, "steps": 1, "fraction": 1.0},
        "queue": None, "images": [], "error": None, "usage": {"steps": 1, "device_seconds": 0.1}, "results": None,
        "attempt": 1, "numerics": "f",
    }  # fmt: skip
    assert JobState.model_validate_json(json.dumps(answer)).expires_at is None


def test_job_is_waited_for_cancelled_and_deleted(adm: Client, worker: ToyWorker) -> None:
    worker.hold()
    job = adm.submit(class_label="torus")
    with pytest.raises(TimeoutError, match="after 1 s"):
        job.wait(1)
    assert job.cancel().wait().status is Status.CANCELLED
    with pytest.raises(JobFailedError, match="it was cancelled"):
        job.images()
    job.delete()
    with pytest.raises(RefusedError) as caught:
        adm.job(job.id)
    assert (caught.value.status, caught.value.kind) == (404, "unknown-job")


def test_images_are_saved_under_the_jobs_name(adm: Client, tmp_path: Path) -> None:
    job = adm.submit(class_label=4, n=2).wait()
    paths = job.save(str(tmp_path / "out"))
    assert [each.name for each in paths] == [f"{job.id}-0.png", f"{job.id}-1.png"]
    assert [each.read_bytes() for each in paths] == [png(0), png(1)]


def test_wrong_field_is_named(adm: Client) -> None:
    with pytest.raises(RefusedError, match="unknown class 'cat'") as caught:
        adm.submit(class_label="cat")
    assert (caught.value.status, caught.value.kind) == (422, "invalid-request")
    assert [each["pointer"] for each in caught.value.errors] == ["/class_label"]


def test_pictures_of_every_form_are_uploaded_where_a_kind_takes_them(adm: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    uploaded = adm.upload(png(5))
    for each in (tmp_path / "a.png", png(5), uploaded.id):
        job = adm.submit(kind="variation", images=[each], strength=0.3, n=2).wait()
        assert job.state.request is not None
        assert (job.state.request.images, len(job.images())) == ([uploaded.id], 2)
    assert len(adm.generate(kind="reconstruct", images=[Image.new("RGB", (8, 8))])) == 1
    assert adm.submit(kind="score", images=[png(5)]).wait().state.results == {"scores": [[]]}
    with pytest.raises(TypeError, match="a picture is bytes"):
        adm.upload(3)  # type: ignore[arg-type] # what a program without types may give


def test_events_come_to_the_last_and_previews_are_pictures(adm: Client) -> None:
    job = adm.submit(class_label=4, previews=True, n=2)
    events = list(job)
    kinds = [each.kind for each in events]
    assert (kinds[0], kinds[-1], kinds.count("image")) == ("queued", "completed", 2)
    assert job.status is Status.COMPLETED
    (progress,) = [each.progress for each in events if each.progress is not None]
    assert (progress.stage, progress.fraction) == ("base", 0.5)
    assert [each.picture.size for each in events if each.picture is not None] in ([], [(2, 2)])  # not replayed


def test_list_models_and_the_request_behind_a_picture(adm: Client) -> None:
    job = adm.submit(class_label=4).wait()
    page = adm.jobs(status="completed", limit=1)
    assert (page.data[0].id, adm.jobs(status="failed").data) == (job.id, [])
    assert [each.id for each in adm.models()] == ["demo", "demo-uncond"]
    assert adm.model("demo").classes[4].name == "torus"
    request = adm.request_from_image(picture(json.dumps(FACTS)))
    assert (request["seed"], request["first_index"]) == (FACTS["seed"], 3)


def test_same_key_gives_the_same_job_and_without_one_each_call_a_new_one(adm: Client) -> None:
    first, second = (adm.submit(class_label=4, idempotency_key="mine") for _ in range(2))
    others = {adm.submit(class_label=4).id for _ in range(2)}
    assert first.id == second.id
    assert len(others | {first.id}) == 3


def test_damaged_image_is_noticed(adm: Client) -> None:
    job = adm.submit(class_label=4).wait()
    with pytest.raises(DamagedError, match="did not arrive whole"):
        checked(b"x", job.state.images[0])


@pytest.mark.process
def test_unavailable_service_is_waited_for_and_the_job_is_queued_once(
    service_settings: Settings, worker: ToyWorker, client: httpx2.Client
) -> None:
    with running_service(service_settings) as (address, _, _):
        port = address.rpartition(":")[2]
    notices: list[str] = []
    patient = Client(address, patience=Patience(60, 60), on_wait=notices.append)

    async def post_while_it_starts() -> str:
        posting = asyncio.create_task(asyncio.to_thread(patient.submit, class_label=4))
        while not notices:
            await asyncio.sleep(0.01)
        with running_service(service_settings, ADM_PORT=port):
            return (await posting).id

    job_id = asyncio.run(post_while_it_starts())
    patient.close()
    assert (notices[0], notices[-1]) == ("the service does not answer", "")
    assert [each["id"] for each in client.get("/v1/jobs").json()["data"]] == [job_id]


def test_service_that_never_answers_is_given_up() -> None:
    with (
        Client("http://127.0.0.1:9", patience=AT_ONCE) as nobody,
        pytest.raises(UnreachableError, match="does not answer"),
    ):
        nobody.models()


@pytest.mark.process
def test_full_queue_is_waited_for_as_long_as_it_may_be(service_settings: Settings, worker: ToyWorker) -> None:
    with running_service(service_settings, ADM_MAX_QUEUED_JOBS="1") as (address, _, _), Client(address) as adm:
        eventually(lambda: bool(adm.models()), "the worker is known")
        worker.hold()
        worker.stop()
        adm.submit(class_label=4)
        with Client(address, patience=AT_ONCE) as hasty, pytest.raises(RefusedError) as caught:
            hasty.submit(class_label=4)
    assert caught.value.status == 503


async def all_of_it(address: str) -> None:
    async with AsyncClient(address) as adm:
        images = await adm.generate(class_label="torus", n=2)
        assert images.pngs == [png(0), png(1)]
        job = await adm.submit(class_label="cone", previews=True)
        kinds = [event.kind async for event in job]
        assert (kinds[0], kinds[-1], job.status) == ("queued", "completed", Status.COMPLETED)
        several = await asyncio.gather(*(adm.generate(class_label=each) for each in range(10)))
        assert [each.job.request.class_label for each in several if each.job.request] == list(range(10))
        uploaded = await adm.upload(png(5))
        varied = await adm.submit(kind="variation", images=[uploaded.id])
        assert len(await (await varied.wait()).images()) == 1
        with pytest.raises(RefusedError, match="unknown class"):
            await adm.submit(class_label="cat")
        assert (await adm.jobs(class_label="torus", metadata={"run": "none"})).data == []
        assert [each.status for each in await adm.submit_many([{"class_label": 0}] * 2)] != []
        assert (await adm.jobs()).data
        await job.delete()


@pytest.mark.process
@pytest.mark.slow
def test_job_above_the_whole_of_a_quota_is_refused_at_once(
    service_settings: Settings, worker: ToyWorker, redis: Redis
) -> None:
    """Such a 429 has no Retry-After, because the answer would be the same after any wait."""
    key = KeyStore(redis).create("ann", Role.USER).key
    notices: list[str] = []
    try:
        with running_service(service_settings, ADM_QUOTA_DEVICE_SECONDS="1") as (address, _, _):
            patient = Client(address, key, patience=Patience(60, 600), on_wait=notices.append)
            eventually(lambda: bool(patient.models()), "the worker is known")
            with pytest.raises(RefusedError, match="split the request"):
                patient.submit(class_label=4, n=64, steps=1000)
            patient.close()
    finally:
        (service_settings.data / NEEDED).unlink(missing_ok=True)
    assert notices == []


def test_everything_works_under_asyncio_too(adm: Client, address: str) -> None:
    asyncio.run(all_of_it(address))


def test_key_is_sent_from_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_API_KEY", "from-the-environment")
    with Client() as first, Client(api_key="given") as second:
        # what would be sent; no service listens at these addresses
        sent = [each._http.headers["Authorization"] for each in (first, second)]
    assert sent == ["Bearer from-the-environment", "Bearer given"]


@pytest.mark.parametrize(("key", "hint"), [(None, "set api_key= or ADM_API_KEY"), ("wrong", "the key was taken from")])
def test_refusal_says_whether_a_key_was_sent(key: str | None, hint: str) -> None:
    request = httpx2.Request("GET", "http://127.0.0.1/", headers={} if key is None else {"Authorization": key})
    refused = RefusedError.of(httpx2.Response(401, json={"detail": "a key is needed"}, request=request))
    assert hint in str(refused)
    assert refused.detail == "a key is needed"


def test_line_end_after_a_key_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and secrets of Kubernetes often end with one, and a header cannot have it."""
    monkeypatch.setenv("ADM_API_KEY", "from-a-file\n")
    with Client() as adm:
        # what would be sent; no service listens at this address
        assert adm._http.headers["Authorization"] == "Bearer from-a-file"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("url", "key", "named"),
    [
        ("127.0.0.1:8000", "k", "url: '127.0.0.1:8000'"),
        ("localhost", "k", "url: 'localhost'"),
        ("ftp://a.example", "k", "url: 'ftp://a.example'"),
        ("http://", "k", "url: 'http://'"),
        ("http://[", "k", r"url: 'http://\['"),
        ("http://a.example", "one\ntwo", "ADM_API_KEY"),
        ("http://a.example", "schl\u00fcssel", "ADM_API_KEY"),
    ],
)
def test_setting_that_no_call_can_be_made_with_is_named_at_once(
    kind: type[Client | AsyncClient], url: str, key: str, named: str
) -> None:
    """Calls with it fail as if no service answered, and would be repeated."""
    with pytest.raises(SettingError, match=named) as refusal:
        kind(url, key)
    assert key == "k" or key not in str(refusal.value)


def test_url_is_that_of_the_service_that_the_same_environment_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_PORT", "8123")
    monkeypatch.setenv("ADM_HOST", "::")
    with Client() as adm:
        # no service listens there
        assert str(adm._http.base_url) == "http://[::1]:8123"
