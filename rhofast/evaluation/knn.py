"""Weighted k-nearest neighbors on backbone features (Wu et al., arXiv 1805.01978, as in the monitor of PySlowFast).

The bank holds the normalized mean over the views of each training sample. Each view of a test sample is a normalized
query: its K nearest bank rows add exp(cosine / T) to the score of their class, and the scores of all views are added.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rhofast.config.schema import Config
from rhofast.data.format.dataset import ShardSet
from rhofast.evaluation.features import Progress
from rhofast.evaluation.labeled_features import extract_labeled, measure_backbones
from rhofast.evaluation.nearest import nearest_rows
from rhofast.evaluation.scores import Evaluation, Scores, summarize
from rhofast.evaluation.task import EvalTask

_MAX_EXPONENT = 700.0  # exp of it is finite in float64


def knn_scores(
    bank: npt.NDArray[np.float32],
    bank_label: npt.NDArray[np.int64],
    queries: npt.NDArray[np.float32],
    *,
    num_classes: int,
    neighbors: int,
    temperature: float,
    device: torch.device,
    rows: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float64]:
    """Compute the class scores of test samples. Call it in every process, with the same values.

    Args:
        bank: f32[A, D], features of any length, or f32[A, V, D], those of V views per training sample.
        bank_label: i64[N], class numbers.
        queries: f32[M, V, D], features of V views per test sample.
        num_classes: Number of classes.
        neighbors: K; at most N are used.
        temperature: T. Where it is so low that scores would overflow, all scores of a sample are divided by one
            constant.
        device: Device of this rank, on which neighbors are searched.
        rows: i64[N], the training samples that have a label. None: all, N = A.

    Returns:
        f64[M, num_classes], the class scores, on every rank.
    """
    m, v, d = queries.shape
    count = min(neighbors, len(bank_label))
    cosine, row = nearest_rows(bank, queries.reshape(m * v, d), count, device=device, rows=rows)
    exponent = cosine.reshape(m, v * count).astype(np.float64) / temperature
    weight = np.exp(exponent - np.maximum(exponent.max(axis=1, keepdims=True) - _MAX_EXPONENT, 0))
    place = np.arange(m)[:, None] * num_classes + bank_label[row].reshape(m, -1)
    scores = np.bincount(place.reshape(-1), weight.reshape(-1), minlength=m * num_classes)
    return scores.reshape(m, num_classes).astype(np.float64, copy=False)


def evaluate_knn(
    backbone: nn.Module,
    train: ShardSet,
    test: ShardSet,
    config: Config,
    *,
    progress: Progress | None = None,
) -> Scores:
    """Measure the kNN accuracy of a backbone on held-out shards, with the training shards as the bank.

    Classes are matched by name. The result is the same on every rank.

    Args:
        backbone: [N, C, T, H, W] -> [N, D], on the device on which it runs.
        train: Labeled training shards.
        test: Held-out test shards.
        config: Input, reading and section `eval`.
        progress: Called with (samples done, total samples).

    Returns:
        The accuracies.

    Raises:
        ConfigError: If labels are missing or the test set has a class that the training set lacks.
        ShardError: If shards cannot be read, or no readable sample has a label.
        NotFiniteError: If a feature is not finite.
    """
    found = extract_labeled(backbone, train, test, config, progress=progress)
    scores = knn_scores(
        found.bank,
        found.bank_label,
        found.queries,
        num_classes=len(found.classes),
        neighbors=config.eval.neighbors,
        temperature=config.eval.temperature,
        device=next(backbone.parameters()).device,
        rows=found.bank_rows,
    )
    return summarize(scores, found.query_label, classes=found.classes, left_out=found.left_out)


def evaluate_neighbors(task: EvalTask, *, untrained: bool = False, progress: Progress | None = None) -> Evaluation:
    """Run the weighted kNN evaluation of a task. The result is the same on every rank.

    Args:
        task: The task.
        untrained: Whether the same backbone before training is evaluated too.
        progress: Called with (samples done, total samples).

    Returns:
        The result.

    Raises:
        ShardError: If shards cannot be read.
        NotFiniteError: If a feature is not finite.
    """
    results = measure_backbones(
        task,
        lambda network, done: evaluate_knn(network, task.train, task.test, task.config, progress=done),
        untrained=untrained,
        progress=progress,
    )
    section = task.config.eval
    return task.result(
        "knn",
        results[0],
        untrained=results[1] if untrained else None,
        settings={"views": section.views, "neighbors": section.neighbors, "temperature": section.temperature},
    )
