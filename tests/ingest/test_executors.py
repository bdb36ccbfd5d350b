"""Every job runs once, wherever it runs and whatever dies; its exceptions arrive unchanged.

Ray has a process of its own here, this file run as a script, so that its state and its warnings stay out of the others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rhofast.errors import DependencyError, IngestError
from rhofast.ingest.executors import LocalProcesses, tick
from rhofast.ingest.ray_cluster import RayCluster

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


def two_ticks(number: int) -> int:
    tick(10)
    tick(number)
    return number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise IngestError("three", hint="leave it out")
    return number


# ---- processes of this machine ----


def test_jobs_are_drawn_as_they_are_needed_and_all_are_run() -> None:
    drawn: list[int] = []
    results = LocalProcesses(1).run(abs, (drawn.append(n) or -n for n in range(40)))
    first = next(results)
    assert len(drawn) <= 4
    assert sorted([first, *results]) == list(range(40))


def test_ticks_are_complete_when_the_last_result_is() -> None:
    seen: list[tuple[int, int]] = []
    results = list(LocalProcesses(2).run(two_ticks, range(10), on_ticks=lambda *totals: seen.append(totals)))
    assert sorted(results) == list(range(10))
    assert seen == sorted(seen)
    assert seen[-1] == (20, 10 * 10 + sum(range(10)))


def test_what_a_job_raises_arrives_as_itself() -> None:
    with pytest.raises(IngestError, match=r"three \(leave it out\)"):
        list(LocalProcesses(1).run(fail_at_three, range(100)))


def test_a_dead_worker_is_one_error() -> None:
    with pytest.raises(IngestError, match="worker process died"):
        list(LocalProcesses(1).run(os._exit, [3]))


UNGUARDED = """
from rhofast.errors import IngestError
from rhofast.ingest.executors import LocalProcesses
try:
    list(LocalProcesses(1).run(abs, [1]))
except IngestError as error:
    print(error)
"""


def test_a_script_that_workers_cannot_import_is_told_how(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert 'put the call under `if __name__ == "__main__":`' in done.stdout.splitlines()[-1]


# ---- Ray ----


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"pip install 'rhofast\[ray\]'"):
        list(RayCluster().run(abs, [1]))


JOBS = 12
HANGING = 5


class Work:
    """What the jobs of the script do, in a folder that all nodes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hanging_node = folder / "node"

    def make(self, number: int) -> int:
        """A file and two ticks; job HANGING goes no further than many ticks on the first node that it meets."""
        import ray

        if number == HANGING and not self.hanging_node.exists():
            self.hanging_node.write_text(ray.get_runtime_context().get_node_id())
            for _ in range(100):
                tick(1000)
                time.sleep(0.3)
            raise AssertionError("its node was to be taken away")
        time.sleep(0.1)
        two_ticks(number)
        (self.folder / f"{number}.bin").write_bytes(content(number))
        return number

    def kill_once(self, number: int) -> int:
        mark = self.folder / f"killed-{number}"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def kill_always(self, number: int) -> int:
        if number == 1:
            with (self.folder / "deaths").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def missing_file(self, number: int) -> bytes:
        return (self.folder / f"missing-{number}").read_bytes()

    def endless(self, number: int) -> int:
        time.sleep(100 if number else 0)
        return number


def content(number: int) -> bytes:
    return bytes([number]) * 1000


