"""Every end ends: a lost terminal, a full disk, a read or an open that hangs. What was trained is saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rhofast.checkpoint.checkpoint import latest_checkpoint
from rhofast.data.format.dataset import ShardSet
from tests.helpers.shards import ROOT

# Runs the program after a change that a test makes to it: argv[1] is Python, the rest the command line.
PROGRAM = """
import sys
change = sys.argv.pop(1)
exec(change)
from rhofast.cli.app import main
main()
"""
HANG = (
    "import os, time\nfrom rhofast.data.format.reader import Reader\nfrom rhofast.data.format.dataset import ShardSet\n"
)
HANG_IN_READ = (
    HANG
    + """
count = [0]
pread = os.pread
def hang(*given):
    count[0] += 1
    while count[0] > 40:
        time.sleep(1)
    return pread(*given)
os.pread = hang
"""
)
HANG_IN_OPEN = (
    HANG
    + """
def hang(self, name):
    while True:
        time.sleep(1)
ShardSet.open = hang
"""
)
NO_DESCRIPTORS = (
    HANG
    + """
import errno
count = [0]
pread = os.pread
def refuse(*given):
    count[0] += 1
    if count[0] > 40:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return pread(*given)
os.pread = refuse
"""
)


def command(shards: ShardSet, out: Path, *settings: str, change: str = "") -> list[str]:
    values = [
        *("name=run", f"out={out}", f"data.train={shards.root}", "data.threads=2", "data.decode_threads=1"),
        *("clips.num_frames=2", "clips.frame_stride=2", "clips.fps=12", "augment.size=16"),
        *('backbone.name="slow_r18"', "backbone.width=4", 'method.name="byol"', "method.hidden=16", "method.out=8"),
        *("train.batch_size=4", "train.steps=8", "train.log_steps=1", "train.trackers=[]", *settings),
    ]
    overrides = [word for value in values for word in ("--set", value)]
    return [sys.executable, "-c", PROGRAM, change, "train", "byol_slow_r50_8x8_rho2", *overrides]


@contextmanager
def started(words: list[str], **streams: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def lines(out: Path, kind: str) -> list[dict[str, object]]:
    every = map(json.loads, (out / "run" / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if line["kind"] == kind]


def saved_step(out: Path) -> int:
    newest = latest_checkpoint(out / "run")
    assert newest is not None
    return int(newest.name.rpartition("-")[2])


def test_a_run_goes_on_when_nobody_reads_its_output(shards: ShardSet, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with started(command(shards, tmp_path), stdout=writer, stderr=writer) as process:
        os.close(writer)
        os.close(reader)
        assert process.wait(120) == 0
    assert [line["step"] for line in lines(tmp_path, "step")] == list(range(1, 9)) and saved_step(tmp_path) == 8


def test_a_run_goes_on_when_its_output_is_full_or_closed(shards: ShardSet, tmp_path: Path) -> None:
    with (
        open("/dev/full", "w") as full,  # noqa: PTH123
        started(command(shards, tmp_path), stdout=subprocess.DEVNULL, stderr=full) as process,
    ):
        assert process.wait(120) == 0
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command(shards, tmp_path / "b")]
    with started(shell) as process:
        assert process.wait(120) == 0
    assert saved_step(tmp_path) == saved_step(tmp_path / "b") == 8


# The tests themselves may run where it is ignored.
HANG_UP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away_saves_the_run_unless_it_is_ignored(
    shards: ShardSet, tmp_path: Path, ignored: bool
) -> None:
    steps = 12 if ignored else 10**6
    words = command(shards, tmp_path, f"train.steps={steps}", change="" if ignored else HANG_UP)
    if ignored:
        words = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words]
    with started(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        end = time.monotonic() + 60
        while not (metrics.exists() and lines(tmp_path, "step")) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == (0 if ignored else 75)
    assert saved_step(tmp_path) == len(lines(tmp_path, "step")) and (not ignored or saved_step(tmp_path) == 12)


@pytest.mark.parametrize(
    ("change", "message", "code", "steps"),
    [
        (HANG_IN_READ, "the loader stalled: stage 'read' has worked on one item", 2, 1),
        (HANG_IN_OPEN, "the loader stalled: stage 'read' has worked on one item", 2, 0),
        (NO_DESCRIPTORS, "Too many open files, for", 75, 1),
    ],
    ids=["read", "open", "descriptors"],
)
def test_what_hangs_or_is_refused_ends_the_run_in_a_line_and_saves_it(
    shards: ShardSet, tmp_path: Path, change: str, message: str, code: int, steps: int
) -> None:
    words = command(shards, tmp_path, "train.steps=1000", "data.timeout_s=3", change=change)
    with started(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        _, text = process.communicate(timeout=60)
    errors = [line for line in text.decode().splitlines() if "error:" in line]
    assert process.returncode == code and len(errors) == 1 and message in errors[0]
    assert b"Traceback" not in text
    if steps:
        assert saved_step(tmp_path) == len(lines(tmp_path, "step")) >= steps
        assert all(line["bad_samples"] == 0 for line in lines(tmp_path, "step"))


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    words = [sys.executable, "-m", "rhofast", "configs", "show", "demo"]
    reader, writer = os.pipe()
    with started(words, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        os.close(reader)
        _, text = process.communicate(timeout=60)
    assert text == b"" and process.returncode == 1
