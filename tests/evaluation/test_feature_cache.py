"""Kept features are those that were computed, or they are computed again."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from rhofast.evaluation.feature_cache import FeatureCache

SAMPLES = np.arange(12, dtype=np.int64)
VALUES = np.random.default_rng(0).standard_normal((12, 2, 3)).astype(np.float32)
LABELS = SAMPLES % 3
IDENTITY = {"weights": "a"}


def kept(folder: Path) -> Path:
    """Keep three batches of four samples, and return the file of the part."""
    with FeatureCache(folder, IDENTITY).writing(0) as part:
        for begin in (0, 4, 8):
            rows = slice(begin, begin + 4)
            part.write(VALUES[rows], SAMPLES[rows], LABELS[rows])
    (path,) = folder.glob("*/part-*")
    return path


def read(cache: FeatureCache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is kept as (values, sample, label)."""
    batches = list(cache.read(SAMPLES))
    if not batches:
        return np.empty((0, 2, 3)), np.empty(0, np.int64), np.empty(0, np.int64)
    values, sample, label = (np.concatenate(column) for column in zip(*batches, strict=True))
    return values, sample, label


def check(folder: Path, count: int) -> None:
    values, sample, label = read(FeatureCache(folder, IDENTITY))
    assert len(sample) == count
    if count:
        assert np.array_equal(values, VALUES[sample]) and np.array_equal(label, LABELS[sample])


def test_a_flipped_bit_anywhere_costs_its_batch_and_changes_no_feature(tmp_path: Path) -> None:
    path = kept(tmp_path)
    whole = path.read_bytes()
    check(tmp_path, 12)
    lost = []
    for at in range(0, len(whole), 61):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        values, sample, label = read(FeatureCache(tmp_path, IDENTITY))
        assert np.array_equal(values, VALUES[sample] if len(sample) else values)
        assert np.array_equal(label, LABELS[sample])
        lost.append(12 - len(sample))
    assert set(lost) <= {4, 8, 12} and 4 in lost  # a damaged length loses what follows it, too


@pytest.mark.parametrize(("cut", "count"), [(1, 8), (40, 8), (10**6, 0)])
def test_a_part_that_was_cut_short_is_read_up_to_its_last_whole_batch(tmp_path: Path, cut: int, count: int) -> None:
    path = kept(tmp_path)
    os.truncate(path, max(0, path.stat().st_size - cut))
    check(tmp_path, count)


def test_features_of_something_else_are_not_taken(tmp_path: Path) -> None:
    path = kept(tmp_path / "one")
    FeatureCache(tmp_path / "other", {"weights": "b"})
    (folder,) = (tmp_path / "other").iterdir()
    shutil.copy(path, folder)
    _, sample, _ = read(FeatureCache(tmp_path / "other", {"weights": "b"}))
    assert len(sample) == 0


def test_two_evaluations_at_once_write_files_of_their_own(tmp_path: Path) -> None:
    first, second = FeatureCache(tmp_path, IDENTITY), FeatureCache(tmp_path, IDENTITY)
    with first.writing(0) as one, second.writing(0) as two:
        one.write(VALUES[:6], SAMPLES[:6], LABELS[:6])
        two.write(VALUES[6:], SAMPLES[6:], LABELS[6:])
    check(tmp_path, 12)
