"""Every fault that was found from outside has a row, which names an existing test."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reviews/faults.md"
NUMBERS = {"A": 4, "B": 13, "C": 8, "D": 5, "E": 4, "F": 14, "G": 8}  # of the faults in each section of the list


def test_every_test_that_the_page_names_exists() -> None:
    named, path = 0, Path()
    for file, function in re.findall(r"(tests/[\w/]+\.py)|\b(test_\w+)", PAGE.read_text()):
        if file:
            path = ROOT / file
            assert path.exists(), f"{PAGE} names {path}"
        elif function != path.stem:
            named += 1
            assert f"def {function}(" in path.read_text(), f"{PAGE} names {function} of {path}"
    assert named > 60


def test_every_fault_of_the_list_has_a_row() -> None:
    rows = re.findall(r"^\| ([A-G]\d+)\b.*\| ([0-9a-f]{7}|) \|$", PAGE.read_text(), re.MULTILINE)
    expected = {f"{section}{number}" for section, most in NUMBERS.items() for number in range(1, most + 1)}
    assert {row for row, _ in rows} == expected
    assert {row for row, commit in rows if not commit} == {"E4"}, "the row of prose alone names no commit of red tests"
