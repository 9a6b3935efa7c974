"""Events of a job, from the stream of the service (server-sent events)."""

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

from PIL import Image

from adm_client.models import Progress

FINAL = frozenset({"completed", "failed", "cancelled", "expired"})
SILENT_SECONDS = 45.0  # longest time between two lines; the service sends one every 15 s


@dataclass(frozen=True)
class Event:
    """One event; `data` has the fields that the service documents for its kind."""

    kind: str
    data: dict[str, Any]
    id: str

    @property
    def is_final(self) -> bool:
        """Return whether this is the last event of its job."""
        return self.kind in FINAL

    @property
    def progress(self) -> Progress | None:
        """The progress in an event of kind progress, else None."""
        return Progress.model_validate(self.data) if self.kind == "progress" else None

    @property
    def picture(self) -> Image.Image | None:
        """The predicted image in an event of kind preview, else None."""
        if self.kind != "preview":
            return None
        picture = Image.open(io.BytesIO(base64.b64decode(self.data["png"])), formats=["PNG"])
        picture.load()
        return picture


class Decoder:
    """Parses the lines of a stream by WHATWG's HTML standard, 9.2.6."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Event | None:
        """Add a line; return the event that it completes, else None."""
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data" and "data" in self._fields:
                value = f"{self._fields['data']}\n{value}"
            if name:  # without a name it is a comment
                self._fields[name] = value
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", ""))