def on_two_nodes(folder: Path) -> dict[str, Any]:
    """All that the tests below want to know of Ray, from one cluster."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    told: dict[str, Any] = {"session": cluster.head_node.get_session_dir_path()}
    nodes = {node.node_id: node for node in [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]}
    work, results, drawn = Work(folder), list[int](), list[int]()

    def jobs() -> Iterator[int]:
        for number in range(JOBS):
            drawn.append(number)
            yield number

    def on_ticks(*totals: int) -> None:
        told["ticks"] = totals
        if totals[1] >= 1000 and "live" not in told:  # of the hanging job, while it is under way
            told["live"] = totals
            cluster.remove_node(nodes[work.hanging_node.read_text()], allow_graceful=False)

    for result in RayCluster(cluster.address).run(work.make, jobs(), on_ticks=on_ticks):
        told.setdefault("drawn_at_first", len(drawn))
        results.append(result)
    told |= {"results": results, "left_connected": ray.is_initialized()}

    os.environ["RAY_ADDRESS"] = cluster.address
    told["killed_once"] = sorted(RayCluster().run(work.kill_once, range(2)))
    ray.init(address=cluster.address, log_to_driver=False)
    for name, function in {"own": fail_at_three, "system": work.missing_file, "deadly": work.kill_always}.items():
        try:
            list(RayCluster(workers=2).run(function, range(5)))
        except (IngestError, OSError) as error:
            told[name] = [type(error).__name__, str(error)]
    told["kept_connected"] = ray.is_initialized()

    endless = RayCluster(workers=3).run(work.endless, range(5))
    told["before_the_endless"] = next(endless)
    begun = time.monotonic()
    endless.close()
    told["after_the_endless"] = list(RayCluster().run(abs, [-1]))
    told["seconds_to_stop"] = time.monotonic() - begun
    ray.shutdown()
    cluster.shutdown()
    try:
        list(RayCluster(cluster.address).run(abs, [1]))
    except IngestError as error:
        told["nobody_there"] = str(error)
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((folder / "told.json").read_text()))


@needs_ray
def test_a_node_lost_at_work_loses_no_job(told: dict[str, Any], folder: Path) -> None:
    assert sorted(told["results"]) == list(range(JOBS))
    assert [(folder / f"{number}.bin").read_bytes() for number in range(JOBS)] == [*map(content, range(JOBS))]
    assert told["drawn_at_first"] <= 5


@needs_ray
def test_ticks_are_live_and_those_of_a_lost_attempt_are_taken_back(told: dict[str, Any]) -> None:
    assert told["live"][1] >= 1000
    assert told["ticks"] == [2 * JOBS, 10 * JOBS + sum(range(JOBS))]


@needs_ray
def test_a_killed_process_of_a_node_loses_no_job(told: dict[str, Any]) -> None:
    assert told["killed_once"] == [0, 1]


@needs_ray
def test_a_job_that_kills_every_process_is_one_error_that_names_it(told: dict[str, Any], folder: Path) -> None:
    name, message = told["deadly"]
    assert name == "IngestError" and message.startswith("1: 4 processes in a row died")
    assert (folder / "deaths").read_text() == "xxxx"


@needs_ray
def test_what_a_job_raises_on_a_node_arrives_as_itself(told: dict[str, Any]) -> None:
    assert told["own"] == ["IngestError", "three (leave it out)"]
    assert told["system"][0] == "FileNotFoundError" and "missing-" in told["system"][1]


@needs_ray
def test_leaving_early_stops_what_is_under_way(told: dict[str, Any]) -> None:
    assert told["before_the_endless"] == 0 and told["after_the_endless"] == [1]
    assert told["seconds_to_stop"] < 20


@needs_ray
def test_a_session_is_ended_by_who_began_it(told: dict[str, Any]) -> None:
    assert not told["left_connected"] and told["kept_connected"]


@needs_ray
def test_a_cluster_that_is_not_there_is_one_error(told: dict[str, Any]) -> None:
    assert "Connection refused" in told["nobody_there"]


@needs_ray
def test_no_process_of_ray_is_left(told: dict[str, Any]) -> None:
    commands = [path for path in Path("/proc").glob("[0-9]*/cmdline") if told["session"] in read(path)]
    assert not commands


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # of a process that has just ended
        return ""


if __name__ == "__main__":
    (Path(sys.argv[1]) / "told.json").write_text(json.dumps(on_two_nodes(Path(sys.argv[1]))))
