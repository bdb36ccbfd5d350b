"""One process at a time writes a run folder.

    RUN/.lock       locked by the kernel (`flock`) for as long as the process trains; its text names host and process

The lock ends with the process, however the process ends, so a run that was killed can be resumed at once. The text is
only for messages: it is emptied when a run ends in an orderly way, and what a killed process left is overwritten.

Between machines the lock holds as far as the file system's locks do: on NFS (from Linux 2.6.12, unless mounted with
`nolock` or `local_lock`), Lustre (mounted with `flock`), GPFS, BeeGFS and CephFS. Where a file system has no locks, or
locks of one machine only, `RunLock.limits` says so, and a scheduler that starts a run twice is not noticed.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import socket
import stat
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.errors import ConfigError, ResumeError

_MAX_BYTES = 4096  # of the text
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_WAIT_S, _POLL_S = 1.0, 0.05  # for the text of a process that has the lock since a moment ago
_ANOTHER_NAME = "choose another name: --set name=..."


class _Owner(BaseModel):
    """Who holds the lock, as the file says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    host: str = Field(pattern=r"^[A-Za-z0-9._-]{1,253}$")
    pid: int = Field(ge=1, lt=1 << 31)
    since: str = Field(pattern=r"^[0-9T:+.-]{1,40}$")

    def is_known_dead(self) -> bool:
        """Return whether the process was one of this machine, and is gone."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class RunLock:
    """The exclusive right to write a run folder, until `release` or the end of the process.

    Attributes:
        limits: Why the lock does not keep out every other process, in one line; None where it does.
    """

    def __init__(self, run: Path) -> None:
        """Take the lock of a run folder.

        Args:
            run: The run folder, which exists.

        Raises:
            ResumeError: Another process holds the lock.
            ConfigError: The folder is not writable, or something else has the name of the lock file.
        """
        path = RunFolder(run).lock
        self.limits: str | None = None
        self._descriptor = _open(path)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.limits = _limits_of_mount(run)
            except BlockingIOError:
                raise _refusal(run, path) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise ConfigError(f"{path}: cannot be locked: {error.strerror or error}") from None
                self.limits = f"the file system of {run} has no locks: nothing keeps a second process from this run"
            self._write_owner()
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Give the lock back; may be called twice."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.ftruncate(descriptor, 0)
            except OSError:
                pass  # a full disk or a lost server: the text is only for messages
            finally:
                os.close(descriptor)

    def _write_owner(self) -> None:
        owner = _Owner.model_construct(
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, owner.model_dump_json().encode(), 0)
            os.fsync(self._descriptor)  # another machine reads it from the server
        except OSError:
            pass  # a full disk: the lock holds without the text


def claim_run(run: Path, *, resume: bool) -> RunLock:
    """Make a run folder, or find it, and take its lock. One process does it for all.

    Args:
        run: The run folder.
        resume: Whether the folder may exist already.

    Returns:
        The lock, to be released when the last file of the run is written.

    Raises:
        ConfigError: The folder exists and `resume` is off, or it cannot be made.
        ResumeError: Another process writes the folder.
    """
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        run.mkdir(exist_ok=resume)  # of two fresh runs, the kernel lets one make the folder
    except FileExistsError:
        if not run.is_dir():
            raise ConfigError(f"{run}: a file, not a folder", hint=_ANOTHER_NAME) from None
        raise ConfigError(
            f"{run}: the run folder exists", hint="continue it with --resume, or choose another name: --set name=..."
        ) from None
    except OSError as error:
        raise ConfigError(f"{run}: {error.strerror or error}") from None
    return RunLock(run)


def _open(path: Path) -> int:
    """Open the lock file, which the creator of a run folder from elsewhere may have replaced by anything."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        why = "a link, not a file" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise ConfigError(f"{path}: {why}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise ConfigError(f"{path}: not a file of its own", hint="delete it")
    return descriptor


def _refusal(run: Path, path: Path) -> ResumeError:
    """Return the error for a folder that another process writes."""
    end = time.monotonic() + _WAIT_S
    owner = _read_owner(path)
    while (owner is None or owner.is_known_dead()) and time.monotonic() < end:
        time.sleep(_POLL_S)
        owner = _read_owner(path)
    who, since = "another process", ""
    if owner is not None:
        who, since = f"process {owner.pid} on {owner.host}", f" since {owner.since}"
    return ResumeError(
        f"{run}: {who} is training in this folder{since}",
        hint="wait for its end or stop it; another run needs another name: --set name=...",
    )


def _read_owner(path: Path) -> _Owner | None:
    try:
        with path.open("rb") as file:
            return _Owner.model_validate_json(file.read(_MAX_BYTES))
    except (OSError, ValidationError):
        return None


def _limits_of_mount(run: Path) -> str | None:
    """Return a note if the locks of a folder's file system do not reach other machines that share it."""
    try:
        device = run.stat().st_dev
        with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as file:
            kind = next((found for line in file if (found := has_local_locks(line, device))), None)
    except OSError:
        return None
    if kind is None:
        return None
    return f"{run} lies on {kind}, mounted with locks of this machine alone: a second process on another is not noticed"


def has_local_locks(line: str, device: int) -> str | None:
    """Return the kind of a network file system whose locks stay on this machine, or None.

    Args:
        line: A line of /proc/self/mountinfo.
        device: The number of the device (`st_dev`) that is looked for; other lines give None.
    """
    mount, _, source = line.partition(" - ")
    fields, described = mount.split(), source.split()
    if len(fields) < 6 or len(described) < 3 or fields[2] != f"{os.major(device)}:{os.minor(device)}":
        return None
    kind, options = described[0], {*described[-1].split(","), *fields[5].split(",")}
    if kind in ("nfs", "nfs4") and options & {"nolock", "local_lock=all", "local_lock=flock"}:
        return kind
    if kind == "lustre" and "flock" not in options:
        return kind
    return None
