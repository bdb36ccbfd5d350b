"""The training loop.

    next(loader) -> learning rate -> train_step -> agree -> log, evaluate, save

The loop knows no method's name, and of a step (step.py) no more than its metrics. Every rank takes its slice of the
same global batches, so the number of processes changes the speed, not the data. Nothing here draws from a global random
state that was not set from (seed, step) before, so a resumed run continues as if nothing had happened.
"""

from __future__ import annotations

import datetime
import gc
import platform
import shlex
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from rhofast.checkpoint.async_writer import AsyncCheckpointWriter
from rhofast.checkpoint.checkpoint import Checkpoint, load_checkpoint
from rhofast.checkpoint.resume import OpenedRun, open_run
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.remote import is_remote
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sampling.rng import torch_seed
from rhofast.data.sources import open_test
from rhofast.data.types import Views
from rhofast.distributed.collectives import raise_on_lost_ranks
from rhofast.errors import NotFiniteError, ResumeError, RhofastError, SaveError
from rhofast.evaluation.knn import evaluate_knn
from rhofast.evaluation.leakage import check_held_out
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.consensus import StepConsensus, StepStatus
from rhofast.training.environment import versions
from rhofast.training.logger import MetricsLogger, check_trackers
from rhofast.training.non_finite import BatchNormGuard
from rhofast.training.optim import learning_rate, load_optimizer
from rhofast.training.preemption import PreemptionHandler
from rhofast.training.setup import build_accelerator, build_loader, build_model, open_training_shards, run_length
from rhofast.training.step import collected_by_hand, train_step

EXIT_RESUMABLE = 75  # sysexits' EX_TEMPFAIL: saved on a signal or at max_hours; run again with --resume
_COLLECT_STEPS = 200  # garbage is collected here, on all ranks at the same step, and nowhere else in the loop


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a call of `train` ended. finished: the last step is done; otherwise it stopped early and can be resumed."""

    run: Path
    step: int
    steps: int
    finished: bool


def train(
    config: Config,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Run or continue the run that `config` describes; call it in every process.

    resume: continue from the run folder's newest whole checkpoint, or begin where there is none. accept_changes: even
    where that configuration was another one in what the result depends on. on_log: called on rank 0 with each line of
    metrics, with `step` and `steps`. Raises ConfigError (also where the run folder exists and `resume` is off),
    DependencyError, ShardError, SampleError, ResumeError, NotFiniteError, RankLostError, SaveError for the last
    checkpoint.
    """
    check_trackers(config.train)
    shards = open_training_shards(config)
    test = open_test(config.data)
    with raise_on_lost_ranks():
        accelerator = build_accelerator(config)
        run = _Run(config, accelerator, shards, test, on_log)
        with PreemptionHandler(config.train.max_hours) as stopper, run.saver, run.loader:
            opened = _open_run(config, accelerator, resume=resume, accept_changes=accept_changes)
            if opened.checkpoint is not None:
                run.restore(opened.checkpoint)
            try:
                outcome = run.loop(stopper, opened.notes)
            except RhofastError as error:
                run.book.write("error", step=run.step, text=error.message)
                raise
    accelerator.end_training()
    return outcome


