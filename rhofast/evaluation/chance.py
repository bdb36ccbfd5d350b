"""What a guess reaches, in closed form from the numbers of samples per class. All functions are pure.

top-K of a classification   always to name the K most frequent classes of the test set: their share of it. It is
K / classes only where all classes are equally frequent
recall at K of a retrieval  K of the N training samples in random order: a query of whose class there are n has a
hit with probability 1 - (N - n over K) / (N over K); the mean over the queries
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def guessed_accuracy(label: npt.NDArray[np.int64], count: int) -> float:
    """Return the top-`count` accuracy of always naming the most frequent classes.

    Args:
        label: Class numbers of the test samples, i64[M], M > 0.
        count: Number of classes that are named.
    """
    counts = np.sort(np.bincount(label))[::-1]
    return float(counts[:count].sum() / len(label))


def guessed_recalls(
    bank_label: npt.NDArray[np.int64], query_label: npt.NDArray[np.int64], ranks: Sequence[int]
) -> list[float]:
    """Return the expected recall at each of several ranks if the bank were ranked at random for each query.

    Args:
        bank_label: Class numbers of the bank, i64[N].
        query_label: Class numbers of the queries, i64[M], M > 0.
        ranks: Numbers K of neighbors; of a bank with fewer rows, all are neighbors.

    Returns:
        A number in [0, 1] per rank.
    """
    total = len(bank_label)
    in_class = np.bincount(bank_label, minlength=int(query_label.max()) + 1)[query_label]
    drawn = np.arange(min(max(ranks), total))
    # the probability that the next neighbor is no hit either: others that are left, of all that are left
    miss = np.clip(total - in_class[:, None] - drawn, 0, None) / (total - drawn)
    missed = np.cumprod(miss, axis=1).mean(axis=0)
    return [float(1 - missed[min(rank, total) - 1]) for rank in ranks]
