"""Attentive probes with many settings at once: trained on tokens of the frozen backbone, chosen on training videos.

    training videos --split--> nine tenths: clips -> backbone -> tokens -> 20 probes, each with its rate and decay
                           |   (eval.probe_clips clips of a video are read together)
                           `-> a tenth: the probe with the best top-1, then the lowest loss
    test videos --> the chosen probe --> softmax, mean over the views of multiview.py

The recipe is V-JEPA 2's (arXiv 2506.09985): 5 rates x 4 decays, AdamW, no warm-up, a cosine to 0. There, the best of
the 20 on the test videos is reported; here the test videos choose nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.evaluation.attentive import AttentiveProbes
from rhofast.evaluation.features import Progress, extract_features, mean_over_views, part_of
from rhofast.evaluation.multiview import score_videos, test_settings
from rhofast.evaluation.scores import Evaluation
from rhofast.evaluation.task import EvalTask
from rhofast.evaluation.validation import split_off
from rhofast.training.finetune import ClassifierTrainer
from rhofast.training.optim import build_optimizer, learning_rate
from rhofast.training.tuning_loop import Kind, OnLog

_PEAK = "peak_lr"  # in a parameter group: the rate of its probe, in place of optim.base_lr
_LEAST = 1e-12  # score of the true class below which a loss is not told apart


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeScore:
    """One setting of the probes.

    Attributes:
        rate: Peak learning rate, for a batch of `optim.base_batch` videos.
        decay: Weight decay.
        top1: Accuracy on the validation videos, in [0, 1].
        loss: Mean cross-entropy on the validation videos.
    """

    rate: float
    decay: float
    top1: float
    loss: float


def settings_of(config: Config) -> list[tuple[float, float]]:
    """Return (rate, decay) of each probe."""
    return list(itertools.product(config.eval.probe_rates, config.eval.probe_decays))


def check_probes(config: Config) -> None:
    """Refuse settings by which one probe would change the others, or that mean nothing; raise ConfigError."""
    if config.eval.validation_epochs is not None:
        raise ConfigError(
            f"eval.validation_epochs={config.eval.validation_epochs:g}: probes are compared on training videos",
            hint="leave eval.validation_epochs out",
        )
    if config.optim.clip is not None:
        raise ConfigError(
            f"optim.clip={config.optim.clip:g}: it would scale all probes by the gradients of all",
            hint="leave optim.clip out; eval.probe_rates has lower rates",
        )
    if config.train.precision == "fp16":
        raise ConfigError(
            "train.precision=fp16: its loss scale would follow the probe with the largest gradients",
            hint="set train.precision=bf16 or fp32",
        )
    section = config.eval
    for name, count in (("views", section.views), ("test_views", section.test_views)):
        if count % section.probe_clips:
            more = -(-count // section.probe_clips) * section.probe_clips
            raise ConfigError(
                f"eval.{name}={count}: eval.probe_clips={section.probe_clips} clips are read together",
                hint=f"--set eval.{name}={more}",
            )
    if config.augment.mixes and section.probe_clips > 1:
        raise ConfigError(
            f"augment.mix={config.augment.mix:g}: clips are mixed one by one, but eval.probe_clips="
            f"{section.probe_clips} are read together",
            hint="set augment.mix=0, or eval.probe_clips=1",
        )


class ProbeTrainer(ClassifierTrainer):
    """Train all probes at once, choose one on the validation videos, and test it."""

    classifier: AttentiveProbes

    def __init__(
        self, task: EvalTask, config: Config, kind: Kind, accelerator: Accelerator, on_log: OnLog | None
    ) -> None:
        """Split the training videos and build everything, as ClassifierTrainer does."""
        split = split_off(task.train, config.eval.probe_validation)
        self._validation, self.joined = split.validation, config.eval.probe_clips
        super().__init__(task, config, kind, accelerator, on_log, shards=split.fitting)

    def build_classifier(self) -> AttentiveProbes:
        """Return the backbone with a probe per setting."""
        section = self.config.eval
        return AttentiveProbes(
            self.task.model.backbone,
            self.config.backbone.name,
            len(self.task.train.info.classes),
            count=len(settings_of(self.config)),
            heads=section.probe_heads,
            dropout=section.dropout,
            joined=section.probe_clips,
            at_once=section.batch_size,
            recompute=self.config.train.checkpoint_activations,
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return one optimizer, with the parameter groups of each probe."""
        optimizers = []
        for probe, (rate, decay) in zip(self.classifier.probes, settings_of(self.config), strict=True):
            alone = build_optimizer(probe, self.config.optim.model_copy(update={"weight_decay": decay}))
            for group in alone.param_groups:
                group[_PEAK] = rate
            optimizers.append(alone)
        whole, *others = optimizers
        for alone in others:
            for group in alone.param_groups:
                whole.add_param_group(group)
            whole.state.update(alone.state)
        return whole

    def set_rates(self, epoch: float) -> float:
        """Set the rate of each probe, and return the largest."""
        optim, batch = self.config.optim, self.config.train.batch_size
        for group in self.optimizer.param_groups:
            section = optim.model_copy(update={"base_lr": group[_PEAK]})
            group["lr"] = learning_rate(section, batch, epoch, self.epochs)
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def facts(self) -> dict[str, Any]:
        """Return what the result depends on besides the configuration of a run, as JSON values."""
        section = self.config.eval
        return {
            **super().facts(),
            "rates": list(section.probe_rates),
            "decays": list(section.probe_decays),
            "heads": section.probe_heads,
            "clips": section.probe_clips,
            "validation": section.probe_validation,
        }

    def test(self, progress: Progress | None) -> Evaluation:
        """Choose a probe on the validation videos, and test that one."""
        for value in self.classifier.state_dict().values():
            broadcast(value)
        task = self.task
        total = len(self._validation) + len(task.test)
        self.classifier.chosen = None
        tried = self._compare(part_of(progress, 0, total))
        self.classifier.chosen = best_of(tried)
        scores = score_videos(
            self.classifier,
            task.train,
            task.test,
            self.config,
            joined=self.joined,
            progress=part_of(progress, len(self._validation), total),
        )
        self.log_test(scores)
        best = tried[self.classifier.chosen]
        return task.result(
            self.kind,
            scores,
            settings={
                "steps": self.step,
                "epochs": self.epochs,
                **test_settings(task.test, self.config),
                "probes": len(tried),
                "clips_together": self.joined,
            },
            chosen={
                "rate": best.rate,
                "decay": best.decay,
                "validation_top1": best.top1,
                "validation_videos": len(self._validation),
                "sweep": [asdict(one) for one in tried],
            },
            folder=self.config.folder,
        )

    def _compare(self, progress: Progress | None) -> list[ProbeScore]:
        """Return the scores of all probes on the validation videos, each by the mean over eval.views center clips."""
        found = extract_features(
            self.classifier,
            self.task.train,
            self.config,
            samples=self._validation,
            progress=progress,
            reduce=mean_over_views,
            joined=self.joined,
        )
        settings = settings_of(self.config)
        score = found.values.reshape(len(found.label), len(settings), -1)
        hit = score.argmax(axis=2) == found.label[:, None]
        true = np.take_along_axis(score, found.label[:, None, None], axis=2)[..., 0]
        top1, loss = hit.mean(axis=0), -np.log(np.maximum(true, _LEAST)).mean(axis=0)
        return [
            ProbeScore(rate=rate, decay=decay, top1=float(top1[number]), loss=float(loss[number]))
            for number, (rate, decay) in enumerate(settings)
        ]


def best_of(tried: Sequence[ProbeScore]) -> int:
    """Return the number of the probe with the best accuracy, and of several such the one with the lowest loss."""
    return max(range(len(tried)), key=lambda number: (tried[number].top1, -tried[number].loss))
