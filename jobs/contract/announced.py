"""The base class of workers' announcements."""

from pydantic import BaseModel, ConfigDict


class Announced(BaseModel):
    """Frozen, because it crosses the queue. Unknown fields are ignored, so that old services read newer workers."""

    model_config = ConfigDict(frozen=True)
