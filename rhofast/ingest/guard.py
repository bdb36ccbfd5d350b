"""A process apart, for looking into files that nobody vouches for: on a hostile one a library may crash or never end.

What it is not: a sandbox against malice. It only keeps one file from ending the work on all others.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from rhofast.ingest.probe import Refusal, RefusedError

Result = TypeVar("Result")


class Guard:
    """Runs functions in one other process, which is begun when it is first needed and again after it died. Not
    thread-safe. It ends with this process, however that ends."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def call(self, function: Callable[..., Result], *arguments: Any, seconds: float) -> Result:
        """What the function returns. Raises what it raises, and RefusedError where it ends the process, or takes longer
        than `seconds`."""
        if self._pipe is None:
            self._begin()
        assert self._pipe is not None
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
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _begin(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _serve(pipe: Connection) -> None:
    """Call what is asked for until nobody is left to ask. Ctrl-C is the asker's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (False, function(*arguments))
        except Exception as error:  # noqa: BLE001  the asker raises it
            answer = (True, error)
        pipe.send(answer)
