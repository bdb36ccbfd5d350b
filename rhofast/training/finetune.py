"""A classifier trained by SGD through the augmenting loader: the release's linear probe, and fine-tuning.

    next(loader) -> one clip a video -> Classifier -> cross-entropy -> optimizer;  in the end the test protocol, once

A recipe is a page like a run's (configs/eval/): augmentation, optimizer, length, and `eval` for dropout, batch norm and
the test. What the network sees (clips, normalization) is the checkpoint's unless the page says otherwise. It leaves a
run folder of its own, `evals/NAME` in that of the checkpoint, whose checkpoints hold the backbone as a run's do. What
it is not: it chooses nothing by the test shards; they are looked at when training is over.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from rhofast.checkpoint.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rhofast.checkpoint.resume import open_run
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.schema import Config
from rhofast.data.sampling.rng import Stream, torch_seed
from rhofast.data.sampling.shuffle import rank_slice
from rhofast.distributed.collectives import raise_on_lost_ranks, reduce_max
from rhofast.errors import ConfigError, NotFiniteError, ResumeError, RhofastError
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.features import Progress
from rhofast.evaluation.multiview import check_test, crops_of, score_videos
from rhofast.evaluation.scores import Evaluation
from rhofast.evaluation.task import EvalTask
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.storage.files import write_atomically
from rhofast.training.consensus import BAD_LOSS, OK, StepConsensus
from rhofast.training.environment import versions
from rhofast.training.metrics_file import MetricsFile
from rhofast.training.optim import build_optimizer, learning_rate, load_optimizer
from rhofast.training.precision_check import check_reduced_precision
from rhofast.training.preemption import PreemptionHandler
from rhofast.training.setup import build_accelerator, build_loader, prepare, run_length
from rhofast.training.step import collected_by_hand
from rhofast.training.step_timer import StepTimer

Kind = Literal["linear", "finetune"]
OnLog = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """Training was asked to stop before its last step, and saved."""

    run: Path
    step: int
    steps: int


def train_classifier(
    task: EvalTask, *, kind: Kind, resume: bool = False, on_log: OnLog | None = None, progress: Progress | None = None
) -> Evaluation | Stopped:
    """Train a classifier on a task's training shards as its configuration says, and test it; in every process.

    kind: "linear" leaves the backbone's weights as they are, "finetune" trains them. resume: continue from the newest
    checkpoint in the evaluation's own folder, or begin. on_log: called on rank 0 with each line of metrics, with `step`
    and `steps`; progress: with (samples done, in all) of the test. Raises ConfigError (also where the folder exists and
    `resume` is off), ResumeError, ShardError, SampleError, NotFiniteError.
    """
    config = task.config.model_copy(update={"clips": task.config.clips.model_copy(update={"num_clips": 1})})
    if config.train.accumulate != 1:
        raise ConfigError("train.accumulate: a classifier is trained without", hint="take a smaller train.batch_size")
    check_test(task.model.backbone, config)
    accelerator = build_accelerator(config)
    with raise_on_lost_ranks():
        fit = _Fit(task, config, kind, accelerator, on_log)
        with PreemptionHandler(config.train.max_hours) as stopper, fit.loader:
            checkpoint = _open_folder(task, config, kind, accelerator, resume=resume)
            if checkpoint is not None:
                fit.restore(checkpoint)
            finished = fit.loop(stopper)
        if not finished:
            return Stopped(run=config.folder, step=fit.step, steps=fit.steps)
        return fit.tested(progress)


class _Fit:
    """Classifier, optimizer, loader, and the number of steps done."""

    def __init__(
        self, task: EvalTask, config: Config, kind: Kind, accelerator: Accelerator, on_log: OnLog | None
    ) -> None:
        self.task, self.config, self.kind, self.accelerator = task, config, kind, accelerator
        section, device = config.eval, accelerator.device
        torch.manual_seed(torch_seed(config.seed, 0, 0))
        classifier = Classifier(
            task.model.backbone,
            len(task.train.info.classes),
            trained=kind == "finetune",
            batch_stats=section.batch_norm != "frozen",
            dropout=section.dropout,
            size=config.augment.size,
        )
        if section.batch_norm in ("node", "sync"):
            synchronize_batch_norm(classifier.backbone, "node" if section.batch_norm == "node" else "sync")
        self.classifier = classifier.to(device)
        if config.train.channels_last:
            self.classifier = self.classifier.to(memory_format=torch.channels_last_3d)
        if kind == "finetune" and device.type == "cpu":
            check_reduced_precision(
                self.classifier.backbone,
                config.train.precision,
                num_frames=config.clips.num_frames,
                size=config.augment.size,
            )
        optimizer = build_optimizer(self.classifier, config.optim)
        self.model, self.optimizer = prepare(accelerator, self.classifier, optimizer)
        bad_log = RunFolder(config.folder).bad_samples
        self.loader = build_loader(config, accelerator, task.train, bad_log, duplicate_single_clip=False)
        self.step = 0
        self.steps, self.epochs = run_length(config, self.loader.steps_per_epoch)
        self.votes = StepConsensus(config.train.timeout_s)
        self._metrics = MetricsFile(RunFolder(config.folder).metrics) if accelerator.is_main_process else None
        self._on_log = on_log

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint left off. Raises ResumeError."""
        try:
            self.classifier.load_state_dict(checkpoint.method)
        except RuntimeError as error:
            raise ResumeError(f"the checkpoint's weights do not fit: {error}") from None
        load_optimizer(self.optimizer.optimizer, checkpoint.optimizer)
        self.loader.load_state_dict(checkpoint.loader)
        self.step = checkpoint.step

    def loop(self, stopper: PreemptionHandler) -> bool:
        """All steps from here to the end (True), or to the first call for a stop."""
        train, clock = self.config.train, StepTimer()
        self._write("start", step=self.step, world_size=self.accelerator.num_processes, versions=versions())
        hits = seen = torch.zeros((), device=self.accelerator.device)
        self.model.train()
        begun = self.step
        with collected_by_hand():
            while self.step < self.steps:
                with clock.waiting():
                    views = next(self.loader)
                loss, hit, rate = self._train_step(views.pixels[:, 0], views.label)
                self.step += 1
                clock.step(len(views.label))
                hits, seen = hits + hit, seen + (views.label >= 0).sum()
                if self.step % train.log_steps == 0 or self.step == self.steps:
                    self._log(loss, hits, seen, rate, clock)
                    hits = seen = torch.zeros_like(hits)
                if self._asked_to_stop(stopper, loss):
                    break
                if self.step % train.checkpoint_steps == 0 and self.step < self.steps:
                    self._save()
                    clock.restart()
        self.votes.finish()
        if self.step > begun:
            self._save()
        return self.step >= self.steps

    def tested(self, progress: Progress | None) -> Evaluation:
        """The test protocol, with rank 0's statistics of batch norm on every rank."""
        for value in self.classifier.state_dict().values():
            broadcast(value)
        task, section = self.task, self.config.eval
        scores = score_videos(self.classifier, task.train, task.test, self.config, progress=progress)
        return Evaluation(
            kind=self.kind,
            origin=task.model.origin,
            step=task.model.step,
            folder=self.config.folder,
            trained=scores,
            chance=1 / len(task.train.info.classes),
            classes=task.train.info.classes,
            shards=task.shards(),
            settings={
                "steps": self.step,
                "epochs": self.epochs,
                "batch_norm": section.batch_norm,
                "test_views": section.test_views,
                "test_crops": crops_of(task.test, section),
            },
            notes=task.notes,
        )

    def _train_step(self, pixels: Tensor, label: Tensor) -> tuple[Tensor, Tensor, float]:
        """(loss, videos whose class was right, learning rate). pixels [B, C, T, H, W], label i64[B]"""
        config, epoch = self.config, self.step / self.loader.steps_per_epoch
        batch, rank = config.train.batch_size, self.accelerator.process_index
        torch.manual_seed(torch_seed(config.seed, self.step + 1, rank))  # for backbones that draw
        self.classifier.dropout.begin(
            seed=torch_seed(config.seed, self.step + 1, 0, Stream.DROPOUT),
            rows=rank_slice(batch, rank, self.accelerator.num_processes),
            batch=batch,
        )
        rate = learning_rate(config.optim, batch, epoch, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(pixels)
        loss = F.cross_entropy(logits.float(), label)
        self.accelerator.backward(loss)
        if config.optim.clip is not None:
            self.accelerator.clip_grad_norm_(self.classifier.parameters(), config.optim.clip)
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(dim=1) == label).sum(), rate

    def _log(self, loss: Tensor, hits: Tensor, seen: Tensor, rate: float, clock: StepTimer) -> None:
        window = clock.window()
        told = torch.stack([loss.float(), hits.float() / seen.clamp(min=1)])
        mean_loss, top1 = self.accelerator.reduce(told, reduction="mean").tolist()
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

    def _asked_to_stop(self, stopper: PreemptionHandler, loss: Tensor) -> bool:
        """Whether all ranks stop after this step. Raises NotFiniteError after a loss that no step can follow."""
        flag = torch.where(torch.isfinite(loss), OK, BAD_LOSS)
        self.votes.cast(self.step, stop=stopper.asked, flag=flag)
        last = self.step == self.steps or self.step % self.config.train.checkpoint_steps == 0
        verdict = self.votes.finish() if last else self.votes.read()  # before anything is saved
        if verdict.running:
            raise NotFiniteError(
                f"{self.config.folder}: the loss of step {self.step}, or of the one before, is not finite",
                hint="a lower optim.base_lr may help; checkpoints from before are whole",
            )
        return verdict.stop

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            checkpoint = Checkpoint(
                step=self.step,
                config=self.config,
                loader=self.loader.state_dict(),
                method=self.classifier.state_dict(),
                optimizer=self.optimizer.optimizer.state_dict(),
            )
            save_checkpoint(self.config.folder, checkpoint, keep=self.config.train.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _write(self, kind: str, **values: Any) -> None:
        if self._metrics is not None:
            self._metrics.write(kind, **values)
            if self._on_log is not None:
                self._on_log({"kind": kind, "steps": self.steps, **values})


def _open_folder(
    task: EvalTask, config: Config, kind: Kind, accelerator: Accelerator, *, resume: bool
) -> Checkpoint | None:
    """Make the folder on rank 0, or find the checkpoint to continue from; every rank learns of a failure."""
    outcome: list[Any] = [None]
    checkpoint = None
    if accelerator.is_main_process:
        try:
            opened = open_run(config, resume=resume)
            outcome[0], checkpoint = opened.folder, opened.checkpoint
            _check_same(task, config, kind, fresh=checkpoint is None)
        except RhofastError as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], RhofastError):
        raise outcome[0]
    if outcome[0] is not None and checkpoint is None:  # rank 0 has read it already
        checkpoint = load_checkpoint(outcome[0])
    return checkpoint


def _check_same(task: EvalTask, config: Config, kind: Kind, *, fresh: bool) -> None:
    """Note what is trained on top of what, or see that it is the same. Raises ResumeError."""
    section = config.eval
    now = {
        "kind": kind,
        "origin": task.model.origin,
        "dropout": section.dropout,
        "batch_norm": section.batch_norm,
        "classes": task.train.info.classes,
    }
    path = RunFolder(config.folder).task
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(path.read_text(encoding="utf-8"))
    if fresh:
        write_atomically(path, json.dumps(now, indent=1))
        return
    changes = [f"{key} was {before.get(key)!r}, is {value!r}" for key, value in now.items() if before.get(key) != value]
    if changes:
        raise ResumeError(
            f"{config.folder} was begun with something else: {'; '.join(changes)}",
            hint="give it another --set name=...",
        )
