"""The text of a PNG can be read by other tools, and contains the request that makes it again."""

import io
import re

import pytest
from sd_parsers import ParserManager
from sd_parsers.data import Generators

from jobs.contract.request_from_image import CHUNK, request_of
from pictures.text_chunks import text_chunk
from tests.worker.programs import Client
from tests.worker.test_kinds_of_jobs import upload

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
    ("fields", "prompt", "sampler"),
    [
        ({"sampler": "ddpm", "steps": 3}, "torus", "DDPM"),
        ({"sampler": "ddim", "eta": 0.5, "steps": 3, "time_grid": "uniform"}, "torus", "DDIM eta 0.5"),
        ({"sampler": "dpmpp_2m", "steps": 4, "upsample": False}, "torus", "DPM++ 2M"),
        (
            {"class_label": None, "class_weights": {"torus": 1, "cone": 3}, "steps": 2, "sampler": "ddpm"},
            "(cone:0.75), (torus:0.25)",
            "DDPM",
        ),
        (
            {"model": "demo-uncond", "class_label": None, "guidance_scale": 0, "steps": 2, "sampler": "heun"},
            "no class",
            "Heun",
        ),
    ],
)
def test_sd_parsers_finds_prompt_sampler_seed_and_steps(
    warm: Client, fields: dict[str, object], prompt: str, sampler: str
) -> None:
    """sd-parsers, which reads what AUTOMATIC1111's webui and its kin write."""
    (job,) = warm.wait_all([warm.submit(**fields)])
    assert job.request is not None
    read = ParserManager().parse(io.BytesIO(warm.bytes_of(job)[0]))
    assert read is not None
    assert read.generator is Generators.AUTOMATIC1111
    (found,) = read.samplers
    assert [each.value for each in found.prompts] == [prompt]
    assert found.name == sampler
    assert found.parameters["seed"] == str(job.request.seed)
    assert found.parameters["steps"] == str(job.request.steps)
    assert found.parameters["cfg_scale"] == f"{job.request.guidance_scale:g}"
    assert found.model is not None
    assert found.model.name == job.request.model


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3, "steps": 3, "sampler": "ddpm"},
        {"n": 64, "first_index": 2**32 - 64, "steps": 1, "upsample": False},
        {"class_label": None, "class_weights": {"torus": 0.3, "cone": 0.7, "cube": 0.1}, "steps": 2},
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
    again = warm.queue.submitter.submit(request_of(text)).job
    (made,) = warm.wait_all([again.id])
    assert made.images[-1].sha256 == job.images[-1].sha256


def test_request_of_one_upsampled_image_makes_it_again(warm: Client) -> None:
    """Its noise is that of its index in the job, which has other images before it."""
    asked = {"kind": "upsample", "images": [upload(warm, "red"), upload(warm, "blue")], "seed": 3}
    (job,) = warm.wait_all([warm.post(asked | {"upsample": {"steps": 3, "sampler": "ddpm"}})])
    text = text_chunk(io.BytesIO(warm.bytes_of(job)[1]), CHUNK)
    assert text is not None
    (made,) = warm.wait_all([warm.queue.submitter.submit(request_of(text)).job.id])
    assert [image.sha256 for image in made.images] == [job.images[1].sha256]
