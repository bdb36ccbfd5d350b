"""Open and check what the evaluation of action detection needs: shard sets, and the boxes of their key frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhofast.data.format.box_file import BOXES_FILE, read_boxes
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.key_frames import KeyFrames
from rhofast.errors import ConfigError
from rhofast.evaluation.detection import boxes_to_test_on, boxes_to_train_on
from rhofast.evaluation.task import EvalTask, open_task


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionTask(EvalTask):
    """One backbone with the shard sets and the boxes on which it is trained and tested.

    Attributes:
        train_boxes: The boxes to train on.
        test_boxes: The boxes to score.
        test_found: All boxes of the test set, with the ground truth.
    """

    train_boxes: KeyFrames
    test_boxes: KeyFrames
    test_found: KeyFrames

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes that count."""
        return list(self.test_found.classes.values())

    def shard_facts(self) -> dict[str, Any]:
        """Return the facts of both sets with the digests of their boxes."""
        facts = EvalTask.shard_facts(self)
        for name, boxes in (("train", self.train_boxes), ("test", self.test_boxes)):
            facts[name]["boxes"] = boxes.digest
        return facts


def open_detection_task(
    source: str | Path,
    test: str | Path,
    *,
    train: str | Path | None = None,
    train_boxes: Path | None = None,
    test_boxes: Path | None = None,
    train_keep: str | Path | None = None,
    test_keep: str | Path | None = None,
    config_file: str | Path | None = None,
    overrides: Sequence[str] = (),
    allow_overlap: bool = False,
) -> DetectionTask:
    """Open a backbone, its shard sets and their boxes.

    Args:
        source: Any backbone that `open_model` accepts.
        test: Held-out shards, a folder or an address.
        train: Training shards. None means the first training set of the run.
        train_boxes: Box file of the training shards. None: `boxes.arrow` in their folder.
        test_boxes: Box file of the held-out shards. None: `boxes.arrow` in their folder.
        train_keep: File that lists the training samples to use.
        test_keep: File that lists the test samples to use.
        config_file: Configuration of the evaluation, such as `eval/ava_slow_r50`.
        overrides: Settings `key=value` that are applied after the configuration file.
        allow_overlap: Whether test samples may come from training videos; a note says so instead of an error.

    Returns:
        The task.

    Raises:
        ConfigError: As `open_task`; or a box file is missing, is wrong, or has no box to train or test on; or the
            classes that count differ.
        ResumeError: The checkpoint cannot be read.
        ShardError: A shard set cannot be opened.
    """
    task = open_task(
        source,
        test,
        train=train,
        train_keep=train_keep,
        test_keep=test_keep,
        config_file=config_file,
        overrides=overrides,
        allow_overlap=allow_overlap,
        labeled=False,
    )
    train_file, test_file = _box_file(train_boxes, task.train), _box_file(test_boxes, task.test)
    of_train, of_test = read_boxes(train_file, task.train), read_boxes(test_file, task.test)
    if dict(of_train.classes) != dict(of_test.classes):
        raise ConfigError(
            f"{test_file}: the classes that count differ from those of {train_file}",
            hint="make both files with the same list: rhofast boxes ... --classes FILE",
        )
    return DetectionTask(
        model=task.model,
        train=task.train,
        test=task.test,
        weights=task.weights,
        notes=task.notes,
        train_boxes=boxes_to_train_on(of_train, task.config, where=str(train_file)),
        test_boxes=boxes_to_test_on(of_test, task.config, where=str(test_file)),
        test_found=of_test,
    )


def _box_file(given: Path | None, shards: ShardSet) -> Path:
    """Return the box file of a set; raises ConfigError for a remote set, whose folder holds files of shards only."""
    if given is not None:
        return given
    if not shards.keeps_files:
        raise ConfigError(
            f"{shards.where}: the box file of a remote set must be given", hint="--train-boxes FILE, --test-boxes FILE"
        )
    return shards.root / BOXES_FILE
