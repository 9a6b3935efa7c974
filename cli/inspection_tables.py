"""Tables of the findings of `adm models inspect`."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from models.checkpoints.networks_in_files import Network
from models.checkpoints.open_flags import Answers, Resolved

# fields that follow from others, or matter only in training
NOT_SHOWN = {"num_heads_upsample", "rescale_residual", "dropout"}


def tables_of(path: Path, network: Network, resolved: Resolved, sources: Mapping[str, Answers]) -> Iterator[Table]:
    """The facts that a network's keys show, then the flags that they leave open, with the source of each value."""
    found = resolved.found
    known = Table("", "", title=f"{path.name}: {type(found.config).__name__}", show_header=False)
    left_open = {name for each in resolved.open for name in each.flag.split(" / ")}
    for field, value in asdict(found.config).items():
        if field not in left_open | NOT_SHOWN:
            known.add_row(field, str(value))
    known.add_row("same keys as", ", ".join(found.presets) or "no official checkpoint")
    known.add_row(
        "dtypes", ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in network.tensors.values()}))
    )
    if network.where or network.others:
        known.add_row("weights at", network.where)
        known.add_row("--weights-at also takes", ", ".join(network.others))
    yield known
    asked = Table("flag", "value", "", "if it is wrong")
    asked.title = "Not shown by its keys; if a value is assumed, ask those who trained the network"
    for each in resolved.open:
        source_name = next((name for name, source in sources.items() if source.settle(each)), "assumed")
        asked.add_row(each.flag, resolved.value(each.flag), source_name, each.effect)
    yield asked
