"""Run a reader on many hostile files, in a process of its own, within limits of time and memory.

    seed --make--> a file, a folder, or bytes --reader, in the worker--> a value or a RhofastError: right
                                                                       anything else: a Failure

A case is right if the reader returns or raises a RhofastError. A traceback, a signal, a hang, or more memory than the
limit is a failure, which names the seed and keeps the case. One worker runs case after case; a new one is started after
a crash or a hang.

    python -m tests.fuzz.harness module:function PATH      run a reader on one file that was kept
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from rhofast.errors import RhofastError
from tests.helpers.shards import ROOT

Make = Callable[[np.random.Generator, Path], Path | bytes]
"""Make one case: write it into an empty folder and return its path, or return bytes that the reader takes itself."""

SECONDS = 10.0
MEMORY = 2 << 30  # bytes
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Failure:
    """A case that the reader did not survive."""

    seed: int
    case: Path
    what: str

    def __str__(self) -> str:
        return f"seed {self.seed}, kept in {self.case}:\n{self.what}"


def run_cases(
    worker: Worker,
    reader: str,
    make: Make,
    *,
    seeds: Iterable[int],
    folder: Path,
    seconds: float = SECONDS,
    warm: Path | None = None,
) -> list[Failure]:
    """Run a reader on one case per seed.

    Args:
        worker: The process, which may have run other readers before.
        reader: `module:function`, called with the path or the bytes of a case.
        make: Makes the case of a seed.
        seeds: The seeds.
        folder: Where cases are written; those that failed remain.
        seconds: Longest time for a case.
        warm: An honest case that each process runs first, without a limit, so that it has imported what it needs.

    Returns:
        The failures, in the order of their seeds.
    """
    failures = []
    for seed in seeds:
        place = folder / f"{seed:06d}"
        place.mkdir(parents=True)
        case = make(np.random.default_rng(seed), place)
        if isinstance(case, bytes):
            (place / "case.bin").write_bytes(case)
        path = case if isinstance(case, Path) else place / "case.bin"
        worker.prepare(reader, warm)
        what = worker.run(reader, path, isinstance(case, bytes), seconds)
        if what is None:
            shutil.rmtree(place)
        else:
            failures.append(Failure(seed, place, what))
    return failures


@dataclass
class Worker:
    """A process that runs readers, and is started again if it ends.

    Attributes:
        memory: Most resident memory. Of addresses it may have a few times as much.
        imports: Modules that the process imports first; the addresses that they reserve are not counted.
    """

    memory: int = MEMORY
    imports: tuple[str, ...] = ("torch",)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    printed: IO[bytes] = field(init=False)
    prepared: set[str] = field(default_factory=set, init=False)

    def prepare(self, reader: str, warm: Path | None) -> None:
        """Import a reader, and run an honest case, unless the process has done so."""
        if self.process is None:
            self._start()
        if reader not in self.prepared:
            what = self.run(reader, warm, False, _START_SECONDS)
            assert what is None and self.process is not None, f"{reader} fails with the honest case: {what}"
            self.prepared.add(reader)

    def run(self, reader: str, case: Path | None, as_bytes: bool, seconds: float) -> str | None:
        """Return what went wrong with a case, or None. Without a case, the reader is only imported."""
        process = self.process
        assert process is not None and process.stdin is not None
        request = {"reader": reader, "case": None if case is None else str(case), "bytes": as_bytes}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        reply = self._reply(seconds)
        if reply is None:
            self.close()
            return f"not done after {seconds:g} s"
        if not reply:
            return self._death()
        result: dict[str, Any] = json.loads(reply)
        what: str | None = result["what"]
        if what is None and result["peak"] > self.memory:
            what = f"took {result['peak'] / 2**30:.2f} GiB"
        if what is not None and "MemoryError" in what:
            self.close()  # libraries do not always recover
        return what

    def close(self) -> None:
        if self.process is not None:
            self._death()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.fuzz.harness", "--serve", str(self.memory), *self.imports]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "2"}
        self.prepared.clear()
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.printed
        )
        if self._reply(_START_SECONDS) != b"ready\n":
            raise RuntimeError(f"the worker does not start: {self._death()}")

    def _reply(self, seconds: float) -> bytes | None:
        """Return the worker's next reply; None if none came in time, nothing if it died."""
        assert self.process is not None and self.process.stdout is not None
        # A reply is written at once: when its first byte is there, so is the rest.
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return None
        return self.process.stdout.readline()

    def _death(self) -> str:
        assert self.process is not None
        process, self.process = self.process, None
        if process.poll() is None and select.select([process.stdout], [], [], 0)[0]:
            process.wait(5)  # it closed its end and is about to end
        process.kill()
        process.communicate()
        self.printed.seek(0)
        printed = self.printed.read().decode(errors="replace")
        self.printed.close()
        return f"the process ended with status {process.returncode}\n{printed[-2000:]}"


def load(reader: str) -> Callable[[Any], object]:
    """Return the function `module:function`."""
    module, _, name = reader.partition(":")
    function: Callable[[Any], object] = getattr(importlib.import_module(module), name)
    return function


def run_one(function: Callable[[Any], object], case: Any) -> str | None:
    """Return the traceback of anything but a RhofastError."""
    try:
        function(case)
    except RhofastError as error:
        lines = str(error).splitlines()
        return None if len(lines) == 1 else f"the error is not one line but {len(lines)}: {error!r}"
    except BaseException:  # noqa: BLE001 (SystemExit and KeyboardInterrupt are failures too)
        return traceback.format_exc()
    return None


def serve(memory: int, imports: Iterable[str]) -> None:
    """Run the cases that are named on standard input; reply with what went wrong and the peak of resident memory."""
    for name in imports:
        importlib.import_module(name)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what readers and libraries print is no reply
    faulthandler.enable()
    limit = _status("VmSize") + 4 * memory  # threads reserve addresses that they do not use
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies.write(b"ready\n")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        function, what = load(request["reader"]), None
        Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
        if request["case"] is not None:
            case = Path(request["case"])
            what = run_one(function, case.read_bytes() if request["bytes"] else case)
        replies.write(json.dumps({"what": what, "peak": _status("VmHWM")}).encode() + b"\n")


def _status(name: str) -> int:
    """Return a value of /proc/self/status in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(int(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(run_one(load(sys.argv[1]), Path(sys.argv[2])))
