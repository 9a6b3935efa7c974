"""Routes that refuse query parameters which would be ignored: unknown ones, and all but the last of several."""

from collections.abc import Callable, Coroutine
from typing import Any, get_args, get_origin

from fastapi import Request, Response
from fastapi.routing import APIRoute

from jobs.contract.errors import FieldError, InvalidRequestError
from jobs.contract.json_bodies import pointer_to


class StrictQueryRoute(APIRoute):
    """A route whose query parameters are all known, each given once unless it is a list."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        is_list = {each.alias: is_a_list(each.field_info.annotation) for each in self.dependant.query_params}

        async def answer_strictly(request: Request) -> Response:
            if request.scope["query_string"]:  # most calls have none
                names = [name for name, _ in request.query_params.multi_items()]
                if wrong := wrong_names(names, is_list):
                    raise InvalidRequestError(wrong)
            return await answer(request)

        return answer_strictly


def is_a_list(annotation: object) -> bool:
    """Return whether a parameter's type is a list, or a list or None."""
    return any(get_origin(each) is list for each in (annotation, *get_args(annotation)))


def wrong_names(names: list[str], is_list: dict[str, bool]) -> list[FieldError]:
    """The errors of a query's names. is_list: whether a parameter may be repeated, by name."""
    wrong = []
    for name in dict.fromkeys(names):
        if name not in is_list:
            known = f"there are: {', '.join(is_list)}" if is_list else "this call has none"
            wrong.append(FieldError(pointer_to([name]), f"unknown parameter; {known}"))
        elif names.count(name) > 1 and not is_list[name]:
            wrong.append(FieldError(pointer_to([name]), "is given more than once"))
    return wrong
