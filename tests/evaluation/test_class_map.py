"""Classes of a test set are matched with those of the training set by name, where a test sample has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.errors import ConfigError
from rhofast.evaluation.scores import class_map
from tests.helpers.shards import encode_mjpeg, frame_pixels, write_shards


def labeled(root: Path, labels: list[int], classes: list[str]) -> ShardSet:
    shards = write_shards(root, [encode_mjpeg([frame_pixels(1, 1)] * 2)] * len(labels), labels=labels)
    description = root / "dataset.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "classes": classes}))
    return open_folder(shards.root)


def test_a_test_set_may_lack_classes_and_number_them_in_its_own_way(tmp_path: Path) -> None:
    train = labeled(tmp_path / "train", [0, 1, 2], ["hold", "push", "tear"])
    test = labeled(tmp_path / "test", [2, 1], ["0", "push", "hold", "unseen"])
    assert class_map(train, test).tolist() == [-1, 1, 0, -1]
    assert class_map(test, labeled(tmp_path / "one", [1], ["0", "push"])).tolist() == [0, 1]


def test_a_class_with_samples_must_be_known(tmp_path: Path) -> None:
    train = labeled(tmp_path / "train", [0, 1], ["hold", "push"])
    test = labeled(tmp_path / "test", [3, 1, 2], ["0", "push", "rip", "tear"])
    with pytest.raises(ConfigError, match=r"'rip' is not a class of .*train \(and 1 more classes\)"):
        class_map(train, test)
    twice = labeled(tmp_path / "twice", [0, 1], ["push", "push"])
    with pytest.raises(ConfigError, match="two classes have the name 'push'"):
        class_map(train, twice)
    with pytest.raises(ConfigError, match="has no labels"):
        class_map(train, labeled(tmp_path / "none", [0], []))


def test_ids_of_videos_are_no_classes(tmp_path: Path) -> None:
    many = labeled(tmp_path / "many", [0, 1], [str(number) for number in range(5_001)])
    with pytest.raises(ConfigError, match="5,001 classes; an evaluation takes 5,000 at most"):
        class_map(many, many)
