"""Runs every reference case under a folder: `python -m tests.golden_runner FOLDER`; exit 0 only if all pass.

A case is any NAME.json beside which a NAME.safetensors may lie; its kind is its `kind` field, else its folder's name.
An unknown kind, field, method or output is a failure.
"""

import sys
from pathlib import Path

from tests.golden_runner.runner import find_cases, run_case
from vocabulary.counts import counted


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: python -m tests.golden_runner FOLDER  (an existing folder of cases)", file=sys.stderr)
        return 2
    failed = 0
    cases = find_cases(Path(sys.argv[1]))
    for path in cases:
        problems = run_case(path)
        failed += bool(problems)
        for problem in problems:
            print(f"FAIL {path}: {problem}")
    if not cases:
        print(f"FAIL {sys.argv[1]}: there is no case (NAME.json) under this folder")
    print(f"{counted(len(cases), 'case')}, {len(cases) - failed} passed, {failed} failed")
    return 0 if cases and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
