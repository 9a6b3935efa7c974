"""stats.jsonl: a line for every few steps, with the step and figures by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runfolder.folder import STATS, write_whole


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    with (folder / STATS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """All whole lines; the last one may have been cut off by a kill."""
    path = folder / STATS
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def forget_after(folder: Path, step: int) -> None:
    """Drop the lines of steps after this one: a run that goes on from here writes them again."""
    lines = read_lines(folder)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(folder / STATS, lambda file: file.write(text.encode()))
