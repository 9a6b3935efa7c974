"""A response whose body is a pydantic model, as pydantic itself writes it."""

from pydantic import BaseModel
from starlette.responses import Response


class ModelResponse(Response):
    """FastAPI would check the model and copy it before it writes it."""

    media_type = "application/json"

    def render(self, content: BaseModel) -> bytes:
        return content.model_dump_json().encode()
