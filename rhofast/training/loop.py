"""What all training loops have alike: how a run begins, continues, saves and ends.

    restore --> begin --> next_views, a step of the subclass, ... --> end
       `-- checkpoint       `-- save before an error of the data        `-- last checkpoint

trainer.py (pretraining) and tuning_loop.py (classifiers, detectors) add the steps, and what is looked at in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast
from torch import nn

from rhofast.checkpoint.checkpoint import Checkpoint
from rhofast.checkpoint.manager import CheckpointManager
from rhofast.checkpoint.resume import check_resumable, check_scaler
from rhofast.config.schema import Config
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.types import Views
from rhofast.errors import RhofastError
from rhofast.models.convolution_check import mended_note
from rhofast.storage.user_code import imported_digests
from rhofast.training.consensus import StepConsensus
from rhofast.training.environment import start_facts
from rhofast.training.logger import MetricsLogger
from rhofast.training.optimizer_state import load_optimizer
from rhofast.training.preemption import PreemptionHandler
from rhofast.training.setup import run_length

OnLog = Callable[[dict[str, Any]], None]


class TrainingLoop:
    """The state of a run between two steps: what is trained, optimizer, loader, and the number of steps done."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        model: nn.Module,
        network: nn.Module,
        optimizer: AcceleratedOptimizer,
        loader: TrainLoader,
        on_log: OnLog | None,
    ) -> None:
        """Prepare to train; nothing is written yet.

        Args:
            config: The configuration of the run.
            accelerator: Knows rank and device.
            model: `network` as the accelerator prepared it.
            network: What is trained, with `backbone` in it. Checkpoints hold its state.
            optimizer: As the accelerator prepared it.
            loader: This rank's loader.
            on_log: Called on rank 0 with each line of metrics.
        """
        self.config, self.accelerator, self.model, self.network = config, accelerator, model, network
        self.optimizer, self.loader = optimizer, loader
        self.step = 0
        self.steps, self.epochs = run_length(config, loader.steps_per_epoch)
        self.logger = MetricsLogger(config, accelerator, model, loader, self.steps, on_log)
        self.checkpoints = CheckpointManager(config, self._checkpoint, self.logger.write)
        self.consensus = StepConsensus(config.train.timeout_s)

    @property
    def epoch(self) -> float:
        """Passes through the data done, with their fraction."""
        return self.step / self.loader.steps_per_epoch

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint left off; raise ResumeError if it does not fit."""
        check_resumable(checkpoint, self.network.state_dict(), self.steps)
        self.network.load_state_dict(checkpoint.method)
        load_optimizer(self.optimizer.optimizer, checkpoint.optimizer)
        if checkpoint.scaler is not None and self.accelerator.scaler is not None:
            check_scaler(checkpoint.scaler, self.accelerator.scaler.state_dict())
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.loader.load_state_dict(checkpoint.loader)
        self.step = checkpoint.step

    def begin(self, notes: Iterable[str]) -> None:
        """Write how the run begins or continues, with a warning of wrong convolutions and notes, one line each."""
        backbone = self.network.get_submodule("backbone")
        self.logger.begin(step=self.step, **start_facts(self.accelerator, backbone, self.loader.shards))
        if (warning := mended_note(self.model)) is not None:
            self.logger.write("warning", step=self.step, text=warning)
        for note in notes:
            self.logger.write("note", step=self.step, text=note)

    def next_views(self) -> Views:
        """Return the next batch; before an error of the data, save what has been done."""
        with self.logger.waiting(self.step + 1):
            try:
                return next(self.loader)
            except (RhofastError, OSError, MemoryError):
                if self.step:  # what has been done is whole, and the data may be had again later
                    self.checkpoints.save_before_end(self.step)
                raise

    def share_statistics(self) -> None:
        """Give every rank rank 0's weights and statistics of batch norm, which is what checkpoints hold."""
        for value in self.network.state_dict().values():
            broadcast(value)

    def end(self, preemption: PreemptionHandler) -> bool:
        """Save the last step; return whether it is that of the whole run, or a stop was requested (False)."""
        self.consensus.finish()
        finished = self.step >= self.steps
        if not finished:
            reason = preemption.reason or "another process was asked to stop"
            self.logger.write("stop", step=self.step, reason=reason)
        self.checkpoints.finish(self.step)
        self.logger.end(self.step)
        return finished

    def named_code(self) -> dict[str, str]:
        """Return the names in the configuration that may stand for code of the user's own, by their sections."""
        return {"backbone": self.config.backbone.name}

    def _checkpoint(self) -> Checkpoint:
        scaler = self.accelerator.scaler
        return Checkpoint(
            step=self.step,
            config=self.config,
            loader=self.loader.state_dict(),
            method=self.network.state_dict(),
            optimizer=self.optimizer.optimizer.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            code=imported_digests(**self.named_code()),
        )
