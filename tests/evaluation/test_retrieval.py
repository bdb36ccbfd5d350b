"""Recall at K against its definition, and the command that measures it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ShardFormatError
from rhofast.evaluation.retrieval import RANKS, evaluate_retrieval, retrieval_scores
from rhofast.evaluation.task import open_task
from tests.helpers.shards import write_shards

CPU = torch.device("cpu")
CLASSES = ["a", "b", "c", "d", "e", "f"]
SETTINGS = ["backbone.name=slow_r18", "backbone.width=4", "augment.size=16", "clips.num_frames=2", "eval.views=2"]


def test_recall_is_the_share_of_queries_with_a_hit_among_the_nearest() -> None:
    rng = np.random.default_rng(0)
    label, query_label = rng.integers(0, 6, 90), rng.integers(0, 5, 40)
    centers = rng.standard_normal((6, 8))
    bank = (0.3 * centers[label] + rng.standard_normal((90, 8))).astype(np.float32)
    queries = (0.3 * centers[query_label] + rng.standard_normal((40, 8))).astype(np.float32)
    scores = retrieval_scores(bank, label, queries, query_label, classes=CLASSES, device=CPU, left_out=["x"])
    hits = np.zeros((40, 90), dtype=bool)
    for number, query in enumerate(queries):
        cosine = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in bank]
        hits[number] = label[np.argsort(cosine)[::-1]] == query_label[number]
    assert scores.measures == {f"recall at {k}": pytest.approx(hits[:, :k].any(axis=1).mean()) for k in RANKS}
    recalls = list(scores.measures.values())
    assert recalls == sorted(recalls) and 0.1 < recalls[0] < recalls[1] < 1
    assert scores.per_class == {
        CLASSES[c]: pytest.approx(hits[query_label == c, 0].mean()) for c in range(5)
    }  # the sixth has no query
    assert list(scores.chance) == list(scores.measures) and scores.chance["recall at 1"] == pytest.approx(
        (np.bincount(label, minlength=6)[query_label] / 90).mean()
    )
    assert scores.samples == 40 and np.sum(scores.confusion) == 40 and scores.left_out == ["x"]


def test_a_small_bank_counts_as_a_whole_and_no_query_is_an_error() -> None:
    bank, label = np.eye(3, dtype=np.float32), np.array([0, 1, 1])
    scores = retrieval_scores(bank, label, bank[:2] + 0.1, np.array([1, 2]), classes=CLASSES, device=CPU, left_out=[])
    assert list(scores.measures.values()) == [0.0, 0.5, 0.5, 0.5, 0.5]
    with pytest.raises(ShardFormatError, match="no readable test sample has a label"):
        retrieval_scores(bank, label, bank[:0], label[:0], classes=CLASSES, device=CPU, left_out=[])


def test_videos_that_are_copies_of_training_videos_are_found_first(
    shards: ShardSet, members: list[bytes], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    test = write_shards(tmp_path / "test", [members[4], members[8]], labels=[1, 2])
    task = open_task("random", test.root, train=shards.root, overrides=SETTINGS, allow_overlap=True)
    result = evaluate_retrieval(task, untrained=True)
    assert result.kind == "retrieval" and result.trained == result.untrained
    assert list(result.trained.measures.values()) == [1.0] * 5 and result.trained.samples == 2
    kept = json.loads(json.dumps(result.to_json()))
    assert kept["settings"]["views"] == 2 and kept["trained"]["measures"]["recall at 50"] == 1.0
