"""What a PNG of ours says is read by others' tools, and is the request that makes it again."""

import io
import re

import pytest

from jobs.contract.determinants import CHUNK, request_of
from pictures.text_chunks import text_chunk
from tests.worker.programs import Client

pytestmark = pytest.mark.slow

# As AUTOMATIC1111's webui reads the last line of `parameters` (its infotext_utils), and with it most viewers.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"^(\d+)x(\d+)$")


def read_parameters(text: str) -> dict[str, str]:
    """The prompt and the fields, as a reader of that form finds them."""
    *prompt, last = text.strip().split("\n")
    fields = dict(FIELD.findall(last))
    assert len(fields) >= 3, "fewer count as a part of the prompt"
    return {"Prompt": "\n".join(prompt)} | fields


def test_reader_of_the_webuis_form_finds_every_setting(warm: Client) -> None:
    (job,) = warm.wait_all([warm.submit(sampler="ddim", eta=0.5, steps=3, time_grid="uniform", thresholding="dynamic")])
    text = text_chunk(io.BytesIO(warm.bytes_of(job)[0]), "parameters")
    assert text is not None
    fields = read_parameters(text.decode())
    assert fields.pop("Model hash").isalnum()
    assert SIZE.match(fields.pop("Size"))
    assert fields == {
        "Prompt": "torus",
        "Steps": "3",
        "Sampler": "DDIM eta 0.5",
        "CFG scale": "2",
        "Seed": "5",
        "Image index": "0",
        "Model": "demo",
        "Schedule type": "uniform",
        "Thresholding": "dynamic",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3, "steps": 3, "sampler": "ddpm"},
        {"n": 2, "first_index": 5, "steps": 2, "upsample": False, "thresholding": "dynamic"},
        {"class_label": None, "class_weights": {"torus": 1, "cone": 3}, "steps": 2, "guidance_schedule": "entropy"},
        {"kind": "interpolate", "seeds": [1, 2], "seed": None, "n": 3, "steps": 2},
        {"model": "demo-uncond", "steps": 2, "eta": 0.5, "sampler": "ddim", "guidance_interval": [100, 900]},
    ],
)
def test_request_of_an_image_makes_it_again(warm: Client, fields: dict[str, object]) -> None:
    (job,) = warm.wait_all([warm.submit(**fields)])
    text = text_chunk(io.BytesIO(warm.bytes_of(job)[-1]), CHUNK)
    assert text is not None
    again = warm.queue.submit(request_of(text)).job
    (made,) = warm.wait_all([again.id])
    assert made.images[-1].sha256 == job.images[-1].sha256
