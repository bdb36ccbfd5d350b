"""The search for neighbors: exact, by the definition where values tie, and the same bits on any number of ranks."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rhofast.evaluation import nearest
from rhofast.evaluation.knn import knn_scores
from rhofast.evaluation.nearest import QUERY_BLOCK, nearest_columns, nearest_rows
from tests.helpers.program import run_ranks

CPU = torch.device("cpu")


def tied(rows: int, width: int, seed: int) -> npt.NDArray[np.float32]:
    """Rows with four entries of 1 or -1: lengths and cosines are exact, and there are nine different cosines."""
    rng = np.random.default_rng(seed)
    values = np.zeros((rows, width), dtype=np.float32)
    for row in values:
        row[rng.choice(width, 4, replace=False)] = rng.choice([-1.0, 1.0], 4)
    return values


def by_definition(
    bank: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Every cosine in double precision, ranked by a stable sort."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank.astype(float), queries.astype(float))]
    cosine = unit[1] @ unit[0].T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(cosine, order, axis=1), order


@pytest.mark.parametrize("count", [1, 7, 60, 299, 300])
def test_equal_cosines_are_ranked_and_taken_by_row_number(count: int) -> None:
    bank, queries = tied(300, 16, seed=0), tied(QUERY_BLOCK + 17, 16, seed=1)
    cosine, row = nearest_rows(bank, queries, count, device=CPU)
    expected, order = by_definition(bank, queries, count)
    assert np.array_equal(row, order) and np.array_equal(cosine, expected)
    if count in (7, 60):  # the case that matters: the last neighbor that is taken ties with the first that is not
        further, _ = by_definition(bank, queries, count + 1)
        assert (further[:, -2] == further[:, -1]).mean() > 0.8


def test_without_ties_the_nearest_are_those_of_double_precision() -> None:
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((1003, 96)).astype(np.float32) * rng.uniform(0.01, 100, (1003, 1)).astype(np.float32)
    queries = rng.standard_normal((300, 96)).astype(np.float32)
    cosine, row = nearest_rows(bank, queries, 20, device=CPU)
    expected, order = by_definition(bank, queries, 20)
    assert np.allclose(cosine, expected, atol=1e-6) and (row == order).mean() > 0.999


def test_copies_of_a_row_tie_in_any_place_and_a_row_of_zeros_is_near_nothing() -> None:
    rng = np.random.default_rng(2)
    bank = rng.standard_normal((501, 768)).astype(np.float32)
    bank[250:500] = bank[:250]
    bank[500] = 0
    cosine, row = nearest_rows(bank, bank[:1], 4, device=CPU)
    assert row[0, :2].tolist() == [0, 250] and cosine[0, 0] == cosine[0, 1]
    cosine, _ = nearest_rows(bank, bank[500:], 501, device=CPU)
    assert not cosine.any()


def test_votes_are_the_sums_of_the_definition_to_the_last_one() -> None:
    bank, queries, label = tied(200, 16, seed=3), tied(60, 16, seed=4), np.arange(200) % 7
    found = knn_scores(
        bank, label, queries.reshape(20, 3, 16), num_classes=7, neighbors=30, temperature=0.25, device=CPU
    )
    cosine, row = by_definition(bank, queries, 30)
    expected = np.zeros((20, 7))
    for query in range(60):
        for value, near in zip(cosine[query], row[query], strict=True):
            expected[query // 3, label[near]] += np.exp(value / 0.25)
    assert np.allclose(found, expected, rtol=1e-12, atol=0)


def test_a_program_that_allows_less_precision_gets_the_same_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    search = nearest.nearest_columns
    monkeypatch.setattr(
        nearest, "nearest_columns", lambda *values: seen.append(torch.get_float32_matmul_precision()) or search(*values)
    )
    rng = np.random.default_rng(5)
    bank, queries = (rng.standard_normal((count, 64)).astype(np.float32) for count in (400, 40))
    plain = nearest_rows(bank, queries, 9, device=CPU)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lower = nearest_rows(bank, queries, 9, device=CPU)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(np.array_equal(one, other) for one, other in zip(plain, lower, strict=True))
    assert seen == ["highest", "highest"]


def test_a_row_of_equal_values_gives_its_first_columns() -> None:
    value, column = nearest_columns(torch.zeros(2, 50), 5)
    assert column.tolist() == [[0, 1, 2, 3, 4]] * 2 and not value.any()


TWO_RANKS = """
import sys
import numpy as np, torch
import torch.distributed as dist
from rhofast.evaluation.nearest import nearest_rows

dist.init_process_group("gloo")
given = np.load(sys.argv[1])
for name in ("many", "few"):
    cosine, row = nearest_rows(given["bank"], given[name], 11, device=torch.device("cpu"))
    np.savez(f"{sys.argv[2]}/{name}-{dist.get_rank()}.npz", cosine=cosine, row=row)
dist.destroy_process_group()
"""


def test_two_ranks_find_the_bits_of_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    bank = np.concatenate([rng.standard_normal((700, 128)).astype(np.float32)] * 2)
    queries = {"many": rng.standard_normal((3 * QUERY_BLOCK + 1, 128)).astype(np.float32), "few": bank[:3]}
    np.savez(tmp_path / "given.npz", bank=bank, **queries)
    (tmp_path / "two.py").write_text(TWO_RANKS)
    run_ranks(tmp_path / "two.py", tmp_path / "given.npz", tmp_path)
    for name, rows in queries.items():
        alone = nearest_rows(bank, rows, 11, device=CPU)
        for rank in range(2):
            found = np.load(tmp_path / f"{name}-{rank}.npz")
            assert np.array_equal(found["cosine"], alone[0]) and np.array_equal(found["row"], alone[1])
