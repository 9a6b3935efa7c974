"""The form of what workers announce."""

from pydantic import BaseModel, ConfigDict


class Announced(BaseModel):
    """Frozen, since it crosses the queue; unknown fields are ignored, so that old services read newer workers."""

    model_config = ConfigDict(frozen=True)
