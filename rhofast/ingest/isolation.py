"""A process apart, for looking into files that nobody vouches for: on a hostile one a library may crash or never end.

What it is not: a sandbox against malice. It only keeps one file from ending the work on all others.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

import rhofast
from rhofast.errors import IngestError
from rhofast.ingest.probe import Refusal, RefusedError

Result = TypeVar("Result")

_START_S = 120.0  # on a machine that is busy
_SERVE = "import sys; from rhofast.ingest.isolation import serve; serve(int(sys.argv[1]))"


class IsolatedProcess:
    """Runs functions in one other process, which is begun when it is first needed and again after it died. Not
    thread-safe. The other process ends with this one, however that ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Any = None

    def call(self, function: Callable[..., Result], *arguments: Any, seconds: float) -> Result:
        """What the function, one of a module, returns. Raises what it raises; RefusedError where it ends the process,
        or takes longer than `seconds`; IngestError where there cannot be such a process."""
        if self._process is None:
            self._begin()
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(seconds):
                self.close()
                raise RefusedError(Refusal.TIMEOUT, f"after {seconds:g} s")
            failed, value = self._pipe.recv()
        except (EOFError, OSError):
            self.close()
            raise RefusedError(Refusal.DAMAGED, "it crashes the library that looks into it") from None
        if failed:
            raise value
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the other process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._pipe.close()
        self._process = self._pipe = None

    def _begin(self) -> None:
        self._pipe, theirs = Pipe()
        paths = [str(Path(rhofast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            if self._pipe.poll(_START_S) and self._pipe.recv() == "ready":
                return
        except EOFError:
            pass
        self.close()
        raise IngestError("the process that looks into videos does not start", hint="is there memory left?")


def serve(descriptor: int) -> None:
    """In the other process: call what is asked for until nobody is left to ask. Ctrl-C is the asker's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(descriptor)
    pipe.send("ready")
    while True:
        try:
            asked = pipe.recv_bytes()
        except EOFError:
            return
        try:
            function, arguments = pickle.loads(asked)
            answer = (False, function(*arguments))
        except Exception as error:  # noqa: BLE001  the asker raises it
            answer = (True, error)
        pipe.send(answer)
