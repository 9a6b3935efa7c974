"""stats.jsonl: a line for every few steps, with the step and figures by name."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runfolder.folder import STATS, read_regular, write_whole


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    with (folder / STATS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(folder: Path, most_bytes: int | None = None) -> list[dict[str, Any]]:
    """All whole lines, or those in the file's last bytes; the last one may have been cut off by a kill.

    What is no line of figures is left out. Raises: OSError.
    """
    try:
        content = read_regular(folder / STATS, most_bytes)
    except FileNotFoundError:
        return []
    return [line for text in content.splitlines() if (line := _line(text)) is not None]


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    return line if all(isinstance(each, int | float) and math.isfinite(each) for each in line.values()) else None


def forget_after(folder: Path, step: int) -> None:
    """Drop the lines of steps after this one: a run that goes on from here writes them again."""
    lines = read_lines(folder)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(folder / STATS, lambda file: file.write(text.encode()))
