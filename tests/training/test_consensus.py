"""What ranks agree on: every rank stops after the same step, and knows the same of bad ones."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from rhofast.distributed.collectives import raise_on_lost_ranks
from rhofast.distributed.process_group import join_again
from rhofast.errors import RankLostError
from rhofast.training.consensus import BAD_GRADIENT, BAD_LOSS, OK, BadStep, StepConsensus, StepStatus
from rhofast.training.preemption import PreemptionHandler


def flag(value: int) -> torch.Tensor:
    return torch.tensor(value)


def test_one_process_knows_at_once() -> None:
    consensus = StepConsensus(10)
    for step, seen, in_a_row in [(1, OK, 0), (2, BAD_LOSS, 1), (3, BAD_GRADIENT, 2)]:
        consensus.submit(step, stop=False, flag=flag(seen))
        assert consensus.poll() == StepStatus(
            stop=False, consecutive_bad=in_a_row, last_bad_step=None if seen == OK else step
        )
    assert consensus.bad_steps(consensus.poll()) == [BadStep(step=2, ranks=(0,)), BadStep(step=3, ranks=())]
    consensus.submit(4, stop=True, flag=flag(OK))
    assert consensus.poll() == StepStatus(stop=True, consecutive_bad=0, last_bad_step=3)


def _agree(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    consensus, seen = StepConsensus(20), []
    for step in range(1, 6):
        own = BAD_LOSS if (rank, step) in ((1, 2), (0, 3)) else OK
        consensus.submit(step, stop=rank == 1 and step >= 4, flag=flag(own))
        if step % 2 == rank:
            time.sleep(0.02)  # hosts that are not in step see the same
        seen.append(consensus.poll())
        if step == 3:
            bad = consensus.bad_steps(consensus.finish())
    torch.save(
        {"seen": [(v.stop, v.consecutive_bad) for v in seen], "bad": [(b.step, b.ranks) for b in bad]},
        f"{results}{rank}",
    )
    consensus.finish()
    dist.destroy_process_group()


def test_two_processes_know_the_same_one_step_later(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_agree, args=(str(tmp_path / "store"), str(tmp_path / "result")), nprocs=2)
    one, other = (torch.load(tmp_path / f"result{rank}") for rank in (0, 1))
    assert one == other
    assert one["seen"] == [(False, 0), (False, 0), (False, 1), (False, 2), (True, 0)]  # of step 3 they know both
    assert one["bad"] == [(2, (1,)), (3, (0,))]


def _vanish(rank: int, store: str, results: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    consensus = StepConsensus(30)
    consensus.submit(1, stop=False, flag=flag(OK))
    consensus.finish()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    try:
        for step in range(2, 9):
            consensus.submit(step, stop=False, flag=flag(OK))
            consensus.poll()
    except RankLostError as error:
        torch.save({"seconds": time.monotonic() - began, "text": str(error)}, results)
    os._exit(0)


def test_a_process_that_vanished_is_noticed_in_bounded_time(tmp_path: Path) -> None:
    context = torch.multiprocessing.spawn(
        _vanish, args=(str(tmp_path / "store"), str(tmp_path / "result")), nprocs=2, join=False
    )
    for process in context.processes:
        process.join(60)
    result = torch.load(tmp_path / "result")
    assert result["seconds"] < 30 and "another process of this run ended" in result["text"]
    assert "--resume" in result["text"]


def _start(rank: int, port: int, attempt: int) -> None:
    """As a launcher's worker: the launcher's store is this test's, and outlives the workers."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(place, TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT=str(attempt))
    join_again(20)
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    total = torch.ones(())
    dist.all_reduce(total)
    os._exit(0 if attempt and total == 2 else 7)  # the first ones fail


def test_processes_that_are_started_again_do_not_call_at_the_old_ones_addresses() -> None:
    """`--max_restarts` with a store that lives on, as that of `accelerate launch` does."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for attempt, code in ((0, 7), (1, 0)):
        context = torch.multiprocessing.spawn(_start, args=(store.port, attempt), nprocs=2, join=False)
        for process in context.processes:
            process.join(60)
        assert [process.exitcode for process in context.processes] == [code, code]


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="Timed out"), raise_on_lost_ranks():
        raise RuntimeError("Timed out, but there is only one process")


def test_ctrl_c_that_a_launcher_repeats_is_one_and_a_later_one_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("rhofast.training.preemption.time.monotonic", lambda: now[0])
    with PreemptionHandler(None) as preemption:
        assert preemption.reason is None
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.stop_requested and preemption.reason == "SIGINT"
        now[0] = 5.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


_CHILD = """
import sys, time
from rhofast.training.preemption import PreemptionHandler
with PreemptionHandler(None) as preemption:
    print("ready", flush=True)
    for _ in range(200):
        if preemption.stop_requested:
            break
        time.sleep(0.05)
    print(preemption.reason, flush=True)
"""
_LAUNCHER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]]).wait()
"""


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"])
def test_processes_whose_launcher_was_killed_stop(variable: str) -> None:
    environment = {**os.environ, variable: "x"}
    command = [sys.executable, "-c", _LAUNCHER, _CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        launcher.kill()
        assert launcher.stdout.read() == "the launcher has ended\n"


def test_a_process_outlives_the_shell_that_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(variable, raising=False)
    preemption = PreemptionHandler(None)
    monkeypatch.setattr("rhofast.training.preemption.os.getppid", lambda: 1)
    assert preemption.reason is None


def test_the_time_is_up_after_max_hours() -> None:
    preemption = PreemptionHandler(1e-9)
    time.sleep(1e-3)
    assert preemption.reason == "max_hours" and not PreemptionHandler(1.0).stop_requested
