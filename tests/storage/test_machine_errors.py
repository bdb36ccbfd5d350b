"""What the machine refuses is tried again, and is never charged to a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rhofast.errors import MachineError
from rhofast.storage.machine_errors import MACHINE_ERRNOS, is_machine_error, with_patience


def failing(number: int, times: int) -> tuple[list[int], object]:
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return "content"

    return calls, call


@pytest.mark.parametrize("number", sorted(MACHINE_ERRNOS))
def test_a_passing_refusal_is_waited_for(number: int) -> None:
    pauses: list[float] = []
    calls, call = failing(number, 3)
    assert with_patience(call, "x", patience_s=60, sleep=pauses.append) == "content"  # type: ignore[arg-type]
    assert len(calls) == 4 and pauses == [0.05, 0.1, 0.2]


def test_a_lasting_refusal_is_one_line_that_says_how_to_go_on() -> None:
    pauses: list[float] = []
    _, call = failing(errno.EMFILE, 10**6)
    with pytest.raises(MachineError, match=r"set/shard.tar: Too many open files, for 1\d s.*--resume"):
        with_patience(call, "set/shard.tar", patience_s=10, sleep=pauses.append, clock=lambda: sum(pauses))  # type: ignore[arg-type]
    assert 10 <= sum(pauses) <= 12


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.EACCES, errno.EISDIR])
def test_what_is_wrong_with_a_file_is_said_at_once(number: int) -> None:
    calls, call = failing(number, 10**6)
    with pytest.raises(OSError, match=os.strerror(number)):
        with_patience(call, "x", patience_s=60, sleep=lambda seconds: None)  # type: ignore[arg-type]
    assert len(calls) == 1 and not is_machine_error(OSError(number, "")) and not is_machine_error(ValueError())


def test_a_full_disk_costs_no_line_of_bad_samples(tmp_path: Path) -> None:
    from rhofast.data.loader.bad_samples import BadSampleLog
    from rhofast.errors import SampleError

    path = tmp_path / "bad_samples.jsonl"
    path.symlink_to("/dev/full")
    log = BadSampleLog(path, limit=None)
    for sample in range(3):
        log.add(SampleError("checksum mismatch", shard="s.tar", key=f"k{sample}", offset=0), sample, {"rank": 0}, 10)
    assert log.count == 3 and log.write_error is not None and log.write_error.errno == errno.ENOSPC
    path.unlink()
    log.add(SampleError("checksum mismatch", shard="s.tar", key="k3", offset=0), 3, {"rank": 0}, 10)
    assert log.write_error is None and [line.count('"sample"') for line in path.read_text().splitlines()] == [1] * 4
