"""What the command line prints to: output, errors, progress bars, and numbers as text."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rhofast.display.text import LINE, printable
from rhofast.storage.address import redacted
from rhofast.storage.outages import FIRST_S, set_outage_handler


def _open_closed_streams() -> None:
    """Open the standard streams that were closed before the program began, or the next file would take their place."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


class _Diagnostics(io.TextIOBase):
    """Standard error as it is now, whose reader may go away: what nobody can read is lost, and ends nothing."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return bool(self._stream.isatty())
        return False

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of standard error."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def _stream(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # not the stream that Rich puts around this one


class _Output(Console):
    """Standard output; that its reader is gone is left to the program, where Rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def starts_plain() -> bool:
    """Return whether a notebook's kernel began this process, so that what it prints goes to a cell.

    `!rhofast ...` in a notebook gets a pseudo terminal and FORCE_COLOR, but a cell moves no cursor: it would keep every
    drawing of a progress bar, one below the other.
    """
    return "JPY_PARENT_PID" in os.environ or "inline" in os.environ.get("MPLBACKEND", "")


_open_closed_streams()
_TERMINAL = False if starts_plain() else None  # None: Rich finds out
out = _Output(force_terminal=_TERMINAL)
err = Console(file=cast(TextIO, _Diagnostics()), force_terminal=_TERMINAL)


def print_line(text: str, style: str | None = None) -> None:
    """Print plain text as one line without wrapping, however narrow the terminal and whatever names it quotes."""
    _print_plain(out, printable(text, LINE), style)


def print_error(text: str, style: str = "red") -> None:
    """Print one line as `print_line` does, on standard error."""
    _print_plain(err, printable(text, LINE), style)


def print_problem(text: str) -> None:
    """Print an error and its hint, which are printable already, in red on standard error."""
    _print_plain(err, text, "red")


def _print_plain(console: Console, text: str, style: str | None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_lines(text: str) -> None:
    """Print plain text of several lines, which no names of strangers have broken."""
    for line in text.split("\n"):
        print_line(line)


def cell(text: str, limit: int = 200) -> str:
    """Return a text for a table of Rich: one line, without control characters or markup.

    Args:
        text: Any text.
        limit: Largest number of characters that are shown, at least 16.
    """
    return escape(printable(text, limit))


def progress_bar(*, note: bool = False) -> Progress:
    """Return a progress bar on standard error. note: give its tasks a field `note`, shown at the end of the line."""
    more = [TextColumn("{task.fields[note]}")] if note else []
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *more,
        console=err,
    )


@contextmanager
def told_of_outages() -> Iterator[None]:
    """Print, within this context, which store is waited for, once per outage, and when it answers again.

    Of a run of several processes only the main one does: they all wait for the same stores.
    """
    away, lock = dict[str, float](), threading.Lock()

    def tell(place: str, fault: str, limit_s: float) -> None:
        with lock:  # many requests meet one outage, in many threads and processes
            if fault and place not in away:
                away[place] = time.monotonic() - FIRST_S
                print_error(f"waiting for {redacted(place)}: {fault}; for up to {limit_s:.0f} s", style="yellow")
            elif not fault and place in away:
                waited = time.monotonic() - away.pop(place)
                print_error(f"{redacted(place)} answers again, after {waited:.0f} s", style="yellow")

    set_outage_handler(tell if is_main_process() else None)
    try:
        yield
    finally:
        set_outage_handler(None)


class ShardProgress:
    """The progress of `rhofast shard`, as a context manager: listing videos, then trying or storing them."""

    def __init__(self) -> None:
        self._progress = progress_bar(note=True)
        self._task = self._progress.add_task("listing videos", total=None, note="", visible=False)
        self._begun = 0.0
        self._skipped: int | None = None
        self.listed = 0

    def __enter__(self) -> ShardProgress:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def on_count(self, found: int) -> None:
        """Show how many videos the source has listed so far."""
        self._progress.update(self._task, completed=found, visible=True)

    def begin(self, listed: int, total: int) -> None:
        """Begin the bar of the work: `listed` videos were found, `total` of them are to be stored or tried."""
        self.listed, self._begun = listed, time.monotonic()
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task("sharding", total=total, note="")

    def on_videos(self, done: int, source_bytes: int, refused: int) -> None:
        """Show the videos done, with the rates since the start and the number of refused videos."""
        if self._skipped is None:
            self._skipped = done  # what an earlier run had finished
        seconds = max(time.monotonic() - self._begun, 1e-3)
        rates = f"{(done - self._skipped) / seconds:.1f} videos/s  {byte_text(source_bytes / seconds)}/s"
        self._progress.update(self._task, completed=done, note=f"{rates}  {refused} refused")

    def on_tried(self, done: int, total: int) -> None:
        """Show how many videos of a dry run have been tried."""
        self._progress.update(self._task, description="trying", completed=done, total=total)


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that suits it, such as `3.5 min`."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"


def byte_text(count: float) -> str:
    """Return a number of bytes in the decimal unit that suits it, such as `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.1f} PB"


@contextmanager
def progress_bars(*words: str) -> Iterator[list[Callable[[int, int], None]]]:
    """Yield one callback `(done, total)` per word; its bar appears with the first call."""
    progress = main_progress_bar()

    def reporter(task: TaskID) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            progress.start()  # nothing, if it has begun
            progress.update(task, completed=done, total=total, visible=True)

        return report

    try:
        yield [reporter(progress.add_task(word, total=None, visible=False)) for word in words]
    finally:
        if progress.live.is_started:  # or an empty line is printed
            progress.stop()


def main_progress_bar(*, note: bool = False) -> Progress:
    """Return a progress bar that only the main process of a run shows."""
    bar = progress_bar(note=note)
    bar.disable = not is_main_process()
    return bar


def print_left_out(left_out: list[str]) -> None:
    """Print how many samples an evaluation left out, and the first of them."""
    if left_out:
        count = f"{len(left_out)} samples cannot be read and were left out"
        print_error(f"{count}; the first: {left_out[0]}")


def is_main_process() -> bool:
    """Return whether this is rank 0, by the launcher's environment variables."""
    return os.environ.get("RANK", "0") == "0"
