"""A file that crashes or hangs a library ends neither the process nor the wait."""

import os
import time
from pathlib import Path

import pytest

from rhofast.ingest.isolation import IsolatedProcess
from rhofast.ingest.probe import Refusal, RefusedError, probe


def test_a_guarded_call_is_a_call_that_outlives_crashes_and_hangs(tmp_path: Path) -> None:
    guard = IsolatedProcess()
    try:
        first = guard.call(os.getpid, seconds=30)
        assert first != os.getpid() and guard.call(os.getpid, seconds=30) == first
        with pytest.raises(ZeroDivisionError):
            guard.call(divmod, 1, 0, seconds=30)
        with pytest.raises(RefusedError) as refused:
            guard.call(probe, tmp_path / "nowhere.mp4", seconds=30)
        assert (refused.value.reason, refused.value.detail) == (Refusal.MISSING, "No such file or directory")
        with pytest.raises(RefusedError) as refused:
            guard.call(os.abort, seconds=30)
        assert refused.value.reason == Refusal.DAMAGED
        second = guard.call(os.getpid, seconds=30)
        assert second != first
        with pytest.raises(RefusedError) as refused:
            guard.call(time.sleep, 60, seconds=0.1)
        assert refused.value.reason == Refusal.TIMEOUT
        assert guard.call(os.getpid, seconds=30) != second
    finally:
        guard.close()
