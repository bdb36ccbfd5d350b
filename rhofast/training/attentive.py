"""Attentive probes with many settings at once: trained on tokens of the frozen backbone, chosen on training videos.

    training videos --split--> nine tenths: clips -> backbone -> tokens -> 20 probes, each with its rate and decay
                           |   (eval.probe_clips clips of a video are read together, one of each of as many equal parts)
                           `-> a tenth: the probe with the best top-1, then the lowest loss
    test videos --> the chosen probe --> softmax, mean over the views of multiview.py

With several labels per video (multilabel.py) it is mAP that chooses, and the maximum over the views that counts.

The recipe is V-JEPA 2's (arXiv 2506.09985): 5 rates x 4 decays, AdamW, no warm-up, a cosine to 0. There, the best of
the 20 on the test videos is reported; here the test videos choose nothing.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from rhofast.config.schema import Config
from rhofast.errors import ConfigError
from rhofast.evaluation.attentive import AttentiveProbes
from rhofast.evaluation.choice import Tried, best_of
from rhofast.evaluation.features import Features, Progress, extract_features, mean_over_views, part_of
from rhofast.evaluation.multilabel import MAP, classes_of, max_over_views, mean_precision
from rhofast.evaluation.multiview import test_settings
from rhofast.evaluation.scores import Evaluation
from rhofast.evaluation.task import EvalTask
from rhofast.evaluation.validation import split_off
from rhofast.training.finetune import ClassifierTrainer
from rhofast.training.loop import OnLog
from rhofast.training.multilabel import MultilabelTrainer
from rhofast.training.optim import build_optimizer, learning_rate
from rhofast.training.tuning_loop import Kind

_PEAK = "peak_lr"  # in a parameter group: the rate of its probe, in place of optim.base_lr
_LEAST = 1e-12  # score of the true class below which a loss is not told apart


def settings_of(config: Config) -> list[tuple[float, float]]:
    """Return (rate, decay) of each probe: the peak learning rate for a batch of `optim.base_batch`, weight decay."""
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
    measure: ClassVar[str] = "top1"  # what chooses

    def __init__(
        self, task: EvalTask, config: Config, kind: Kind, accelerator: Accelerator, on_log: OnLog | None
    ) -> None:
        """Split the training videos and build everything, as ClassifierTrainer does."""
        split = split_off(task.train, config.eval.probe_validation, several=self.several)
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
            several=self.several,
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
        self.share_statistics()
        task = self.task
        total = len(self._validation) + len(task.test)
        self.classifier.chosen = None
        tried = self._compare(part_of(progress, 0, total))
        self.classifier.chosen = best_of(tried)
        scores = self.score(task.test, self.config, part_of(progress, len(self._validation), total))
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
                **best.setting,
                f"validation_{best.measure}": best.score,
                "validation_videos": len(self._validation),
                "sweep": [one.to_json() for one in tried],
            },
            folder=self.config.folder,
        )

    def _compare(self, progress: Progress | None) -> list[Tried]:
        """Return the scores of all probes on the validation videos, each by eval.views center clips."""
        found = extract_features(
            self.classifier,
            self.task.train,
            self.config,
            samples=self._validation,
            progress=progress,
            reduce=max_over_views if self.several else mean_over_views,
            joined=self.joined,
        )
        settings = settings_of(self.config)
        values = found.values.reshape(len(found.label), len(settings), -1)
        return [
            Tried(setting={"rate": rate, "decay": decay}, measure=self.measure, score=score, loss=loss)
            for (rate, decay), (score, loss) in zip(settings, self.measured(found, values), strict=True)
        ]

    def measured(self, found: Features, values: npt.NDArray[np.float32]) -> list[tuple[float, float]]:
        """Return the score and the mean cross-entropy of each of S probes.

        Args:
            found: The validation videos.
            values: Their scores f32[M, S, C].
        """
        hit = values.argmax(axis=2) == found.label[:, None]
        true = np.take_along_axis(values, found.label[:, None, None], axis=2)[..., 0]
        loss = -np.log(np.maximum(true, _LEAST)).mean(axis=0)
        return list(zip(hit.mean(axis=0).tolist(), loss.tolist(), strict=True))


class MultilabelProbeTrainer(MultilabelTrainer, ProbeTrainer):
    """The same with several labels per video: sigmoids, and mAP."""

    measure: ClassVar[str] = MAP

    def measured(self, found: Features, values: npt.NDArray[np.float32]) -> list[tuple[float, float]]:
        """Return the mAP and the mean cross-entropy of each of S probes; as ProbeTrainer."""
        held = classes_of(self.task.train)[found.sample]
        true = np.where(held[:, None], values, 1 - values)
        losses = (-np.log(np.maximum(true, _LEAST))).mean(axis=(0, 2)).tolist()
        scores = [mean_precision(values[:, number], held) for number in range(values.shape[1])]
        return list(zip(scores, losses, strict=True))
