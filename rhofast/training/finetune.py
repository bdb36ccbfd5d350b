"""A classifier trained by SGD through the augmenting loader: the release's linear probe, and fine-tuning.

    next(loader) -> clips -> Classifier -> cross-entropy of soft targets -> optimizer;  at the end the test, once

Its config is like a run's (configs/eval/): augmentation, optimizer, length, and `eval` for dropout, batch norm and the
test. What the network sees (clips, normalization) is the checkpoint's unless the config says otherwise. The classifier
gets a run folder of its own, `evals/NAME` in that of the checkpoint, whose checkpoints hold the backbone as a run's do.
Nothing is chosen by the test shards; they are looked at when training is over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from rhofast.checkpoint.checkpoint import Checkpoint
from rhofast.checkpoint.manager import CheckpointManager
from rhofast.checkpoint.resume import OpenedRun, check_resumable
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.rng import Stream, torch_seed
from rhofast.data.sampling.shuffle import rank_slice
from rhofast.data.types import Views
from rhofast.distributed.collectives import reduce_max
from rhofast.errors import NotFiniteError, ResumeError
from rhofast.evaluation.attentive import AttentiveProbes
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.features import Progress
from rhofast.evaluation.multiview import score_videos, test_settings
from rhofast.evaluation.scores import Evaluation, Scores
from rhofast.evaluation.task import EvalTask
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.models.memory_format import to_channels_last
from rhofast.storage.files import write_atomically
from rhofast.storage.strict_json import read_record
from rhofast.storage.user_code import imported_digests
from rhofast.training.consensus import BAD_LOSS, OK, StepConsensus
from rhofast.training.environment import versions
from rhofast.training.layer_decay import layer_scales
from rhofast.training.metrics_file import MetricsFile
from rhofast.training.optim import build_optimizer, learning_rate, set_learning_rate
from rhofast.training.optimizer_state import load_optimizer
from rhofast.training.precision_check import check_reduced_precision
from rhofast.training.preemption import PreemptionHandler
from rhofast.training.setup import build_loader, prepare, run_length
from rhofast.training.step import no_garbage_collection
from rhofast.training.step_timer import StepTimer
from rhofast.training.targets import soft_cross_entropy, soft_targets

Kind = Literal["linear", "finetune", "attentive", "multilabel", "detection"]
OnLog = Callable[[dict[str, Any]], None]


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


class ClassifierTrainer:
    """Classifier, optimizer, loader, and the number of steps done. The classifier may be several at once.

    Attributes:
        fields: Fields of the samples that targets are made of, besides the label.
    """

    fields: ClassVar[tuple[str, ...]] = ()

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
        device, run = accelerator.device, RunFolder(config.folder)
        torch.manual_seed(torch_seed(config.seed, 0, 0))
        self.classifier = self.build_classifier().to(device)
        if config.train.channels_last:
            self.classifier = to_channels_last(self.classifier)
        if kind in ("finetune", "multilabel", "detection") and device.type == "cpu":
            check_reduced_precision(
                self.classifier.backbone,
                config.train.precision,
                num_frames=config.clips.num_frames,
                size=config.augment.size,
            )
        self.model, self.optimizer = prepare(accelerator, self.classifier, self.build_optimizer())
        self.loader = self.build_loader(shards or task.train, run.bad_samples)
        self.step = 0
        self.steps, self.epochs = run_length(config, self.loader.steps_per_epoch)
        self.checkpoints = CheckpointManager(config, self._checkpoint, self._write)
        self.consensus = StepConsensus(config.train.timeout_s)
        self._metrics = MetricsFile(run.metrics) if accelerator.is_main_process else None
        self._on_log = on_log

    def build_classifier(self) -> Classifier | AttentiveProbes:
        """Return what is trained, in training mode, on the CPU."""
        section = self.config.eval
        classifier = Classifier(
            self.task.model.backbone,
            len(self.task.train.info.classes),
            trained=self.kind != "linear",
            batch_stats=section.batch_norm != "frozen",
            dropout=section.dropout,
            size=self.config.augment.size,
            several=self.kind == "multilabel",
        )
        if section.batch_norm in ("node", "sync"):
            synchronize_batch_norm(classifier.backbone, "node" if section.batch_norm == "node" else "sync")
        return classifier

    def build_loader(self, shards: ShardSet, bad_log: Path) -> TrainLoader:
        """Return this rank's loader of what is trained on."""
        return build_loader(
            self.config, self.accelerator, shards, bad_log, duplicate_single_clip=False, fields=self.fields
        )

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
        now = self.facts()
        path = RunFolder(self.config.folder).task
        if opened.checkpoint is None:
            write_atomically(path, json.dumps(now, indent=1))
            return
        before = read_record(path, dict[str, Any], raises=ResumeError)
        changes = [
            f"{key} was {repr(before.get(key))[:200]}, is {repr(now[key])[:200]}"
            for key in now
            if before.get(key) != now[key]
        ]
        if changes:
            raise ResumeError(
                f"{self.config.folder} was begun with something else: {'; '.join(changes)}",
                hint="choose another name: --set name=...",
            )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint left off; raise ResumeError if it does not fit."""
        check_resumable(checkpoint, self.classifier.state_dict(), self.steps)
        self.classifier.load_state_dict(checkpoint.method)
        load_optimizer(self.optimizer.optimizer, checkpoint.optimizer)
        self.loader.load_state_dict(checkpoint.loader)
        self.step = checkpoint.step

    def run(self, preemption: PreemptionHandler) -> bool:
        """Take all steps from here to the end (True), or until a stop is requested (False)."""
        train, timer = self.config.train, StepTimer()
        self._write("start", step=self.step, world_size=self.accelerator.num_processes, versions=versions())
        hits = seen = torch.zeros((), device=self.accelerator.device)
        self.model.train()
        with no_garbage_collection():
            while self.step < self.steps:
                with timer.waiting():
                    views = next(self.loader)
                loss, hit, known, rate = self._take_step(views)
                self.step += 1
                timer.step(views.pixels.shape[0] * views.pixels.shape[1])
                hits, seen = hits + hit, seen + known
                if self.step % train.log_steps == 0 or self.step == self.steps:
                    self._log(loss, hits, seen, rate, timer)
                    hits = seen = torch.zeros_like(hits)
                if self._must_stop(preemption, loss):
                    break
                if self.checkpoints.after_step(self.step, self.steps):
                    timer.restart()
        self.consensus.finish()
        self.checkpoints.finish(self.step)
        return self.step >= self.steps

    def test(self, progress: Progress | None) -> Evaluation:
        """Run the test protocol, with rank 0's statistics of batch norm on every rank."""
        for value in self.classifier.state_dict().values():
            broadcast(value)
        task, section = self.task, self.config.eval
        return task.result(
            self.kind,
            self.score(progress),
            settings={
                "steps": self.step,
                "epochs": self.epochs,
                "batch_norm": section.batch_norm,
                **({"fit": "SGD"} if self.kind == "linear" else {}),
                **test_settings(task.test, self.config),
            },
            folder=self.config.folder,
        )

    def score(self, progress: Progress | None) -> Scores:
        """Measure the classifier on the test shards."""
        task = self.task
        return score_videos(self.classifier, task.train, task.test, self.config, progress=progress)

    def _take_step(self, views: Views) -> tuple[Tensor, Tensor, Tensor, float]:
        """Take one optimizer step; return the loss, the hits, the examples with a class, and the learning rate."""
        config, epoch = self.config, self.step / self.loader.steps_per_epoch
        # For backbones that draw random numbers.
        torch.manual_seed(torch_seed(config.seed, self.step + 1, self.accelerator.process_index))
        rate = self.set_rates(epoch)
        self.optimizer.zero_grad(set_to_none=True)
        objective, loss, hits, known = self.forward(views)
        self.accelerator.backward(objective)
        if config.optim.clip is not None:
            self.accelerator.clip_grad_norm_(self.classifier.parameters(), config.optim.clip)
        self.optimizer.step()
        return loss, hits, known, rate

    def forward(self, views: Views) -> StepOutcome:
        """Return loss and hits of a batch. Of several classifiers at once, they are means over those with finite loss.

        Args:
            views: The batch of this rank.
        """
        config = self.config
        batch, rank, clips = config.train.batch_size, self.accelerator.process_index, views.pixels.shape[1]
        share = rank_slice(batch, rank, self.accelerator.num_processes)
        self.classifier.dropout.begin(
            seed=torch_seed(config.seed, self.step + 1, 0, Stream.DROPOUT),
            rows=slice(share.start * clips, share.stop * clips),
            batch=batch * clips,
        )
        logits = self.model(views.pixels.flatten(0, 1))
        target = self.target(views)
        scores = logits.float() if logits.ndim == 3 else logits.float()[:, None]  # [N, classifiers, classes]
        losses = torch.stack([self.loss(each, target) for each in scores.unbind(1)])
        objective = losses.sum()  # no weight is shared: each classifier gets its own gradient
        finite, most = losses.detach().isfinite(), target.amax(dim=1, keepdim=True)
        loss = torch.where(finite, losses.detach(), 0).sum() / finite.sum()  # not finite if none is
        right = (target.gather(1, scores.detach().argmax(dim=2)) == most) & (most > 0) & finite
        return StepOutcome(objective, loss, right.sum() / finite.sum(), (most > 0).sum())

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one classifier's logits f32[N, classes] for targets f32[N, classes]."""
        return soft_cross_entropy(logits, target)

    def target(self, views: Views) -> Tensor:
        """Return the targets of all clips of a batch, f32[B * P, classes]."""
        clips, partner, share = views.pixels.shape[1], None, None
        if views.share is not None:
            partner = views.label.view(-1, 2).flip(1).flatten().repeat_interleave(clips)
            share = views.share.flatten()
        return soft_targets(
            views.label.repeat_interleave(clips),
            len(self.task.train.info.classes),
            smoothing=self.config.eval.label_smoothing,
            partner=partner,
            share=share,
        )

    def _log(self, loss: Tensor, hits: Tensor, seen: Tensor, rate: float, timer: StepTimer) -> None:
        window = timer.window()
        stacked = torch.stack([loss.float(), hits.float() / seen.clamp(min=1)])
        mean_loss, top1 = self.accelerator.reduce(stacked, reduction="mean").tolist()
        wait = reduce_max(torch.tensor(window.data_wait_share, device=loss.device))
        self._write(
            "step",
            step=self.step,
            epoch=self.step / self.loader.steps_per_epoch,
            loss=mean_loss,
            top1=top1,
            lr=rate,
            clips_per_second=window.clips_per_second * self.accelerator.num_processes,
            data_wait_share=float(wait),
        )

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

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            step=self.step,
            config=self.config,
            loader=self.loader.state_dict(),
            method=self.classifier.state_dict(),
            optimizer=self.optimizer.optimizer.state_dict(),
            code=imported_digests(backbone=self.config.backbone.name),
        )

    def _write(self, kind: str, **values: Any) -> None:
        if self._metrics is not None:
            self._metrics.write(kind, **values)
            if self._on_log is not None:
                self._on_log({"kind": kind, "steps": self.steps, **values})
