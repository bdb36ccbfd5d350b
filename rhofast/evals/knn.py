"""Weighted k-nearest neighbors on backbone features (Wu et al., arXiv 1805.01978, as the release's monitor does it).

Bank: the mean over views of each training sample's features, normalized. Query: each view of a test sample by itself,
normalized; its K nearest bank rows vote for their class with weight exp(cosine / T); the votes of all views are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate import PartialState
from torch import nn

from rhofast.checkpoint import find_checkpoint, trained_backbone, untrained_backbone
from rhofast.config import AugmentSection, ClipSection, DataSection, EvalSection, override_config
from rhofast.data.index import ShardSet
from rhofast.data.remote import open_shards
from rhofast.errors import ConfigError
from rhofast.evals.features import Features, Progress, extract_features, part_of

_CHUNK = 1024  # queries scored at once; bounds memory at chunk x bank


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnResult:
    """top1 and top5 in [0, 1] over `samples` test samples; per_class: accuracy by class name, for classes with test
    samples; confusion[true][predicted] counts; left_out: what could not be read of the bank and the test samples, a
    line each."""

    top1: float
    top5: float
    samples: int
    left_out: list[str]
    per_class: dict[str, float]
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A checkpoint's kNN result, and for comparison that of the same backbone untrained (or None), and chance."""

    run: Path
    trained: KnnResult
    untrained: KnnResult | None
    chance: float
    classes: list[str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "run": str(self.run)}


def evaluate_checkpoint(
    path: Path,
    test: str | Path,
    *,
    bank: str | Path | None = None,
    untrained: bool = False,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """kNN of a run's newest checkpoint, or of a checkpoint folder, on the shards at `test`, a folder or an address.

    bank: labeled training shards; None: those of the run, of several sets the first. overrides: `--set` for the run's
    page. progress: called with (samples done, in all). Raises ResumeError, ShardError, ConfigError.
    """
    folder = find_checkpoint(path)
    backbone, trained_with = trained_backbone(folder)
    config = override_config(trained_with, overrides)
    if bank is None and not config.data.train:
        raise ConfigError("no training shards for the bank", hint="give them with --train")
    train = open_shards(bank or config.data.train[0].shards, data=config.data)
    held_out = open_shards(test, data=config.data)
    device = PartialState().device
    backbones = [backbone]
    if untrained:
        backbones.append(untrained_backbone(config))
    total = len(backbones) * (len(train) + len(held_out))
    results = []
    for number, network in enumerate(backbones):
        before = number * (len(train) + len(held_out))
        results.append(
            evaluate_knn(
                network.to(device),
                train,
                held_out,
                clips=config.clips,
                augment=config.augment,
                data=config.data,
                section=config.eval,
                progress=part_of(progress, before, total),
            )
        )
    return Evaluation(
        run=folder.parent.parent,
        trained=results[0],
        untrained=results[1] if untrained else None,
        chance=1 / len(train.info.classes),
        classes=train.info.classes,
    )


def knn_scores(
    bank: npt.NDArray[np.float32],
    bank_label: npt.NDArray[np.int64],
    queries: npt.NDArray[np.float32],
    *,
    num_classes: int,
    neighbors: int,
    temperature: float,
) -> npt.NDArray[np.float64]:
    """Votes f64[M, num_classes]. bank f32[N, D] (any length), bank_label i64[N], queries f32[M, V, D]; `neighbors` is
    cut to N."""
    bank = _normalized(bank)
    count = min(neighbors, len(bank))
    m, v, d = queries.shape
    flat = _normalized(queries.reshape(m * v, d))
    votes = np.zeros((m * v, num_classes))
    for first in range(0, m * v, _CHUNK):
        similarity = flat[first : first + _CHUNK] @ bank.T
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        weight = np.exp(np.take_along_axis(similarity, nearest, axis=1).astype(np.float64) / temperature)
        rows = np.repeat(np.arange(len(nearest)), count)
        np.add.at(votes, (first + rows, bank_label[nearest].reshape(-1)), weight.reshape(-1))
    total: npt.NDArray[np.float64] = votes.reshape(m, v, num_classes).sum(axis=1)
    return total


def evaluate_knn(
    backbone: nn.Module,
    train: ShardSet,
    test: ShardSet,
    *,
    clips: ClipSection,
    augment: AugmentSection,
    data: DataSection,
    section: EvalSection,
    progress: Progress | None = None,
) -> KnnResult:
    """kNN accuracy of a backbone on held-out shards, with the training shards as the bank; the same on every rank.
    Classes are matched by name. Raises ConfigError where labels are missing or the test set has other classes."""
    to_train_class = _class_map(train, test)
    total = len(train) + len(test)

    def extract(shards: ShardSet, before: int) -> Features:
        return extract_features(
            backbone,
            shards,
            clips=clips,
            augment=augment,
            data=data,
            views=section.views,
            batch_size=section.batch_size,
            progress=part_of(progress, before, total),
        )

    bank, queries = extract(train, 0), extract(test, len(train))
    labeled = bank.label >= 0
    votes = knn_scores(
        bank.values[labeled].mean(axis=1),
        bank.label[labeled],
        queries.values,
        num_classes=len(train.info.classes),
        neighbors=section.neighbors,
        temperature=section.temperature,
    )
    known = queries.label >= 0
    return summarize(
        votes[known],
        to_train_class[queries.label[known]],
        classes=train.info.classes,
        left_out=[str(error) for error in [*bank.bad, *queries.bad]],
    )


def summarize(
    scores: npt.NDArray[np.float64], label: npt.NDArray[np.int64], *, classes: list[str], left_out: list[str]
) -> KnnResult:
    """Accuracies of class scores f64[M, C] against labels i64[M]. Equal scores count for the smaller class number."""
    ranked = np.argsort(-scores, axis=1, kind="stable")
    hit = ranked == label[:, None]
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (label, ranked[:, 0]), 1)
    seen = np.flatnonzero(confusion.sum(axis=1))
    return KnnResult(
        top1=float(hit[:, 0].mean()),
        top5=float(hit[:, :5].any(axis=1).mean()),
        samples=len(label),
        left_out=left_out,
        per_class={classes[c]: float(confusion[c, c] / confusion[c].sum()) for c in seen},
        confusion=confusion.tolist(),
    )


def _class_map(train: ShardSet, test: ShardSet) -> npt.NDArray[np.int64]:
    """Test class number -> training class number, by name."""
    for shards in (train, test):
        if not shards.info.classes:
            raise ConfigError(
                f"{shards.where}: no labels, and kNN needs them", hint="shard a labeled set to evaluate on"
            )
    number = {name: place for place, name in enumerate(train.info.classes)}
    unknown = [name for name in test.info.classes if name not in number]
    if unknown:
        raise ConfigError(f"{test.where}: class {unknown[0]!r} is not a class of {train.where}")
    return np.array([number[name] for name in test.info.classes], dtype=np.int64)


def _normalized(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    unit: npt.NDArray[np.float32] = values / np.maximum(length, np.finfo(np.float32).tiny)
    return unit
