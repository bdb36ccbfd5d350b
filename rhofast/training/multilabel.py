"""Training with several labels per video: what holds while a clip is shown is learned, each class by itself."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.data.types import Views
from rhofast.evaluation.features import Progress
from rhofast.evaluation.multilabel import score_labels
from rhofast.evaluation.scores import Scores
from rhofast.training.finetune import ClassifierTrainer
from rhofast.training.targets import binary_cross_entropy, multi_hot_targets


class MultilabelTrainer(ClassifierTrainer):
    """Train towards the union of the labels that hold during each clip, and measure mean average precision."""

    fields: ClassVar[tuple[str, ...]] = ("labels",)
    several: ClassVar[bool] = True

    def target(self, views: Views) -> Tensor:
        """Return how much each example of a batch is of each class, f32[B * P, classes]; joined clips have a union."""
        assert views.labels is not None, "the loader was asked for them"
        videos, clips, classes = views.labels.shape
        joined = views.labels.view(videos, clips // self.joined, self.joined, classes).any(dim=2)
        return multi_hot_targets(joined, views.share)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of all clips and classes, for logits and targets f32[N, classes]."""
        return binary_cross_entropy(logits, target)

    def weight(self, target: Tensor) -> Tensor:
        """Return 1: a clip without any label counts as much as any other."""
        return target.new_ones(())

    def score(self, test: ShardSet, config: Config, progress: Progress | None) -> Scores:
        """Measure the classifier on held-out shards, by the protocol of `config.eval`."""
        return score_labels(self.classifier, self.task.train, test, config, joined=self.joined, progress=progress)
