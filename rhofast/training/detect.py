"""Train a detector of actions on key frames, and test it: fine-tuning with boxes.

    next(loader) -> clips, boxes, targets -> Detector -> cross-entropy of each action by itself -> optimizer

Everything else is as in the training of a classifier (finetune.py). The loss is the mean over the boxes of the global
batch and the actions, and a feature is dropped by the box's place among them, so that a step does not depend on the
number of ranks, although ranks have different numbers of boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.key_frames import NUM_ACTIONS
from rhofast.data.loader.box_loaders import BoxTrainLoader, BoxViews
from rhofast.data.sampling.rng import Stream, torch_seed
from rhofast.data.types import Views
from rhofast.distributed.collectives import all_gather
from rhofast.errors import ConfigError
from rhofast.evaluation.detection import Detected, counted_truth, detect, score_detections
from rhofast.evaluation.detection_task import DetectionTask
from rhofast.evaluation.detector import Detector, check_maps
from rhofast.evaluation.features import Progress
from rhofast.evaluation.multiview import check_test, test_augment
from rhofast.evaluation.scores import Evaluation, Scores
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.training.classifier_check import check_loop
from rhofast.training.classify import Stopped, train_and_test
from rhofast.training.loop import OnLog
from rhofast.training.setup import check_same_data
from rhofast.training.tuning_loop import StepOutcome, TuningLoop


@dataclass(frozen=True, kw_only=True, slots=True)
class TestedDetector:
    """A detector's result.

    Attributes:
        evaluation: The result, as of every evaluation.
        detected: The scores of all boxes.
    """

    evaluation: Evaluation
    detected: Detected


def train_detector(
    task: DetectionTask, *, resume: bool = False, on_log: OnLog | None = None, progress: Progress | None = None
) -> TestedDetector | Stopped:
    """Train a detector on a task's boxes as its config says, and test it; call it in every process.

    Args:
        task: Backbone, shards and boxes.
        resume: Continue from the newest checkpoint in the detector's own folder, or begin if there is none.
        on_log: Called on rank 0 with each line of metrics.
        progress: Called during the test with key frames done and key frames in all.

    Returns:
        The result of the test, or where training stopped early. The scores of all boxes belong to the result.

    Raises:
        ConfigError: Settings do not fit together, or the folder exists and `resume` is off.
        ResumeError: Nothing whole to continue from, or the folder belongs to another task.
        ShardError: The data cannot be opened.
        SampleError: Too many samples are bad.
        NotFiniteError: The loss of a step, or a score, was not finite.
        SaveError: The last checkpoint could not be written.
    """
    config = task.config.model_copy(update={"clips": task.config.clips.model_copy(update={"num_clips": 1, "parts": 1})})
    check_detector(config)
    check_maps(task.model.backbone, config.backbone.name)
    check_watched(task, config)
    check_test(task.model.backbone, config)
    return train_and_test(
        lambda accelerator: DetectorTrainer(task, config, "detection", accelerator, on_log),
        lambda trainer: trainer.test_boxes(progress),
        config,
        resume=resume,
    )


class DetectorTrainer(TuningLoop):
    """Detector, optimizer, loader of key frames, and the number of steps done."""

    task: DetectionTask
    classifier: Detector

    def build_classifier(self) -> Detector:
        """Return the detector, in training mode, on the CPU."""
        section = self.config.eval
        detector = Detector(
            self.task.model.backbone,
            NUM_ACTIONS,
            batch_stats=section.batch_norm != "frozen",
            dropout=section.dropout,
        )
        if section.batch_norm in ("node", "sync"):
            synchronize_batch_norm(detector.backbone, "node" if section.batch_norm == "node" else "sync")
        return detector

    def build_loader(self, shards: ShardSet, bad_log: Path) -> BoxTrainLoader:
        """Return this rank's loader of key frames."""
        config, device = self.config, self.accelerator.device
        check_same_data(self.task.train_boxes.digest)
        return BoxTrainLoader(
            shards,
            self.task.train_boxes,
            clips=config.clips,
            augment=config.augment,
            data=config.data,
            batch_size=config.train.batch_size,
            seed=config.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            device=device,
            dtype=torch.float16 if device.type == "cuda" and config.train.precision != "fp32" else torch.float32,
            bad_log=bad_log,
        )

    def facts(self) -> dict[str, Any]:
        """Return what the result depends on besides the configuration of a run, as JSON values."""
        return {**super().facts(), "classes": self.task.classes, "box_score": self.config.eval.box_score}

    def forward(self, views: Views) -> StepOutcome:
        """Return the loss of a batch, and how many boxes have one of their actions as the most probable one."""
        assert isinstance(views, BoxViews)
        counts = all_gather(torch.tensor([len(views.box)], device=views.boxes.device)).flatten().tolist()
        rank, total = self.accelerator.process_index, sum(counts)
        self.classifier.dropout.begin(
            seed=torch_seed(self.config.seed, self.step + 1, 0, Stream.DROPOUT),
            rows=slice(sum(counts[:rank]), sum(counts[: rank + 1])),
            batch=total,
        )
        logits = self.model(views.pixels[:, 0], views.boxes)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # Gradients are averaged over ranks, so that each rank's part of the mean counts as many times as there are.
        summed = functional.binary_cross_entropy_with_logits(logits, views.targets.to(logits), reduction="sum")
        loss = summed * (len(counts) / (total * NUM_ACTIONS))
        best = logits.detach().argmax(dim=1, keepdim=True)
        hits, known = views.targets.gather(1, best).sum(), (views.targets.sum(dim=1) > 0).sum()
        return StepOutcome(loss, loss.detach(), hits, known)

    def test_boxes(self, progress: Progress | None) -> TestedDetector:
        """Test on the boxes of the test set, with rank 0's statistics of batch norm on every rank."""
        self.share_statistics()
        task, section = self.task, self.config.eval
        detected = detect(self.classifier, task.test, task.test_boxes, self.config, progress=progress)
        scores = score_detections(detected, task.test_found)
        settings = {
            "steps": self.step,
            "epochs": self.epochs,
            "batch_norm": section.batch_norm,
            "test_size": test_augment(self.config).size,
            "test_boxes": section.test_boxes,
            "box_score": section.box_score,
            "boxes": len(detected.box),
        }
        evaluation = task.result(
            self.kind, scores, settings=settings, chosen=self.log_test(scores), folder=self.config.folder
        )
        return TestedDetector(evaluation=evaluation, detected=detected)

    def validate(self) -> Scores:
        """Score the boxes of some key frames, as in the test, and return the mAP of these."""
        task, stride = self.task, self.config.eval.validation_stride
        boxes, found = task.test_boxes.at_seconds(stride), task.test_found.at_seconds(stride)
        return score_detections(detect(self.classifier, task.test, boxes, self.config), found)


def check_watched(task: DetectionTask, config: Config) -> None:
    """Raise ConfigError if `eval.validation_stride` leaves no key frame with boxes and truth to validate on."""
    stride = config.eval.validation_stride
    if config.eval.validation_epochs is None:
        return
    found = task.test_found.at_seconds(stride)
    if not len(task.test_boxes.at_seconds(stride)) or not counted_truth(found).any():
        raise ConfigError(
            f"eval.validation_stride={stride}: no key frame at such a second has boxes and actions that count",
            hint="--set eval.validation_stride=1",
        )


def check_detector(config: Config) -> None:
    """Raise ConfigError for a setting that the training of a detector cannot follow."""
    section = config.eval
    check_loop(config, "detector")
    if section.repeats != 1:
        raise ConfigError(f"eval.repeats={section.repeats}: a key frame has one clip", hint="set eval.repeats=1")
    if section.label_smoothing:
        raise ConfigError(
            f"eval.label_smoothing={section.label_smoothing:g}: each action is learned by itself",
            hint="set eval.label_smoothing=0",
        )
