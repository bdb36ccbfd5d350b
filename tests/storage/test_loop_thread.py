"""The event loop of requests: calls from other threads, and how its threads share the processors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rhofast.storage.loop_thread import call, wait_for

_FETCH = """
import os, sys
from pathlib import Path
from benchmarks.data_loading.range_server import RangeServer, serving
from rhofast.storage.loop_thread import wait_for
from rhofast.storage.object_store import ObjectFolder

with serving(RangeServer(Path(sys.argv[1]))) as server:
    (content,) = wait_for(ObjectFolder(server.url, 10.0).spans("a", [(1, 2)]))
    assert bytes(content) == b"bc"
    for task in Path("/proc/self/task").iterdir():
        print((task / "comm").read_text().strip(), os.sched_getscheduler(int(task.name)))
"""


def test_calls_of_a_thread_run_in_its_order_and_none_is_lost() -> None:
    found: list[tuple[int, int]] = []

    def ask(thread: int) -> None:
        for number in range(500):
            call(found.append, (thread, number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    came = threading.Event()
    call(came.set)
    assert came.wait(10)
    assert all([number for other, number in found if other == thread] == list(range(500)) for thread in range(4))


def test_a_call_that_fails_takes_no_other_along(caplog: pytest.LogCaptureFixture) -> None:
    came = threading.Event()
    wait_for(_both(lambda: 1 // 0, came.set))
    assert came.wait(10)
    assert "ZeroDivisionError" in caplog.text


async def _both(first: object, second: object) -> None:
    """Ask for two calls together, from the loop itself, which takes them in one turn."""
    call(first)  # type: ignore[arg-type]
    call(second)  # type: ignore[arg-type]


def test_threads_of_requests_do_not_interrupt_others(tmp_path: Path) -> None:
    """Those of obstore inherit it from the thread of the loop, in which they begin."""

    async def policy() -> int:
        return os.sched_getscheduler(0)

    before = os.sched_getscheduler(0)
    assert wait_for(policy()) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before

    (tmp_path / "a").write_bytes(b"abcd")
    done = subprocess.run([sys.executable, "-c", _FETCH, str(tmp_path)], check=True, stdout=subprocess.PIPE, text=True)
    policies = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    of_obstore = {int(policy) for name, policy in policies if name.startswith("tokio")}
    assert of_obstore == {os.SCHED_BATCH}
