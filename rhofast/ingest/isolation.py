"""A separate process for opening untrusted video files, on which a library may crash or never return.

It is not a sandbox against malicious code. It only keeps one file from ending the work on all others.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

import rhofast
from rhofast.errors import IngestError
from rhofast.ingest.machine_errors import UnreadableError
from rhofast.ingest.probe import Refusal, RefusedError
from rhofast.storage.outages import set_outage_handler, tell_outage

ResultT = TypeVar("ResultT")

_START_S = 120.0  # enough on a busy machine
_END_S = 5.0  # from the closed pipe to the exit code
_STOPPED = (-signal.SIGKILL, -signal.SIGTERM)
_SERVE = "import sys; from rhofast.ingest.isolation import serve; serve(int(sys.argv[1]))"


class IsolatedProcess:
    """Runs functions in one child process, which is started at the first call and again after it has died.

    It is not thread-safe. The child process ends when this process ends, whatever the reason.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Any = None

    def call(self, function: Callable[..., ResultT], *arguments: Any, seconds: float) -> ResultT:
        """Call a function in the child process and return its result.

        Args:
            function: A function at the top level of a module.
            *arguments: Its arguments; they must be picklable.
            seconds: Time limit of the call.

        Returns:
            What the function returned.

        Raises:
            Exception: Whatever the function raised.
            UnreadableError: There was no memory for the call.
            RefusedError: The call ended the child process, or took longer than `seconds`.
            IngestError: The child process cannot be started, or was stopped from outside (out of memory).
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send((function, arguments))
            end, news = time.monotonic() + seconds, True
            while news:
                if not self._pipe.poll(max(0.0, end - time.monotonic())):
                    self.close()
                    raise RefusedError(Refusal.TIMEOUT, f"after {seconds:g} s")
                news, failed, value = self._pipe.recv()
                if news:
                    tell_outage(*value)
        except (EOFError, OSError):
            stopped = self._was_stopped()
            self.close()
            if stopped:
                raise IngestError(
                    "the process that reads videos was stopped (killed, or out of memory)",
                    hint="run the same command again: it continues",
                ) from None
            raise RefusedError(Refusal.DAMAGED, "the library that reads it crashes") from None
        if isinstance(value, MemoryError):
            raise UnreadableError("Cannot allocate memory")
        if failed:
            raise value
        return value  # type: ignore[no-any-return]

    def _was_stopped(self) -> bool:
        """Return whether somebody else ended the child process, which has closed its end of the pipe."""
        try:
            return self._process is not None and self._process.wait(_END_S) in _STOPPED
        except subprocess.TimeoutExpired:
            return False

    def close(self) -> None:
        """Kill the child process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._pipe.close()
        self._process = self._pipe = None

    def _start(self) -> None:
        self._pipe, child_end = Pipe()
        paths = [str(Path(rhofast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(child_end.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=(child_end.fileno(),),
            stdin=subprocess.DEVNULL,
        )
        child_end.close()
        try:
            if self._pipe.poll(_START_S) and self._pipe.recv() == "ready":
                return
        except EOFError:
            pass
        self.close()
        raise IngestError(
            "the isolated process that reads videos did not start", hint="check that the machine has free memory"
        )


def serve(descriptor: int) -> None:
    """Run calls in the child process until the parent closes its end of the pipe; Ctrl-C is left to the parent.

    Args:
        descriptor: File descriptor of the child's end of the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(descriptor)

    def pass_on(*news: Any) -> None:
        with suppress(OSError):  # the parent has ended
            pipe.send((True, False, news))

    set_outage_handler(pass_on)
    pipe.send("ready")
    while True:
        try:
            request = pipe.recv_bytes()
        except (EOFError, OSError):  # the parent has ended, perhaps with an answer unread
            return
        try:
            function, arguments = pickle.loads(request)
            answer = (False, False, function(*arguments))
        except Exception as error:  # noqa: BLE001  the parent raises it
            answer = (False, True, error)
        try:
            pipe.send(answer)
        except OSError:
            return
