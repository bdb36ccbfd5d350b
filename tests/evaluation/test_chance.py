"""What a guess reaches: against every order of a small bank, the hypergeometric distribution, every set of names."""

import itertools

import numpy as np
import pytest
from scipy.stats import hypergeom

from rhofast.evaluation.chance import guessed_accuracy, guessed_recalls
from rhofast.evaluation.scores import TOP1, TOP5, summarize


def test_the_best_names_to_give_are_the_most_frequent_classes() -> None:
    label = np.array([0] * 7 + [1] * 2 + [2] * 5 + [4] * 6)
    for count in range(1, 6):
        best = max(np.isin(label, names).mean() for names in itertools.combinations(range(5), count))
        assert guessed_accuracy(label, count) == pytest.approx(best)
    assert guessed_accuracy(np.arange(12) % 4, 1) == 1 / 4
    scores = summarize(np.eye(8)[:6], np.array([1, 1, 1, 2, 3, 4]), classes=list("abcdefgh"), left_out=[])
    assert scores.chance == {TOP1: 0.5, TOP5: 1.0}  # not 1/8 and 5/8: a guess names the classes that there are


def test_recall_by_chance_is_the_mean_over_all_orders_of_the_bank() -> None:
    bank, queries, ranks = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 2, 2, 3]), (1, 2, 4, 50)
    hits = [
        [np.isin(queries, bank[list(order)[:rank]]).mean() for rank in ranks]
        for order in itertools.permutations(range(len(bank)))
    ]
    assert guessed_recalls(bank, queries, ranks) == pytest.approx(np.mean(hits, axis=0))


def test_recall_by_chance_is_hypergeometric_for_a_large_bank() -> None:
    rng = np.random.default_rng(0)
    bank = rng.choice(101, 9537, p=rng.dirichlet(np.ones(101)))  # as many videos as UCF101 trains on, unbalanced
    queries, ranks = rng.integers(0, 101, 300), (1, 5, 10, 20, 50)
    counts = np.bincount(bank, minlength=101)[queries]
    expected = [float((1 - hypergeom(len(bank), counts, rank).pmf(0)).mean()) for rank in ranks]
    assert guessed_recalls(bank, queries, ranks) == pytest.approx(expected, abs=1e-12)
    balanced = np.arange(9900) % 99
    assert guessed_recalls(balanced, balanced[:7], (1,)) == pytest.approx([1 / 99])
