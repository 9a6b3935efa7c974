"""stats.jsonl: lines of figures, one for every few steps."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from files.atomic import atomic_write
from runfolder.folder import STATS, read_regular


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    with (folder / STATS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(folder: Path, most_bytes: int | None = None) -> list[dict[str, Any]]:
    """Read all lines, or those within the file's last most_bytes bytes. Raises: OSError.

    Invalid lines are skipped, such as a last line whose writer was killed.
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
    """Remove the lines of steps after this one; a run that resumes from this step writes them again."""
    lines = read_lines(folder)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        text = "".join(json.dumps(line) + "\n" for line in kept)
        with atomic_write(folder / STATS, durable=True) as file:
            file.write(text.encode())
