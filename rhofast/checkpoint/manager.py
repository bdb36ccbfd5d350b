"""The checkpoints of a training loop: where it begins, when it saves, what became of what it saved.

    open (rank 0 opens the folder, all ranks load the same checkpoint or fail alike)
    after_step, save (rank 0 copies the state and writes it in the background)
    finish (the last checkpoint; all ranks wait until it is written)

Pretraining and fine-tuning share it. Every rank makes the same calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

from rhofast.checkpoint.async_writer import AsyncCheckpointWriter
from rhofast.checkpoint.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, remove_unfinished, step_of
from rhofast.checkpoint.resume import OpenedRun, open_run
from rhofast.checkpoint.run_lock import RunLock, claim_run
from rhofast.config.schema import Config
from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import rank
from rhofast.errors import RhofastError, SaveError


class WriteLine(Protocol):
    """A function that writes a line of metrics, like `MetricsLogger.write`."""

    def __call__(self, kind: str, **values: Any) -> None:
        """Write a line of this kind."""
        ...


class CheckpointManager:
    """Open a run, save its checkpoints in the background and report what became of them.

    A context manager, which waits for a checkpoint that is still being written.
    """

    def __init__(self, config: Config, take: Callable[[], Checkpoint], write_line: WriteLine) -> None:
        """Prepare to save; nothing is opened yet.

        Args:
            config: The run's configuration: its folder, and how often to save and what to keep (`train`).
            take: Returns the state of this moment; called on rank 0.
            write_line: Called with "checkpoint" and "warning" lines.
        """
        section = config.train
        self._config, self._take, self._write_line = config, take, write_line
        self._writer = AsyncCheckpointWriter(
            config.folder, keep=section.keep_checkpoints, keep_every=section.keep_every
        )
        self._is_main = rank() == 0
        self._lock: RunLock | None = None  # held by rank 0 for all
        self._reserved = False
        self._saved_step: int | None = None  # of the newest checkpoint, written or being written
        self._failed_step: int | None = None  # of the newest one that could not be written

    def open(
        self,
        *,
        resume: bool,
        accept_changes: bool = False,
        check: Callable[[OpenedRun], None] | None = None,
    ) -> OpenedRun:
        """Open the run folder on rank 0, and load the same checkpoint on every rank.

        Args:
            resume: Continue from the newest whole checkpoint, or begin if there is none.
            accept_changes: Continue even if settings differ on which the result depends.
            check: Called on rank 0 with what was opened; it may raise.

        Returns:
            The same on every rank, but notes only on rank 0.

        Raises:
            ConfigError: The folder exists and `resume` is off, or cannot be made; on every rank.
            ResumeError: Another process trains in the folder, there is nothing whole to continue from, or a change is
                not accepted; on every rank.
        """
        opened, failure = OpenedRun(), None
        if self._is_main:
            try:
                self._lock = claim_run(self._config.folder, resume=resume)
                if self._lock.limits is None:  # no other process can be writing
                    remove_unfinished(self._config.folder)
                opened = open_run(self._config, resume=resume, accept_changes=accept_changes)
                if check is not None:
                    check(opened)
                if self._lock.limits is not None:
                    opened = replace(opened, notes=(*opened.notes, self._lock.limits))
            except RhofastError as error:
                failure = error
                self._release()
        failure, folder = gather_objects((failure, opened.folder))[0]
        if failure is not None:
            raise failure
        if folder is not None and opened.checkpoint is None:  # rank 0 has read it and found it whole
            opened = OpenedRun(folder=folder, checkpoint=load_checkpoint(folder, check=False))
        self._saved_step = None if opened.checkpoint is None else opened.checkpoint.step
        return opened

    def after_step(self, step: int, steps: int) -> bool:
        """Save if it is time, and report what has been written.

        Args:
            step: Optimizer steps done.
            steps: Steps of the whole run; the last one is left to `finish`.

        Returns:
            Whether a checkpoint was taken, which may have held up training.
        """
        due = step % self._config.train.checkpoint_steps == 0 and step < steps
        taken = due and self.save(step)
        if self._is_main and not self._reserved and not taken:
            self._writer.reserve(self._take())
        self._reserved = True
        self._report(step)
        return taken

    def save(self, step: int) -> bool:
        """Begin to save the state after `step`; return False if that has been done before."""
        if self._saved_step == step:
            return False
        self._saved_step = step
        if self._is_main:
            self._writer.save(self._take())
        return True

    def save_before_end(self, step: int) -> None:
        """Begin to save on this rank alone, after an error in the data; give up if an earlier save hangs."""
        if self._writer.wait(self._config.train.timeout_s):
            self.save(step)

    def finish(self, step: int) -> None:
        """Save the state after the last step, and wait on every rank until it is written.

        Args:
            step: Optimizer steps done.

        Raises:
            SaveError: It was not written; on every rank.
        """
        self.save(step)
        self._writer.wait()
        self._report(step)
        if gather_objects(self._failed_step == step)[0]:  # the other ranks wait here for rank 0
            raise SaveError(
                f"{self._config.folder}: the last checkpoint, of step {step}, was not written",
                hint=f"{self._left()}: remove the cause, then run the same command with --resume",
            )

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the disk may hang: then the process must end all the same (see cli/app.py).
        self._writer.wait(None if error is None else self._config.train.timeout_s)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _left(self) -> str:
        """Return in words from where the run can be continued."""
        kept = latest_checkpoint(self._config.folder)
        return "there is no earlier one" if kept is None else f"that of step {step_of(kept)} is whole"

    def _report(self, step: int) -> None:
        """Write a line about each checkpoint that was finished since the last call."""
        for written in self._writer.poll():
            if written.error is None:
                self._write_line(
                    "checkpoint", step=written.step, seconds=written.seconds, stall_seconds=written.stall_s
                )
            else:
                text = f"the checkpoint of step {written.step} was not written: {written.error}; {self._left()}"
                self._write_line("warning", step=step, text=text)
                self._failed_step = written.step
