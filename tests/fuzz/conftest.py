from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz.harness import Make, Worker, run_cases


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """One process for all readers: to import torch takes longer than many cases."""
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, tmp_path: Path, worker: Worker) -> Callable[..., None]:
    """fuzz(reader, make, cases=300): run a reader on made cases and fail with each case that it did not survive."""

    def run(reader: str, make: Make, *, cases: int = 300, seconds: float = 10.0, warm: Path | None = None) -> None:
        seeds = range(request.config.getoption("--fuzz") or cases)
        failures = run_cases(worker, reader, make, seeds=seeds, folder=tmp_path / "cases", seconds=seconds, warm=warm)
        text = "\n\n".join(map(str, failures[:5]))
        assert not failures, f"{len(failures)} of {len(seeds)} cases of {reader}; the first of them:\n\n{text}"

    return run
