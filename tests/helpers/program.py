"""The program `rhofast`, run within the process of a test."""

from __future__ import annotations

import sys

from rhofast.cli.app import main


def run(*arguments: object) -> int:
    """Run the program with these arguments and return its exit code."""
    sys.argv = ["rhofast", *map(str, arguments)]
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0
