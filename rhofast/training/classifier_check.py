"""What settings cannot go together where a classifier is trained; checked before anything is built."""

from __future__ import annotations

import numpy as np

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError
from rhofast.evaluation.scores import check_labeled
from rhofast.evaluation.task import EvalTask
from rhofast.evaluation.validation import validation_part


def check_loop(config: Config, trained: str) -> None:
    """Refuse settings of pretraining that the loop of classifiers and detectors does not know.

    Args:
        config: The configuration.
        trained: What is trained, in words: a "classifier" or a "detector".

    Raises:
        ConfigError: One setting, with a remedy.
    """
    train = config.train
    if train.accumulate != 1:
        raise ConfigError(
            f"train.accumulate={train.accumulate}: a {trained} is trained with 1",
            hint="set train.accumulate=1, with a smaller train.batch_size for less memory",
        )
    if train.compile:
        raise ConfigError(
            f"train.compile=true: a {trained} is trained without torch.compile",
            hint="set train.compile=false",
        )
    if train.init_from is not None:
        raise ConfigError(
            f"train.init_from={train.init_from}: a {trained} begins with the weights that are evaluated",
            hint="give the file in place of the checkpoint, and leave train.init_from out",
        )
    for name, value in (("knn_steps", train.knn_steps), ("knn_epochs", train.knn_epochs)):
        if value is not None:
            raise ConfigError(
                f"train.{name}={value:g}: there is no kNN while a {trained} is trained",
                hint=f"leave train.{name} out; eval.validation_epochs watches the training",
            )


def check_classifier(config: Config, shards: ShardSet, *, trains_backbone: bool, several: bool = False) -> None:
    """Refuse settings that a classifier's training cannot follow.

    Args:
        config: The configuration.
        shards: What it trains on.
        trains_backbone: Whether the weights of the backbone are trained.
        several: Whether a video may have several classes.

    Raises:
        ConfigError: One setting, with a remedy.
        ShardError: An index cannot be read.
    """
    check_loop(config, "classifier")
    decay = config.optim.layer_decay
    if decay != 1 and not trains_backbone:
        raise ConfigError(
            f"optim.layer_decay={decay:g}: a linear probe trains the classifier alone, which has the whole rate",
            hint="set optim.layer_decay=1, or use rhofast eval finetune",
        )
    smoothing = config.eval.label_smoothing
    if smoothing and several:
        raise ConfigError(
            f"eval.label_smoothing={smoothing:g}: with several labels per video each class is learned by itself",
            hint="set eval.label_smoothing=0",
        )
    check_labeled(shards, several=several)
    if config.augment.mixes and not several:
        _check_mixed(config, shards)


def check_validation(task: EvalTask, config: Config, *, several: bool) -> None:
    """Refuse `eval.validation_stride` if it leaves no labeled video to look at.

    Args:
        task: With the held-out shards.
        config: The configuration.
        several: Whether a video may have several classes.

    Raises:
        ConfigError: It leaves none.
        ShardError: An index cannot be read.
    """
    stride = config.eval.validation_stride
    if config.eval.validation_epochs is None or stride == 1:
        return
    try:
        check_labeled(validation_part(task.test, stride), several=several)
    except ConfigError as error:
        raise ConfigError(
            f"eval.validation_stride={stride}: {error.message}", hint="--set eval.validation_stride=1"
        ) from None


def _check_mixed(config: Config, shards: ShardSet) -> None:
    """Raise ConfigError if videos that shall be mixed have no label, or several."""
    for shard in shards.used_shards().tolist():
        index, rows = shards.index(shard), shards.rows_of(shard)
        without = rows[index.label[rows] < 0]
        several = rows[np.diff(index.labels_starts)[rows] > 0]
        for found, have in ((without, "has no label"), (several, "has several labels")):
            if len(found):
                key = index.key(int(found[0]))
                raise ConfigError(
                    f"augment.mixup={config.augment.mixup:g}, augment.cutmix={config.augment.cutmix:g}: sample {key!r} "
                    f"of {shards.where} {have}, and only videos with one label each can be mixed",
                    hint="set augment.mix=0, or leave such samples out with --train-keep",
                )
