"""The training loop.

    next(loader) -> learning rate -> train_step -> agree with other ranks -> log, evaluate, save

The loop knows no method's name, and of a step (step.py) only its metrics. Every rank takes its slice of the same global
batches, so the number of processes changes the speed, not the data. Nothing here draws from a global random state that
was not set from (seed, step) before, so a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from rhofast.checkpoint.backbone import untrained_backbone
from rhofast.checkpoint.checkpoint import checkpoints_of
from rhofast.checkpoint.initial import initial_backbone, initial_notes
from rhofast.checkpoint.resume import naming
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sampling.rng import torch_seed
from rhofast.data.sources import open_test
from rhofast.data.types import Views
from rhofast.distributed.collectives import raise_on_lost_ranks
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.consensus import StepStatus
from rhofast.training.knn_monitor import KnnMonitor
from rhofast.training.loop import OnLog, TrainingLoop
from rhofast.training.non_finite import BatchNormGuard, NonFiniteSteps
from rhofast.training.optim import learning_rate
from rhofast.training.preemption import PreemptionHandler
from rhofast.training.setup import build_accelerator, build_loader, build_model, open_training_shards
from rhofast.training.step import no_garbage_collection, train_step
from rhofast.training.trackers import check_trackers

_COLLECT_STEPS = 200  # garbage is collected every so many steps, on all ranks at once, and nowhere else in the loop


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        run: The run folder.
        step: Optimizer steps done.
        steps: Steps of the whole run.
        finished: Whether the last step is done; if not, the run stopped early and can be resumed.
    """

    run: Path
    step: int
    steps: int
    finished: bool


def train(
    config: Config,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    on_log: OnLog | None = None,
) -> Outcome:
    """Run or continue the run that `config` describes; call it in every process.

    Args:
        config: The configuration of the run.
        resume: Continue from the newest whole checkpoint of the run folder, or begin if there is none.
        accept_changes: Continue even if settings differ on which the result depends.
        on_log: Called on rank 0 with each line of metrics, with `step` and `steps` in it.

    Returns:
        How far the run came.

    Raises:
        ConfigError: Settings do not fit together, the run folder exists and `resume` is off, or a tracker does not
            begin.
        DependencyError: A tracker is not installed.
        ShardError: The data cannot be opened, or a read hangs.
        MachineError: The machine refuses to read, for a reason that is not in the data.
        SampleError: Too many samples are bad.
        ResumeError: Nothing whole to continue from, or a change that is not accepted.
        NotFiniteError: Too many steps in a row were not finite.
        RankLostError: Another process is gone.
        SaveError: The last checkpoint could not be written.
    """
    check_trackers(config.train)
    shards = open_training_shards(config)
    test = open_test(config.data)
    with raise_on_lost_ranks():
        accelerator = build_accelerator(config)
        begins = not (resume and checkpoints_of(config.folder))
        trainer = _Trainer(config, accelerator, shards, test, on_log, begins=begins)
        with PreemptionHandler(config.train.max_hours) as preemption, trainer.checkpoints, trainer.loader:
            opened = trainer.checkpoints.open(resume=resume, accept_changes=accept_changes)
            if opened.checkpoint is not None:
                with naming(opened.folder):
                    trainer.restore(opened.checkpoint)
            with trainer.logger.ending(lambda: trainer.step):
                outcome = trainer.run(preemption, [*opened.notes, *(initial_notes(config) if begins else ())])
    trainer.logger.end_trackers(outcome.step, "finished" if outcome.finished else "stopped")
    accelerator.end_training()
    return outcome


class _Trainer(TrainingLoop):
    """Pretraining: the method, its optimizer and loader, and the number of steps done."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        shards: Mixture,
        test: ShardSet | None,
        on_log: OnLog | None,
        *,
        begins: bool,
    ) -> None:
        build = initial_backbone if begins else untrained_backbone  # a checkpoint's weights come over the latter
        model, self.method, optimizer = build_model(config, accelerator, build=build)
        loader = build_loader(config, accelerator, shards, RunFolder(config.folder).bad_samples)
        super().__init__(config, accelerator, model, self.method, optimizer, loader, on_log)
        self.non_finite = NonFiniteSteps(config, self.consensus, self.logger.write)
        self.knn = KnnMonitor(config, shards, test, loader.steps_per_epoch, self.logger)

    def run(self, preemption: PreemptionHandler, notes: Iterable[str] = ()) -> Outcome:
        """Take all steps from here to the end, or until a stop is requested.

        Args:
            preemption: Knows whether this process should stop.
            notes: Written once the run has begun.
        """
        train, logger = self.config.train, self.logger
        self.begin(notes)
        self.knn.warn_of_leakage(self.step)
        if self.knn.is_missing(self.step):
            self._evaluate_if_due()
        logger.restart()
        guard = BatchNormGuard(self.method)
        with no_garbage_collection():
            while self.step < self.steps:
                views = self.next_views()
                logged = self.step + 1 == self.steps or (self.step + 1) % train.log_steps == 0
                torch.manual_seed(torch_seed(self.config.seed, self.step + 1, self.accelerator.process_index))
                metrics = train_step(
                    self.accelerator,
                    self.model,
                    self.method,
                    self.optimizer,
                    views.pixels,
                    TrainingProgress(step=self.step, epoch=self.epoch, epochs=self.epochs, seed=self.config.seed),
                    rate=learning_rate(self.config.optim, train.batch_size, self.epoch, self.epochs),
                    accumulate=train.accumulate,
                    clip=self.config.optim.clip,
                    log=logged,
                    enter=logger.enter,
                )
                flag = metrics.pop("flag")
                guard.restore()
                self.step += 1
                logger.step(self.step, views.pixels.shape[0] * views.pixels.shape[1])
                if logged:
                    logger.log(self.step, self.epoch, metrics)
                if self._agree(preemption, flag, metrics, logged=logged).stop:
                    break
                if self._evaluate_if_due():
                    logger.restart()
                if self.checkpoints.after_step(self.step, self.steps):
                    logger.restart()
                if self.step % _COLLECT_STEPS == 0:
                    gc.collect()
        finished = self.end(preemption)
        return Outcome(run=self.config.folder, step=self.step, steps=self.steps, finished=finished)

    def next_views(self) -> Views:
        """Return the next batch, after noting its address."""
        address = self.loader.state_dict()
        self.non_finite.note_batch(self.step + 1, address["epoch"], address["position"])
        return super().next_views()

    def named_code(self) -> dict[str, str]:
        """Return the names of backbone and method."""
        return {**super().named_code(), "method": self.config.method.name}

    def _agree(
        self, preemption: PreemptionHandler, flag: Tensor, metrics: dict[str, Tensor], *, logged: bool
    ) -> StepStatus:
        """Return what all ranks know after this step; raise NotFiniteError after too many bad steps."""
        self.consensus.submit(self.step, stop=preemption.stop_requested, flag=flag)
        last = self.step == self.steps
        for read in (self.consensus.poll, self.consensus.finish) if last else (self.consensus.poll,):
            status = read()
            error = self.non_finite.check(status, self.step)
            if error is not None:
                if not logged:  # so that the metrics show how far the run came
                    self.logger.log(self.step, self.epoch, metrics)
                raise error
        return status

    def _evaluate_if_due(self) -> bool:
        """Evaluate by kNN if it is time, and return whether that was done.

        It may take minutes in which no request to stop is noticed, so what has been done is saved before.
        """
        if not self.knn.is_due(self.step):
            return False
        if self.step:
            self.checkpoints.save(self.step)
        self.share_statistics()
        self.knn.evaluate(self.step, self.method.backbone)
        return True
