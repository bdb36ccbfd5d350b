"""Tell the trouble of the machine from a damaged file: no descriptors, no memory and lost mounts say nothing of it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from rhofast.errors import MachineError

Result = TypeVar("Result")

_OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.EINTR)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_OF_THE_MOUNT = (errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENETDOWN)
MACHINE_ERRNOS = frozenset((*_OF_THE_PROCESS, *_OF_THE_DISK, *_OF_THE_MOUNT))
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


def is_machine_error(error: BaseException) -> bool:
    """Return whether an error comes from the state of the machine and not from the file that was accessed."""
    return isinstance(error, OSError) and error.errno in MACHINE_ERRNOS


def with_patience(
    call: Callable[[], Result],
    what: str,
    *,
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Call a function again while the machine refuses what it needs.

    Args:
        call: The function.
        what: The file that it accesses, for the message.
        patience_s: Seconds after which the last error is final.
        sleep: Waits for a number of seconds.
        clock: Returns the time in seconds; a call that fails slowly counts, too.

    Returns:
        What `call` returns.

    Raises:
        MachineError: The machine still refuses after `patience_s`.
        OSError: Any other error of `call`, at once.
    """
    began, pause = clock(), _FIRST_PAUSE_S
    while True:
        try:
            return call()
        except OSError as error:
            if not is_machine_error(error):
                raise
            if (waited := clock() - began) >= patience_s:
                raise MachineError(
                    f"{what}: {error.strerror or error}, for {waited:.0f} s",
                    hint="nothing is wrong with the data: when the cause is gone, continue with --resume",
                ) from None
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
