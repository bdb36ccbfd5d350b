"""A box file of a stranger: whatever it says is checked when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rhofast.data.format.box_file import BOXES_SCHEMA, BoxFileFacts, read_boxes, write_boxes
from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError

Row = dict[str, Any]


def row(**changes: Any) -> Row:
    box = {"x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5}
    return {"key": "v1", "second": 7, "frame": 3, "detected": False, **box, "score": 1.0, "actions": [4], **changes}


def write(path: Path, rows: list[Row], digest: str, **facts: Any) -> Path:
    facts = {"digest": digest, "classes": {"4": "dance"}, **facts}
    write_boxes(path, pa.Table.from_pylist(rows, schema=BOXES_SCHEMA), BoxFileFacts(**facts))
    return path


def test_key_frames_are_ordered_whatever_the_order_of_the_rows(shards: ShardSet, tmp_path: Path) -> None:
    rows = [
        row(key="v3", frame=9, detected=True, score=0.5, actions=[]),
        row(key="v1", frame=8),
        row(key="v3", frame=9, actions=[80, 1]),
        row(key="v1", frame=2, actions=[]),
    ]
    found = read_boxes(write(tmp_path / "b.arrow", rows, shards.info.digest), shards)
    assert list(zip(found.sample.tolist(), found.frame.tolist(), strict=True)) == [(1, 2), (1, 8), (3, 9)]
    assert found.begins.tolist() == [0, 1, 2, 4] and found.detected.tolist() == [False, False, False, True]
    assert [np.flatnonzero(one).tolist() for one in found.targets(np.arange(4))] == [[], [3], [0, 79], []]
    only = found.where(np.array([False, True, True, False]))
    assert [np.flatnonzero(one).tolist() for one in only.targets(np.arange(2))] == [[3], [0, 79]]
    assert only.sample.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x1": -0.1}, "row 1, key 'v1', second 7: the box is not in"),
        ({"x2": 1.01}, "the box is not in"),
        ({"y2": float("nan")}, "the box is not in"),
        ({"y1": 0.6}, "the box is not in"),
        ({"score": 1.5}, "score is not in"),
        ({"actions": [4, 81]}, "row 1, key 'v1', second 7: an action is not in"),
        ({"actions": [0]}, "an action is not in"),
        ({"frame": 24}, "row 1, key 'v1', second 7: frame is not in the sample"),
        ({"frame": -1}, "frame is not in the sample"),
        ({"key": "v99"}, "key 'v99' is not in"),
    ],
)
def test_an_impossible_row_is_named(shards: ShardSet, tmp_path: Path, changes: Row, says: str) -> None:
    path = write(tmp_path / "b.arrow", [row(), row(**changes)], shards.info.digest)
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        read_boxes(path, shards)
    assert says in caught.value.message and caught.value.hint


def _other_columns(path: Path, shards: ShardSet) -> None:
    with pa.ipc.new_file(str(path), pa.schema([("key", pa.string())])) as writer:
        writer.write_table(pa.table({"key": ["v1"]}))


def _null(path: Path, shards: ShardSet) -> None:
    loose = pa.schema([field.with_nullable(True) for field in BOXES_SCHEMA])
    write(path, [row()], shards.info.digest)
    metadata = pa.ipc.open_file(path).schema.metadata
    table = pa.Table.from_pylist([row(second=None)], schema=loose)
    batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=BOXES_SCHEMA)
    with pa.ipc.new_file(str(path), BOXES_SCHEMA.with_metadata(metadata)) as writer:
        writer.write_batch(batch.replace_schema_metadata(metadata))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path, shards: path.write_bytes(b"no arrow"), "not a file of boxes"),
        (lambda path, shards: path.write_bytes(b""), "not a file of boxes"),
        (lambda path, shards: None, "no such file"),
        (lambda path, shards: path.mkdir(), "not a regular file"),
        (_other_columns, "its columns differ"),
        (_null, "a row has no value"),
        (lambda path, shards: write(path, [row()], "0" * 64), "belong to another shard set"),
        (lambda path, shards: write(path, [row()], shards.info.digest, version=2), "version 2; this version reads 1"),
        (lambda path, shards: write(path, [row()], shards.info.digest, classes={"81": "x"}), "class '81' is not in"),
        (lambda path, shards: write(path, [row()], shards.info.digest, classes={"x": "x"}), "class 'x' is not in"),
        (lambda path, shards: write(path, [], shards.info.digest), "no sample of"),
    ],
)
def test_a_file_that_is_none_is_refused(
    shards: ShardSet, tmp_path: Path, make: Callable[[Path, ShardSet], Any], says: str
) -> None:
    make(tmp_path / "b.arrow", shards)
    with pytest.raises(ConfigError, match=says):
        read_boxes(tmp_path / "b.arrow", shards)


def test_a_damaged_file_is_refused_or_read_and_nothing_else(shards: ShardSet, tmp_path: Path) -> None:
    """Each byte of a small file in turn has another value: no crash, and no error that is not ours."""
    path = write(tmp_path / "b.arrow", [row(frame=number) for number in range(3)], shards.info.digest)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            found = read_boxes(path, shards)
        except ConfigError:
            continue
        assert (found.boxes >= 0).all() and (found.boxes <= 1).all()
