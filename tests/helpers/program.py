"""The program `rhofast`, run within the process of a test, and programs in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rhofast.cli.app import main
from tests.helpers.shards import ROOT


def run(*arguments: object) -> int:
    """Run the program with these arguments and return its exit code."""
    sys.argv = ["rhofast", *map(str, arguments)]
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def run_ranks(*arguments: object, ranks: int = 2, cwd: Path | None = None, **environment: str) -> None:
    """Run a Python program as the processes of one run; each has one thread.

    Args:
        arguments: The program, a file or "-m" and a module, and its arguments.
        ranks: Number of processes.
        cwd: Folder in which they run. None: that of the test.
        environment: Further environment variables.

    Raises:
        subprocess.CalledProcessError: A process has failed; its messages are shown.
        subprocess.TimeoutExpired: The program is not done in five minutes.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run(
        [*launch, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        check=True,
        timeout=300,
    )
