"""The example of the documentation that leaves out near duplicates finds those that there are."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhofast.data.format.keep_list import read_keep_list
from tests.helpers.shards import ROOT
from tests.integration.test_docs import blocks_of


def test_the_first_of_each_group_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 9000)  # more than two blocks
    axes = np.linalg.qr(rng.standard_normal((64, 64)))[0][:40]
    noise = rng.standard_normal((9000, 64)) * 0.01  # cosine of about 0.99 within a group, 0 to others
    features = ((axes[groups] + noise) * rng.uniform(0.1, 10, (9000, 1))).astype(np.float32)
    keys = [f"v{number}" for number in range(9000)]
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 64)
    pq.write_table(pa.table({"sample": range(9000), "key": keys, "feature": column}), "features.parquet")
    block = next(
        block for block in blocks_of(ROOT / "docs/guides/data_loading.md") if block.value == "near_duplicates.py"
    )
    assert len([line for line in block.text.splitlines() if line]) <= 20
    exec(compile(block.text, "near_duplicates.py", "exec"), {})
    first = np.unique(groups, return_index=True)[1]
    assert read_keep_list(Path("distinct.parquet")).keys.to_pylist() == [f"v{number}" for number in sorted(first)]
