"""The form of JSON bodies: strict fields, no name twice in one object, and an error for each wrong field."""

import json
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.contract.errors import MAX_ERRORS, FieldError, InvalidRequestError


class Strict(BaseModel):
    """No coercion, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class JsonBody(Strict):
    """The body of a call. Every route reads its JSON by `parse`, and never as a parameter of FastAPI."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a request from JSON.

        Raises: InvalidRequestError, with one entry per wrong field; pointer "" for a body that is not a JSON object.
        """
        refuse_repeated_names(body)
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise InvalidRequestError(field_errors(error, cls.model_fields)) from error


def refuse_repeated_names(text: bytes | str) -> None:
    """Refuse a JSON text in which an object has a name twice, because parsers differ in the value that they use.

    Raises: InvalidRequestError.
    """
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            repeated.extend(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)

    with suppress(ValueError, RecursionError):  # the validation reports text that is not JSON
        json.loads(text, object_pairs_hook=note)
    if repeated:
        raise InvalidRequestError([FieldError("", f"the name {repeated[0]!r} is given twice in one object")])


UNKNOWN = "unknown field"  # replaces pydantic's text of extra_forbidden
PLAINER = {  # parts of pydantic's texts
    "Input should be": "must be",
    "less than or equal to": "at most",
    "greater than or equal to": "at least",
}
UNIONS = ("class_label", "upsample")  # pydantic names the branch of these in an error's location


def pointer_to(names: Iterable[str]) -> str:
    """JSON pointer (RFC 6901) to the value under these names, the outermost first."""
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def plain_text(message: str) -> str:
    """Pydantic's message of an error in this API's words."""
    for words, plainer in PLAINER.items():
        message = message.replace(words, plainer)
    return message[:1].lower() + message[1:]


def unknown_text(name: str, known: Collection[str]) -> str:
    """The text of an unknown field: it names the most similar of the known names, if one is similar."""
    near = get_close_matches(name, known, n=1)
    return f"{UNKNOWN}; near: {near[0]}" if near else UNKNOWN


def field_errors(error: ValidationError, known: Collection[str] = ()) -> list[FieldError]:
    """One entry per wrong field, in the order of the fields; a union gives one entry, not one per branch.

    known: the names of the outermost object's fields; the error of an unknown field suggests the most similar one.
    """
    found: dict[str, str] = {}
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        parts = [str(part) for part in each["loc"] if part != "[key]"]
        field = 2 if parts[:1] == ["items"] else 0  # index of the field's name; an item's number precedes it
        if len(parts) > field + 1 and parts[field] in UNIONS:
            del parts[field + 1]
        if parts[1:2] == ["values"]:  # an axis of a grid: the part after a value's position is a branch too
            del parts[3:]
        pointer = pointer_to(parts)
        is_unknown = each["type"] == "extra_forbidden"
        # an answer has at most MAX_ERRORS errors, so no suggestion is sought for later ones
        comparable = known if len(parts) == 1 and len(found) < MAX_ERRORS else ()
        detail = unknown_text(parts[-1], comparable) if is_unknown else plain_text(each["msg"])
        found[pointer] = f"{found[pointer]}, or: {detail}" if pointer in found else detail
    # an error inside an object replaces the error of the other type that a union allows there
    parents = {pointer.rpartition("/")[0] for pointer in found} - {""}
    return [FieldError(pointer, detail) for pointer, detail in found.items() if pointer not in parents]
