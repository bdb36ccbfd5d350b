"""A classifier trained by SGD through the augmenting loader: the release's linear probe, and fine-tuning.

    next(loader) -> clips -> Classifier -> cross-entropy of soft targets -> optimizer;  at the end the test, once

Its config is like a run's (configs/eval/): augmentation, optimizer, length, and `eval` for dropout, batch norm and the
test. What the network sees (clips, normalization) is the checkpoint's unless the config says otherwise. The classifier
gets a run folder of its own, `evals/NAME` in that of the checkpoint, whose checkpoints hold the backbone as a run's do.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.rng import Stream, torch_seed
from rhofast.data.sampling.shuffle import rank_slice
from rhofast.data.types import Views
from rhofast.distributed.collectives import reduce_mean
from rhofast.evaluation.attentive import AttentiveProbes
from rhofast.evaluation.classifier import Classifier
from rhofast.evaluation.features import Progress
from rhofast.evaluation.multiview import score_videos, test_settings
from rhofast.evaluation.scores import Evaluation, Scores
from rhofast.evaluation.validation import validation_part
from rhofast.models.batch_norm import synchronize_batch_norm
from rhofast.training.setup import build_loader
from rhofast.training.targets import soft_cross_entropy, soft_targets
from rhofast.training.tuning_loop import StepOutcome, TuningLoop


class ClassifierTrainer(TuningLoop):
    """Classifier, optimizer, loader, and the number of steps done. The classifier may be several at once.

    Attributes:
        fields: Fields of the samples that targets are made of, besides the label.
        several: Whether a video may have several classes.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    several: ClassVar[bool] = False
    joined = 1  # clips of a video that are one example

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
            several=self.several,
        )
        if section.batch_norm in ("node", "sync"):
            synchronize_batch_norm(classifier.backbone, "node" if section.batch_norm == "node" else "sync")
        return classifier

    def build_loader(self, shards: ShardSet, bad_log: Path) -> TrainLoader:
        """Return this rank's loader of what is trained on."""
        return build_loader(
            self.config, self.accelerator, shards, bad_log, duplicate_single_clip=False, fields=self.fields
        )

    def test(self, progress: Progress | None) -> Evaluation:
        """Run the test protocol, with rank 0's statistics of batch norm on every rank."""
        self.share_statistics()
        task, section = self.task, self.config.eval
        settings = {
            "steps": self.step,
            "epochs": self.epochs,
            "batch_norm": section.batch_norm,
            **({"fit": "SGD"} if self.kind == "linear" else {}),
            **test_settings(task.test, self.config),
        }
        scores = self.score(task.test, self.config, progress)
        return task.result(
            self.kind, scores, settings=settings, chosen=self.log_test(scores), folder=self.config.folder
        )

    def validate(self) -> Scores:
        """Measure the classifier on the videos of validation, by one center clip of each."""
        config = self.config
        quick = config.eval.model_copy(update={"test_views": 1, "test_crops": 1, "keep": None})
        test = validation_part(self.task.test, config.eval.validation_stride)
        return self.score(test, config.model_copy(update={"eval": quick}), None)

    def score(self, test: ShardSet, config: Config, progress: Progress | None) -> Scores:
        """Measure the classifier on held-out shards, by the protocol of `config.eval`."""
        return score_videos(self.classifier, self.task.train, test, config, joined=self.joined, progress=progress)

    def forward(self, views: Views) -> StepOutcome:
        """Return loss and hits of a batch. Of several classifiers at once, they are means over those with finite loss.

        Args:
            views: The batch of this rank.
        """
        config = self.config
        batch, rank = config.train.batch_size, self.accelerator.process_index
        share = rank_slice(batch, rank, self.accelerator.num_processes)
        examples = views.pixels.shape[1] // self.joined
        self.classifier.dropout.begin(
            seed=torch_seed(config.seed, self.step + 1, 0, Stream.DROPOUT),
            rows=slice(share.start * examples, share.stop * examples),
            batch=batch * examples,
        )
        logits = self.model(views.pixels.flatten(0, 1))
        target = self.target(views)
        scores = logits.float() if logits.ndim == 3 else logits.float()[:, None]  # [N, classifiers, classes]
        losses = torch.stack([self.loss(each, target) for each in scores.unbind(1)]) * self.weight(target)
        objective = losses.sum()  # no weight is shared: each classifier gets its own gradient
        finite, most = losses.detach().isfinite(), target.amax(dim=1, keepdim=True)
        loss = torch.where(finite, losses.detach(), 0).sum() / finite.sum()  # not finite if none is
        right = (target.gather(1, scores.detach().argmax(dim=2)) == most) & (most > 0) & finite
        return StepOutcome(objective, loss, right.sum() / finite.sum(), (most > 0).sum())

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one classifier's logits f32[N, classes] for targets f32[N, classes]."""
        return soft_cross_entropy(logits, target)

    def weight(self, target: Tensor) -> Tensor:
        """Return what this rank's mean loss counts for, so that the mean over ranks is the mean over labeled clips."""
        known = (target.sum(dim=1) > 0).sum().float()
        mean = reduce_mean(known)
        return torch.where(mean > 0, known / mean, 1.0)

    def target(self, views: Views) -> Tensor:
        """Return the targets of all examples of a batch, f32[B * P, classes] for P examples per video."""
        examples, partner, share = views.pixels.shape[1] // self.joined, None, None
        if views.share is not None:
            partner = views.label.view(-1, 2).flip(1).flatten().repeat_interleave(examples)
            share = views.share.flatten()
        return soft_targets(
            views.label.repeat_interleave(examples),
            len(self.task.train.info.classes),
            smoothing=self.config.eval.label_smoothing,
            partner=partner,
            share=share,
        )
