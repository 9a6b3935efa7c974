"""Every fault that was found from outside names an existing test."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reviews/faults.md"


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
