"""kNN against an exact computation by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import NotFiniteError, ShardFormatError
from rhofast.evaluation.features import Features, extract_features
from rhofast.evaluation.knn import evaluate_neighbors, knn_scores
from rhofast.evaluation.model import open_model
from rhofast.evaluation.results import write_evaluation
from rhofast.evaluation.scores import Evaluation, summarize
from rhofast.evaluation.task import open_task
from tests.helpers.shards import damage_unit

CPU = torch.device("cpu")


def by_hand(bank, bank_label, queries, num_classes, neighbors, temperature):  # type: ignore[no-untyped-def]
    scores = np.zeros((len(queries), num_classes))
    for m, views in enumerate(queries):
        for view in views:
            cosine = [float(row @ view / np.linalg.norm(row) / np.linalg.norm(view)) for row in bank]
            for near in np.argsort(cosine)[::-1][:neighbors]:
                scores[m, bank_label[near]] += np.exp(cosine[near] / temperature)
    return scores


def test_class_scores_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    bank, label = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 4, 50)
    queries = rng.normal(size=(7, 3, 8)).astype(np.float32)
    for neighbors, temperature in ((1, 0.1), (20, 0.07), (50, 0.5)):
        options = {"num_classes": 4, "neighbors": neighbors, "temperature": temperature}
        assert np.allclose(
            knn_scores(bank, label, queries, **options, device=CPU),
            by_hand(bank, label, queries, *options.values()),
            rtol=1e-4,
        )


def test_more_neighbors_than_samples_means_all_of_them() -> None:
    bank = np.eye(3, dtype=np.float32)
    label = np.array([0, 1, 1])
    few, many = (
        knn_scores(bank, label, bank[:, None], num_classes=2, neighbors=count, temperature=1.0, device=CPU)
        for count in (3, 200)
    )
    assert np.allclose(few, many)


def test_a_low_temperature_means_the_nearest_and_no_overflow() -> None:
    rng = np.random.default_rng(1)
    bank, label = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 4, 50)
    queries = rng.normal(size=(30, 2, 8)).astype(np.float32)
    unit = [rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (bank, queries)]
    nearest = label[(unit[1] @ unit[0].T).max(axis=1).argmax(axis=1)]
    for temperature in (1e-4, 1e-6, 1e-9):
        class_scores = knn_scores(
            bank, label, queries, num_classes=4, neighbors=20, temperature=temperature, device=CPU
        )
        assert np.isfinite(class_scores).all() and class_scores.argmax(axis=1).tolist() == nearest.tolist()


def test_nothing_labeled_is_an_error_and_not_a_division_by_zero() -> None:
    with pytest.raises(ShardFormatError, match="no readable test sample has a label"):
        summarize(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), classes=["a", "b"], left_out=[])


def test_weights_that_are_not_finite_have_no_accuracy(shards: ShardSet) -> None:
    torch.set_num_threads(1)
    settings = ["backbone.name=slow_r18", "backbone.width=4", "augment.size=16", "clips.num_frames=2"]
    task = open_task("random", shards.root, train=shards.root, overrides=settings, allow_overlap=True)
    with torch.no_grad():
        next(task.model.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="13 of 13 samples are not finite"):
        evaluate_neighbors(task)


@pytest.mark.parametrize("count", [1, 2, 17, 101, 130])
def test_the_files_have_one_line_per_class_and_a_picture_for_any_number_of_classes(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    classes = [f"{name} $x_{name}$ [1,\n 2] " + "long " * 20 for name in range(count)]
    scores = summarize(rng.random((400, count)), rng.integers(0, count, 400), classes=classes, left_out=[])
    evaluation = Evaluation(
        kind="knn",
        origin="a test",
        step=None,
        weights="0" * 64,
        folder=tmp_path,
        trained=scores,
        classes=classes,
    )
    picture = write_evaluation(evaluation, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(evaluation.to_json()))
    assert len(text.splitlines()) < 4 * count + 40
    with Image.open(picture) as drawn:
        assert 300 < drawn.width < 3000 and drawn.height < 3000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-confusion.png", "x.json"]


def test_a_summary_counts_hits_per_class() -> None:
    scores = np.array([[3.0, 1, 0], [1, 2, 0], [1, 0, 0], [0, 0, 5]])
    result = summarize(scores, np.array([0, 0, 1, 2]), classes=["a", "b", "c"], left_out=["x"])
    assert result.measures == {"top-1": 0.5} and result.main == ("top-1", 0.5)
    assert (result.samples, result.left_out) == (4, ["x"])
    assert result.confusion == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert result.per_class == {"a": 0.5, "b": 0.0, "c": 1.0}


@pytest.mark.parametrize("classes", [1, 5, 6])
def test_top_5_is_measured_where_a_class_can_miss_it(classes: int) -> None:
    scores = np.arange(classes, 0, -1.0)[None]  # the last class has the least score
    result = summarize(scores, np.array([classes - 1]), classes=list("abcdef")[:classes], left_out=[])
    assert result.measures.get("top-5") == (0.0 if classes > 5 else None)
    assert result.chance.keys() == result.measures.keys()


def test_an_interrupted_extraction_continues_from_its_cache(shards: ShardSet, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = open_model(
        "random",
        overrides=["backbone.name=slow_r18", "backbone.width=4", "augment.size=16", "clips.num_frames=2"],
    )
    config, network = model.config, model.backbone
    seen: list[int] = []

    def extract(stop: int = 99, *, keep: Path | None = tmp_path / "kept", **more: Any) -> Features:
        def progress(done: int, total: int) -> None:
            seen.append(done)
            if done >= stop:
                raise KeyboardInterrupt

        section = config.eval.model_copy(update={"batch_size": 8, "keep": keep})
        return extract_features(
            network, shards, config.model_copy(update={"eval": section}), **{"views": 2, **more}, progress=progress
        )

    whole = extract(keep=None)
    damage_unit(shards, 12, 0)
    with pytest.raises(KeyboardInterrupt):
        extract(stop=8)
    [folder] = (tmp_path / "kept").iterdir()
    part = folder / "part-0000-0"
    part.write_bytes(part.read_bytes()[:-700])  # the last batch is cut short
    seen.clear()
    again = extract()
    assert seen == [8, 13]
    assert again.sample.tolist() == list(range(12)) and np.array_equal(again.label, whole.label[:12])
    assert np.allclose(again.values, whole.values[:12], atol=1e-6) and len(again.bad) == 1
    assert np.array_equal(extract().values, again.values)
    some = extract(samples=np.array([7, 3]))
    assert some.sample.tolist() == [3, 7] and np.array_equal(some.values, again.values[[3, 7]])
    assert len(list((tmp_path / "kept").iterdir())) == 1
    extract(views=1)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    extract()
    assert len(list((tmp_path / "kept").iterdir())) == 3  # other views, other weights: other features
