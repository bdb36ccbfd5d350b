"""kNN against an exact computation by hand."""

import numpy as np

from rhofast.evals.knn import knn_scores, summarize


def by_hand(bank, bank_label, queries, num_classes, neighbors, temperature):  # type: ignore[no-untyped-def]
    scores = np.zeros((len(queries), num_classes))
    for m, views in enumerate(queries):
        for view in views:
            cosine = [float(row @ view / np.linalg.norm(row) / np.linalg.norm(view)) for row in bank]
            for near in np.argsort(cosine)[::-1][:neighbors]:
                scores[m, bank_label[near]] += np.exp(cosine[near] / temperature)
    return scores


def test_votes_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    bank, label = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 4, 50)
    queries = rng.normal(size=(7, 3, 8)).astype(np.float32)
    for neighbors, temperature in ((1, 0.1), (20, 0.07), (50, 0.5)):
        options = {"num_classes": 4, "neighbors": neighbors, "temperature": temperature}
        assert np.allclose(
            knn_scores(bank, label, queries, **options),
            by_hand(bank, label, queries, *options.values()),
            rtol=1e-4,
        )


def test_more_neighbors_than_samples_means_all_of_them() -> None:
    bank = np.eye(3, dtype=np.float32)
    label = np.array([0, 1, 1])
    few, many = (
        knn_scores(bank, label, bank[:, None], num_classes=2, neighbors=count, temperature=1.0) for count in (3, 200)
    )
    assert np.allclose(few, many)


def test_a_summary_counts_what_it_says() -> None:
    scores = np.array([[3.0, 1, 0], [1, 2, 0], [1, 0, 0], [0, 0, 5]])
    result = summarize(scores, np.array([0, 0, 1, 2]), classes=["a", "b", "c"], left_out=["x"])
    assert (result.top1, result.top5, result.samples, result.left_out) == (0.5, 1.0, 4, ["x"])
    assert result.confusion == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert result.per_class == {"a": 0.5, "b": 0.0, "c": 1.0}
