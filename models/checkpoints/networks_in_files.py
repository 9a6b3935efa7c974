"""Finds networks in the contents of a training program's file: at the top, in an entry, or under a key prefix."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from models.checkpoints.file_form import ContentError

FIRST_KEY = re.compile(r"(|.*\.)(?:input_blocks\.0\.0\.weight|time_embed\.0\.weight)")
COMPILED = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # anywhere in a key
AVERAGED = re.compile(r"(?:^|[._])ema")
SHOWN_ENTRIES = 8


@dataclass(frozen=True)
class Network:
    """The tensors of one network of a file.

    where: the prefix of its keys, such as `model.module`; "" for none.
    others: the places of the file's other networks.
    """

    where: str
    tensors: dict[str, Tensor]
    others: tuple[str, ...] = ()

    @property
    def choice(self) -> str:
        """Return a text that names this network and the file's others; "" if there are no others."""
        return (
            f"of its networks, that at {self.where!r}; others at {', '.join(map(repr, self.others))}"
            if self.others
            else ""
        )


def networks_in(content: object) -> list[Network]:
    """The networks of a file's content, averaged weights first, because images are sampled with those.

    A mapping of only tensors is one network, with any keys. Raises: ContentError, which names the kind of any other
    content.
    """
    if not isinstance(content, Mapping):
        raise ContentError(f"contains a {type(content).__name__}{_whole_model(content)}, and no state dict of tensors")
    flat = {COMPILED.sub("", key): value for key, value in _tensors(content)}
    prefixes = list(dict.fromkeys(match[1] for key in flat if (match := FIRST_KEY.fullmatch(key))))
    if not prefixes:
        if flat and all(isinstance(value, Tensor) for value in content.values()):
            return [Network("", flat)]
        raise ContentError(_described(content))
    found = [Network(prefix.removesuffix("."), _under(prefix, flat, prefixes)) for prefix in prefixes]
    return sorted(found, key=lambda each: AVERAGED.search(each.where) is None)


def chosen(networks: list[Network], where: str | None) -> Network:
    """The network at a place, or the first. Raises: ContentError for an unknown place."""
    for each in networks:
        if where in (None, each.where):
            return replace(each, others=tuple(other.where for other in networks if other is not each))
    raise ContentError(f"has no weights at {where!r}; there are {', '.join(repr(each.where) for each in networks)}")


def _tensors(content: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{name}.")


def _under(prefix: str, flat: Mapping[str, Tensor], prefixes: list[str]) -> dict[str, Tensor]:
    """The tensors whose longest prefix is this one."""
    inner = tuple(each for each in prefixes if each != prefix and each.startswith(prefix))
    return {
        key.removeprefix(prefix): value
        for key, value in flat.items()
        if key.startswith(prefix) and not (inner and key.startswith(inner))
    }


def _whole_model(content: object) -> str:
    return " (a pickled model or object; save its state_dict())" if type(content).__name__ == "Ignored" else ""


def _described(content: Mapping[object, object]) -> str:
    if {"state", "param_groups"} <= content.keys():
        return "is the state of an optimizer; the weights are in another file: model*.pt or ema_*.pt beside opt*.pt"
    entries = ", ".join(str(name) for name in list(content)[:SHOWN_ENTRIES]) or "nothing"
    more = " ..." if len(content) > SHOWN_ENTRIES else ""
    return f"contains no state dict of an ADM network, but {entries}{more}"
