"""One process at a time has a run folder; the others are told which one, and a dead one holds nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.checkpoint.run_lock import RunLock, claim_run, has_local_locks
from rhofast.errors import ConfigError, ResumeError

# Waits for a line, claims the folder, says how that went, and holds it until its input ends.
_CLAIM = """
import sys
from pathlib import Path
from rhofast.checkpoint.run_lock import claim_run
from rhofast.errors import RhofastError
print("ready", flush=True)
sys.stdin.readline()
try:
    lock = claim_run(Path(sys.argv[1]), resume=sys.argv[2] == "resume")
except RhofastError as error:
    print(type(error).__name__, error, flush=True)
else:
    print("claimed", flush=True)
    sys.stdin.readline()
    lock.release()
"""


class Claimant:
    """A process that claims a run folder."""

    def __init__(self, run: Path, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CLAIM, str(run), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout

    def go(self) -> None:
        self.input.write("\n")
        self.input.flush()

    def said(self) -> str:
        return self.output.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.input.close()
        self.output.close()


@pytest.mark.parametrize("how", ["fresh", "resume"])
def test_one_of_many_processes_gets_the_folder_and_the_next_one_after_it_was_killed(tmp_path: Path, how: str) -> None:
    run = tmp_path / "runs" / "first"
    claimants = [Claimant(run, how) for _ in range(4)]
    try:
        assert {claimant.said() for claimant in claimants} == {"ready"}
        for claimant in claimants:
            claimant.go()
        said = [claimant.said() for claimant in claimants]
        (winner,) = (number for number, line in enumerate(said) if line == "claimed")
        others = [line for number, line in enumerate(said) if number != winner]
        pid = claimants[winner].process.pid
        owner = f"ResumeError {run}: process {pid} on {socket.gethostname()} is training in this folder since 20"
        expected = owner if how == "resume" else f"ConfigError {run}: the run folder exists"
        assert all(line.startswith(expected) for line in others), others
        with pytest.raises(ResumeError, match=f"process {pid} on "):
            claim_run(run, resume=True)
        claimants[winner].process.send_signal(signal.SIGKILL)
        claimants[winner].process.wait()
        claim_run(run, resume=True).release()
    finally:
        for claimant in claimants:
            claimant.end()


def test_a_released_lock_says_nothing_and_can_be_taken_again(tmp_path: Path) -> None:
    lock = claim_run(tmp_path / "run", resume=False)
    path = RunFolder(tmp_path / "run").lock
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()
    lock.release()
    assert path.read_bytes() == b""
    RunLock(tmp_path / "run").release()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff" * 5000, b'{"host": "a\\u001b[2J", "pid": 1, "since": "now"}'])
def test_whatever_the_lock_file_says_the_refusal_is_one_plain_line(tmp_path: Path, text: bytes) -> None:
    lock = claim_run(tmp_path / "run", resume=False)
    RunFolder(tmp_path / "run").lock.write_bytes(text)
    begin = time.monotonic()
    with pytest.raises(ResumeError) as caught:
        claim_run(tmp_path / "run", resume=True)
    assert caught.value.message == f"{tmp_path / 'run'}: another process is training in this folder"
    assert time.monotonic() - begin < 5
    lock.release()


def test_nothing_but_a_file_of_its_own_is_taken_for_the_lock(tmp_path: Path) -> None:
    path, precious = RunFolder(tmp_path).lock, tmp_path / "precious"
    precious.write_text("text")
    for make in (path.symlink_to, path.hardlink_to):
        make(precious)
        with pytest.raises(ConfigError, match=r"\.lock: "):
            RunLock(tmp_path)
        path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"\.lock: "):
        RunLock(tmp_path)
    assert precious.read_text() == "text"


def test_a_run_folder_that_is_a_file_or_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: a file, not a folder"):
        claim_run(tmp_path / "file", resume=True)
    with pytest.raises(ConfigError, match="file/run: "):
        claim_run(tmp_path / "file" / "run", resume=False)


@pytest.mark.parametrize("error", [38, 95, 37])
def test_a_file_system_without_locks_is_no_obstacle_but_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", flock)
    lock = RunLock(tmp_path)
    assert lock.limits is not None and "has no locks" in lock.limits
    lock.release()


def test_locks_that_stay_on_one_machine_are_recognized() -> None:
    line = "97 29 0:{} / /home rw,relatime shared:1 - {} server:/home {}"
    device = os.makedev(0, 52)
    cases = {
        ("52", "nfs4", "rw,vers=4.2,local_lock=none"): None,
        ("52", "nfs", "rw,vers=3,nolock"): "nfs",
        ("52", "nfs", "rw,vers=3,local_lock=flock"): "nfs",
        ("53", "nfs", "rw,nolock"): None,
        ("52", "lustre", "rw,flock,lazystatfs"): None,
        ("52", "lustre", "rw,localflock"): "lustre",
        ("52", "ext4", "rw"): None,
    }
    for case, kind in cases.items():
        assert has_local_locks(line.format(*case), device) == kind
    assert has_local_locks("nonsense", device) is None
