"""The loop of every training on top of a backbone, whether classifiers or a detector: steps, numbers, checkpoints.

    next(loader) -> forward of the subclass -> gradients, update -> agree with other ranks -> log, save, validate

It is to these trainings what trainer.py is to pretraining, and shares its logger, so that metrics.jsonl and trackers
have the same numbers. A subclass builds what is trained and its loader, computes the loss of a batch and scores
held-out videos. Nothing is chosen by these; a part of them is looked at during training, if `eval.validation_epochs`
says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from rhofast.checkpoint.resume import OpenedRun
from rhofast.checkpoint.run_folder import FINE_TUNED, RunFolder
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.rng import torch_seed
from rhofast.data.types import Views
from rhofast.distributed.collectives import reduce_mean
from rhofast.errors import NotFiniteError
from rhofast.evaluation.attentive import AttentiveProbes
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.scores import Scores
from rhofast.evaluation.task import EvalTask
from rhofast.models.convolution_check import check_convolutions
from rhofast.models.memory_format import to_channels_last
from rhofast.training.begun_with import check_begun_with
from rhofast.training.consensus import BAD_LOSS, OK
from rhofast.training.layer_decay import layer_scales
from rhofast.training.loop import OnLog, TrainingLoop
from rhofast.training.optim import build_optimizer, learning_rate, set_learning_rate
from rhofast.training.preemption import PreemptionHandler
from rhofast.training.setup import prepare, recompute_activations
from rhofast.training.step import no_garbage_collection
from rhofast.training.validation_curve import ValidationCurve

Kind = Literal["linear", "finetune", "attentive", "multilabel", "detection"]


class StepOutcome(NamedTuple):
    """What a forward pass of a batch gives.

    Attributes:
        objective: What gradients are taken of.
        loss: The loss to be logged, without gradient.
        hits: Number of examples whose most probable class is right (has the largest target).
        known: Number of examples that have a target.
    """

    objective: Tensor
    loss: Tensor
    hits: Tensor
    known: Tensor


class TuningLoop(TrainingLoop, ABC):
    """What is trained, its optimizer and loader, and the number of steps done."""

    def __init__(
        self,
        task: EvalTask,
        config: Config,
        kind: Kind,
        accelerator: Accelerator,
        on_log: OnLog | None,
        *,
        shards: ShardSet | None = None,
    ) -> None:
        """Build everything; nothing is written yet.

        Args:
            task: Backbone, training shards and test shards.
            config: Configuration of the training.
            kind: What is trained.
            accelerator: Knows rank and device.
            on_log: Called on rank 0 with each line of metrics.
            shards: What to train on. None: the training shards of the task.
        """
        self.task, self.config, self.kind, self.accelerator = task, config, kind, accelerator
        torch.manual_seed(torch_seed(config.seed, 0, 0))
        self.classifier = self.build_classifier().to(accelerator.device)
        if config.train.channels_last:
            self.classifier = to_channels_last(self.classifier)
        check_convolutions(
            self.classifier,
            self.classifier.backbone,
            config,
            precision=config.train.precision,
            clips=config.train.batch_size // accelerator.num_processes * config.clips.num_clips,
            gradients=kind in FINE_TUNED,
        )
        if kind in FINE_TUNED:
            recompute_activations(self.classifier.backbone, config)
        model, optimizer = prepare(accelerator, self.classifier, self.build_optimizer())
        loader = self.build_loader(shards or task.train, RunFolder(config.folder).bad_samples)
        super().__init__(config, accelerator, model, self.classifier, optimizer, loader, on_log)
        self.validation = ValidationCurve(config, loader.steps_per_epoch, self.logger, held_out=task.test_identity)

    @abstractmethod
    def build_classifier(self) -> Classifier | AttentiveProbes:
        """Return what is trained, in training mode, on the CPU."""

    @abstractmethod
    def build_loader(self, shards: ShardSet, bad_log: Path) -> TrainLoader:
        """Return this rank's loader of what is trained on."""

    @abstractmethod
    def forward(self, views: Views) -> StepOutcome:
        """Return loss and hits of a batch of this rank."""

    @abstractmethod
    def validate(self) -> Scores:
        """Measure what is trained on a part of the held-out set, on every rank."""

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the classifier."""
        optim = self.config.optim
        scales = layer_scales(self.classifier.backbone, optim.layer_decay, self.config.backbone.name)
        return build_optimizer(self.classifier, optim, scales)

    def set_rates(self, epoch: float) -> float:
        """Set the learning rates of the next step, and return the one to log."""
        rate = learning_rate(self.config.optim, self.config.train.batch_size, epoch, self.epochs)
        set_learning_rate(self.optimizer, rate)
        return rate

    def facts(self) -> dict[str, Any]:
        """Return what the result depends on besides the configuration of a run, as JSON values."""
        section = self.config.eval
        return {
            "kind": self.kind,
            "origin": self.task.model.origin,
            "dropout": section.dropout,
            "batch_norm": section.batch_norm,
            "label_smoothing": section.label_smoothing,
            "classes": self.task.train.info.classes,
        }

    def check_same_task(self, opened: OpenedRun) -> None:
        """Record what is trained on top of what, or raise ResumeError if the folder was begun with something else."""
        check_begun_with(RunFolder(self.config.folder), self.facts(), opened)

    def run(self, preemption: PreemptionHandler, notes: Iterable[str] = ()) -> bool:
        """Take all steps from here to the end (True), or until a stop is requested (False).

        Args:
            preemption: Knows whether this process should stop.
            notes: Written once the training has begun.
        """
        train, logger = self.config.train, self.logger
        self.begin(notes)
        self.validation.open(self.step)
        if self.step:
            self._validate_if_due()  # an earlier process may have been stopped meanwhile
        logger.restart()
        hits = seen = torch.zeros((), device=self.accelerator.device)
        self.model.train()
        with no_garbage_collection():
            while self.step < self.steps:
                views = self.next_views()
                loss, hit, known, rate = self._take_step(views)
                self.step += 1
                logger.step(self.step, views.pixels.shape[0] * views.pixels.shape[1])
                hits, seen = hits + hit, seen + known
                if self.step % train.log_steps == 0 or self.step == self.steps:
                    self._log(loss, hits, seen, rate)
                    hits = seen = torch.zeros_like(hits)
                if self._must_stop(preemption, loss):
                    break
                if self._validate_if_due() | self.checkpoints.after_step(self.step, self.steps):
                    logger.restart()
        return self.end(preemption)

    def log_test(self, scores: Scores) -> dict[str, Any]:
        """Log the score of the test, and return what was seen in validation, for the result."""
        measure, value = scores.main
        self.logger.score(
            "test",
            self.step,
            measure=measure,
            value=value,
            samples=scores.samples,
            held_out=self.task.test_identity,
        )
        return self.validation.facts()

    def _validate_if_due(self) -> bool:
        """Validate if it is time, and return whether that was done; what has been trained is saved before."""
        if not self.validation.is_due(self.step):
            return False
        self.checkpoints.save(self.step)
        self.share_statistics()
        self.validation.add(self.step, self.validate())
        return True

    def _take_step(self, views: Views) -> tuple[Tensor, Tensor, Tensor, float]:
        """Take one optimizer step; return the loss, the hits, the examples with a class, and the learning rate."""
        config = self.config
        # For backbones that draw random numbers.
        torch.manual_seed(torch_seed(config.seed, self.step + 1, self.accelerator.process_index))
        rate, enter = self.set_rates(self.epoch), self.logger.enter
        enter("forward")
        self.optimizer.zero_grad(set_to_none=True)
        objective, loss, hits, known = self.forward(views)
        enter("backward")
        self.accelerator.backward(objective)
        enter("optimizer")
        if config.optim.clip is not None:
            self.accelerator.clip_grad_norm_(self.classifier.parameters(), config.optim.clip)
        self.optimizer.step()
        return loss, hits, known, rate

    def _log(self, loss: Tensor, hits: Tensor, seen: Tensor, rate: float) -> None:
        """Write the numbers of a window; ranks that have seen more examples count for more in its top-1."""
        right, known = reduce_mean(torch.stack([hits.double(), seen.double()]))
        top1 = torch.where(known > 0, right / known, 0.0)
        values = {"loss": loss, "top1": top1, "lr": torch.tensor(rate, dtype=torch.float64)}
        self.logger.log(self.step, self.epoch, values)

    def _must_stop(self, preemption: PreemptionHandler, loss: Tensor) -> bool:
        """Return whether all ranks stop after this step; raise NotFiniteError after a loss that is not finite."""
        flag = torch.where(torch.isfinite(loss), OK, BAD_LOSS)
        self.consensus.submit(self.step, stop=preemption.stop_requested, flag=flag)
        saves = self.step == self.steps or self.step % self.config.train.checkpoint_steps == 0
        status = self.consensus.finish() if saves else self.consensus.poll()  # all is known before anything is saved
        if status.consecutive_bad:
            raise NotFiniteError(
                f"{self.config.folder}: the loss of step {self.step}, or of the one before, is not finite",
                hint="try a lower optim.base_lr; checkpoints from before are intact",
            )
        return status.stop
