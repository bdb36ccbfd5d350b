"""Video retrieval, as it is usual for self-supervised video networks: is a video of the same class among the nearest?

    each video --> one feature, the mean over its eval.views center clips
    each test video --> the K nearest training videos by cosine --> a hit at K if one of them is of its class

Recall at K is the share of test videos with a hit at K. UCF101 and HMDB51 are measured on split 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rhofast.errors import ShardFormatError
from rhofast.evaluation.chance import guessed_recalls
from rhofast.evaluation.features import Progress
from rhofast.evaluation.labeled_features import extract_labeled, measure_backbones
from rhofast.evaluation.nearest import nearest_rows
from rhofast.evaluation.scores import Evaluation, Scores, count_classes
from rhofast.evaluation.task import EvalTask

RANKS = (1, 5, 10, 20, 50)
"""The numbers of neighbors at which recall is measured."""


def retrieval_scores(
    bank: npt.NDArray[np.float32],
    bank_label: npt.NDArray[np.int64],
    queries: npt.NDArray[np.float32],
    query_label: npt.NDArray[np.int64],
    *,
    classes: list[str],
    device: torch.device,
    left_out: list[str],
    rows: npt.NDArray[np.int64] | None = None,
) -> Scores:
    """Measure recall at RANKS. Call it in every process, with the same values.

    Args:
        bank: f32[A, D], features of any length, or f32[A, V, D], those of V views per training sample.
        bank_label: i64[N], class numbers.
        queries: f32[M, D], features of any length.
        query_label: i64[M], class numbers.
        classes: Class names.
        device: Device of this rank, on which neighbors are searched.
        left_out: Samples that could not be read, one line each.
        rows: i64[N], the training samples that have a label. None: all, N = A.

    Returns:
        The recalls, those at 1 per class, and how often the nearest video of each class has which class. A bank of
        fewer than K rows counts as a whole.

    Raises:
        ShardFormatError: If M is 0.
    """
    if not len(query_label):
        raise ShardFormatError("no readable test sample has a label")
    _, row = nearest_rows(bank, queries, min(RANKS[-1], len(bank_label)), device=device, rows=rows)
    found = bank_label[row]
    hit = found == query_label[:, None]
    confusion, per_class = count_classes(query_label, found[:, 0], classes)
    names = [f"recall at {rank}" for rank in RANKS]
    return Scores(
        measures={name: float(hit[:, :rank].any(axis=1).mean()) for name, rank in zip(names, RANKS, strict=True)},
        samples=len(query_label),
        left_out=left_out,
        per_class=per_class,
        confusion=confusion,
        chance=dict(zip(names, guessed_recalls(bank_label, query_label, RANKS), strict=True)),
    )


def evaluate_retrieval(task: EvalTask, *, untrained: bool = False, progress: Progress | None = None) -> Evaluation:
    """Run the retrieval of a task's test videos among its training videos. The result is the same on every rank.

    Args:
        task: The task.
        untrained: Whether the same backbone before training is evaluated too.
        progress: Called with (samples done, total samples).

    Returns:
        The result.

    Raises:
        ShardError: If shards cannot be read, or no readable sample has a label.
        NotFiniteError: If a feature is not finite.
    """

    def measure(network: nn.Module, progress: Progress | None) -> Scores:
        found = extract_labeled(network, task.train, task.test, task.config, progress=progress)
        return retrieval_scores(
            found.bank,
            found.bank_label,
            found.queries.mean(axis=1),
            found.query_label,
            classes=found.classes,
            device=next(network.parameters()).device,
            left_out=found.left_out,
            rows=found.bank_rows,
        )

    results = measure_backbones(task, measure, untrained=untrained, progress=progress)
    return task.result(
        "retrieval",
        results[0],
        untrained=results[1] if untrained else None,
        settings={"views": task.config.eval.views},
    )
