"""The images of a job as PIL images."""

import hashlib
import io
import math
from collections.abc import Sequence

from PIL import Image

from adm_client.errors import DamagedError
from adm_client.models import ImageInfo, JobState


class Images(list[Image.Image]):
    """The images of a job in order; `pngs`: their bytes at the service. A notebook shows all of them."""

    def __init__(self, job: JobState, pngs: Sequence[bytes]) -> None:
        super().__init__(opened(png) for png in pngs)
        self.job, self.pngs = job, list(pngs)

    def sheet(self) -> Image.Image:
        """All images in one picture, in rows. Raises: ValueError if there are none."""
        if not self:
            raise ValueError("the job has no images")
        columns = math.ceil(math.sqrt(len(self)))
        width, height = max(each.width for each in self), max(each.height for each in self)
        sheet = Image.new("RGB", (columns * width, math.ceil(len(self) / columns) * height))
        for place, each in enumerate(self):
            sheet.paste(each, (place % columns * width, place // columns * height))
        return sheet

    def _repr_png_(self) -> bytes | None:
        """The PNG that a notebook shows: all images in one picture."""
        if not self:
            return None
        buffer = io.BytesIO()
        self.sheet().save(buffer, "PNG")
        return buffer.getvalue()


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png), formats=["PNG"])
    picture.load()
    return picture


def checked(png: bytes, image: ImageInfo) -> bytes:
    """The bytes of an image. Raises: DamagedError unless they have the announced hash."""
    if hashlib.sha256(png).hexdigest() != image.sha256:
        raise DamagedError(f"image {image.index} did not arrive whole")
    return png