class _Run:
    """The state of a run between two steps: model, optimizer, loader, and the step's number."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        shards: Mixture,
        test: ShardSet | None,
        on_log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.shards, self.test = shards, test
        self.model, self.method, self.optimizer = build_model(config, accelerator)
        self.loader = build_loader(config, accelerator, shards, RunFolder(config.folder).bad_samples)
        self.step = 0
        self.steps, self.epochs = run_length(config, self.loader.steps_per_epoch)
        self.book = MetricsLogger(config, accelerator, self.model, self.loader, self.steps, on_log)
        section = config.train
        self.saver = AsyncCheckpointWriter(config.folder, keep=section.keep_checkpoints, keep_every=section.keep_every)
        self.votes = StepConsensus(section.timeout_s)
        self._saved: int | None = None  # the step that was saved last, and the one of which that failed
        self._failed: int | None = None
        self._bad: int | None = None  # the bad step that was told last
        self._addresses: deque[tuple[int, int, int]] = deque(maxlen=section.max_bad_steps + 4)  # step, epoch, position

    @property
    def epoch(self) -> float:
        return self.step / self.loader.steps_per_epoch

    @property
    def _knn_steps(self) -> int | None:
        """Steps from one evaluation to the next, or None."""
        train = self.config.train
        if train.knn_epochs is not None:
            return max(1, round(train.knn_epochs * self.loader.steps_per_epoch))
        return train.knn_steps

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint left off. Raises ResumeError."""
        try:
            self.method.load_state_dict(checkpoint.method)
        except RuntimeError as error:
            raise ResumeError(f"the checkpoint's weights do not fit this configuration: {error}") from None
        load_optimizer(self.optimizer.optimizer, checkpoint.optimizer)
        if checkpoint.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.loader.load_state_dict(checkpoint.loader)
        self.step = self._saved = checkpoint.step

    def loop(self, stopper: PreemptionHandler, notes: Iterable[str] = ()) -> Outcome:
        """All steps from here to the end, or to the first call for a stop. notes: to be told once it has begun."""
        train = self.config.train
        book = self.book
        book.begin(step=self.step, **self._facts())
        for note in notes:
            book.write("note", step=self.step, text=note)
        self._check_held_out()
        self._evaluate(first=True)
        book.restart()
        began, statistics = self.step, BatchNormGuard(self.method)
        with collected_by_hand():
            while self.step < self.steps:
                with book.waiting(self.step + 1):
                    views = self._next_views()
                last = self.step + 1 == self.steps
                logs, flag = self._train_step(views.pixels, log=last or (self.step + 1) % train.log_steps == 0)
                statistics.mend()
                self.step += 1
                book.step(self.step, views.pixels.shape[0] * views.pixels.shape[1])
                if self.step % train.log_steps == 0 or self.step == self.steps:
                    book.log(self.step, self.epoch, logs)
                if self._agree(stopper, flag, logs).stop:
                    break
                if self._evaluate():
                    book.restart()
                if self.step % train.checkpoint_steps == 0 and self._saved != self.step < self.steps:
                    self._save()
                    book.restart()
                elif self.step == began + 1 and self.accelerator.is_main_process:
                    self.saver.reserve(self._checkpoint())
                self._tell_of_checkpoints()
                if self.step % _COLLECT_STEPS == 0:
                    gc.collect()
        self.votes.finish()
        finished = self.step >= self.steps
        if not finished:
            book.write("stop", step=self.step, reason=stopper.reason or "another process was asked to stop")
        self._save_last()
        book.end(self.step)
        return Outcome(run=self.config.folder, step=self.step, steps=self.steps, finished=finished)

    def _next_views(self) -> Views:
        """The next batch; its address is noted."""
        at = self.loader.state_dict()
        self._addresses.append((self.step + 1, at["epoch"], at["position"]))
        return next(self.loader)

    def _train_step(self, pixels: Tensor, *, log: bool) -> tuple[dict[str, Tensor], Tensor]:
        """The next step of the run: its metrics, and its flag (agreement.py)."""
        config = self.config
        torch.manual_seed(torch_seed(config.seed, self.step + 1, self.accelerator.process_index))
        logs = train_step(
            self.accelerator,
            self.model,
            self.method,
            self.optimizer,
            pixels,
            TrainingProgress(step=self.step, epoch=self.epoch, epochs=self.epochs),
            rate=learning_rate(config.optim, config.train.batch_size, self.epoch, self.epochs),
            accumulate=config.train.accumulate,
            clip=config.optim.clip,
            log=log,
            enter=self.book.enter,
        )
        return logs, logs.pop("flag")

    def _agree(self, stopper: PreemptionHandler, flag: Tensor, logs: dict[str, Tensor]) -> StepStatus:
        """What all ranks know after this step. Raises NotFiniteError after too many bad ones."""
        self.votes.cast(self.step, stop=stopper.asked, flag=flag)
        verdict = self.votes.read()
        self._heed(verdict, logs)
        if self.step == self.steps:
            verdict = self.votes.finish()
            self._heed(verdict, logs)
        return verdict

    def _heed(self, verdict: StepStatus, logs: dict[str, Tensor]) -> None:
        """Tell of bad steps. Raises NotFiniteError after too many."""
        if verdict.bad is not None and verdict.bad != self._bad:
            self._bad = verdict.bad
            text = f"loss or gradients of step {verdict.bad} were not finite: it changed no weight"
            self.book.write("warning", step=self.step, text=text)
        if verdict.running >= self.config.train.max_bad_steps:
            if self.step % self.config.train.log_steps and self.step < self.steps:  # it is known to have come so far
                self.book.log(self.step, self.epoch, logs)
            raise self._not_finite(verdict)

    def _not_finite(self, verdict: StepStatus) -> NotFiniteError:
        """What to say of the bad steps that end the run."""
        bad = self.votes.bad_steps(verdict)
        known = {step: f"epoch {epoch}, position {position}" for step, epoch, position in self._addresses}
        told = [f"step {one.step} ({known.get(one.step, 'before')}; {_ranks_text(one.ranks)})" for one in bad]
        if len(told) > 5:
            told[3:-1] = ["..."]
        run, first = self.config.folder, bad[0]
        look = f"rhofast show {shlex.quote(str(run))} --step {first.step} --rank {min(first.ranks, default=0)}"
        return NotFiniteError(
            f"{run}: not finite in {len(bad)} steps in succession: {', '.join(told)}",
            hint=f"look at the batch: {look}; these steps changed no weight, and --resume continues from the newest "
            "checkpoint, with --accept-changes under other settings",
        )

    def _check_held_out(self) -> None:
        """Warn, on rank 0, where kNN tests on videos that are trained on. Of sets behind an address only the first is
        looked at, which kNN goes through anyway: the indices of others may take long to come."""
        if self.test is None or self._knn_steps is None or not self.accelerator.is_main_process:
            return
        sources = zip(self.config.data.train, self.shards.sets, strict=True)
        sets = [
            shards for number, (source, shards) in enumerate(sources) if number == 0 or not is_remote(source.shards)
        ]
        for sentence in check_held_out(sets, self.test, allow=True):
            self.book.write("warning", step=self.step, text=f"kNN is not on held-out videos: {sentence}")

    def _evaluate(self, *, first: bool = False) -> bool:
        """kNN on the held-out shards: before the first step, as often as asked for, after the last. True if it ran. It
        may take minutes in which no call for a stop is heard, so what has been done is saved before."""
        every = self._knn_steps
        due = self.step == 0 if first else every is not None and (self.step % every == 0 or self.step == self.steps)
        if self.test is None or every is None or not due:
            return False
        if self.step and self._saved != self.step:
            self._save()
        result = evaluate_knn(self.method.backbone, self.shards.sets[0], self.test, self.config)
        self.book.knn(self.step, top1=result.top1, top5=result.top5, samples=result.samples)
        return True

    def _checkpoint(self) -> Checkpoint:
        scaler = self.accelerator.scaler
        return Checkpoint(
            step=self.step,
            config=self.config,
            loader=self.loader.state_dict(),
            method=self.method.state_dict(),
            optimizer=self.optimizer.optimizer.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
        )

    def _save(self) -> None:
        """Begin to save, on rank 0. The others go on."""
        self._saved = self.step
        if self.accelerator.is_main_process:
            self.saver.save(self._checkpoint())

    def _save_last(self) -> None:
        """Save where the run ends, and wait until all is written, on every rank. Raises SaveError on rank 0."""
        if self._saved != self.step:
            self._save()
        self.saver.wait()
        self._tell_of_checkpoints()
        self.accelerator.wait_for_everyone()
        if self._failed == self.step:
            raise SaveError(
                f"{self.config.folder}: the last checkpoint, of step {self.step}, was not written",
                hint="the older ones are untouched: --resume continues from the newest of them",
            )

    def _tell_of_checkpoints(self) -> None:
        """Say what has become of checkpoints since the last call."""
        for saved in self.saver.news():
            if saved.error is None:
                self.book.write("checkpoint", step=saved.step, seconds=saved.seconds, held_seconds=saved.held_s)
            else:
                text = f"the checkpoint of step {saved.step} was NOT written: {saved.error}; older ones are untouched"
                self.book.write("warning", step=self.step, text=text)
                self._failed = saved.step

    def _facts(self) -> dict[str, Any]:
        """What a reader of the metrics wants to know about the machine and the model."""
        device = self.accelerator.device
        return {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "world_size": self.accelerator.num_processes,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "parameters": sum(p.numel() for p in self.method.backbone.parameters()),
            "samples": len(self.shards),
            "digest": self.shards.digest,
            "versions": versions(),
        }


def _open_run(config: Config, accelerator: Accelerator, *, resume: bool, accept_changes: bool) -> OpenedRun:
    """Open the run folder on rank 0; every rank learns of a failure, and reads the same checkpoint."""
    told: list[Any] = [None]
    opened = OpenedRun()
    if accelerator.is_main_process:
        try:
            opened = open_run(config, resume=resume, accept_changes=accept_changes)
            told[0] = opened.folder
        except RhofastError as error:
            told[0] = error
    broadcast_object_list(told)
    if isinstance(told[0], RhofastError):
        raise told[0]
    if told[0] is not None and opened.checkpoint is None:
        return OpenedRun(folder=told[0], checkpoint=load_checkpoint(told[0], check=False))
    return opened


def _ranks_text(ranks: tuple[int, ...]) -> str:
    """Whose loss was not finite."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"loss of {'ranks' if len(ranks) > 1 else 'rank'} {shown}" if ranks else "gradients only"
