"""Writing an index row by row: the bytes that Arrow writes of the same columns, and nothing kept of a row."""

import hashlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rhofast.data.codecs.h26x import H264Codec
from rhofast.data.format import index_writer
from rhofast.data.format.index import SCHEMA, IndexRow, pack_colors
from rhofast.data.format.index_file import open_index
from rhofast.data.format.index_rows import IndexFacts
from rhofast.data.format.index_writer import write_index
from rhofast.data.types import TimedLabel, Units
from rhofast.errors import ShardError

NOTES = {"rhofast": "2"}


class Row(IndexRow):
    """A row to which there are weak references."""


def rows(count: int, *, labeled: bool = False) -> Iterator[IndexRow]:
    """Rows of one group of pictures or several, some without a label, some with labels that have times."""
    rng = np.random.default_rng(count)
    for number in range(count):
        groups = int(rng.integers(1, 4))
        size = rng.integers(100, 200, groups).astype(np.int32)
        units = Units(
            frame=np.arange(0, 5 * groups, 5, dtype=np.int32) - number % 3,
            offset=np.cumsum(size, dtype=np.int64) - size + 700,
            size=size,
            crc=rng.integers(0, 1 << 32, groups, dtype=np.uint32),
            rgb=rng.uniform(0, 255, (groups, 3)).astype(np.float32),
            after=number % 2,
        )
        yield Row(
            key=f"key{number}",
            label=number % 4 if labeled or number % 5 else None,
            labels=(TimedLabel(1, 0.01), TimedLabel(0, None, 0.03))[: number % 3],
            source_digest=bytes([number % 256]) * 15 + bytes([number % 2]),
            offset=1536 + 4096 * number,
            size=2000,
            json_size=300,
            json_crc=number,
            num_frames=5 * groups - number % 3 - number % 2,
            fps=29.97,
            width=64,
            height=48,
            units=units,
            pixel_aspect=1.25,
        )


def by_arrow(every: list[IndexRow], path: Path) -> None:
    """Write an index as Arrow does of columns in memory."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in every:
        made = {
            "lead": -int(row.units.frame[0]),
            "labels": [label.label for label in row.labels],
            "label_start": [float("nan") if label.start is None else label.start for label in row.labels],
            "label_end": [float("nan") if label.end is None else label.end for label in row.labels],
            "begin": int(row.units.offset[0]),
            "unit_size": row.units.size,
            "unit_crc": row.units.crc,
            "unit_frames": np.full(len(row.units.frame), 5, dtype=np.int32),
            "color": pack_colors(row.units.rgb),
        }
        for name, column in columns.items():
            column.append(made[name] if name in made else getattr(row, name))
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata(NOTES)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


@pytest.mark.parametrize(("count", "labeled"), [(1, True), (7, False), (1000, False), (1000, True)])
def test_the_bytes_are_those_of_arrow(count: int, labeled: bool, tmp_path: Path) -> None:
    by_arrow(list(rows(count, labeled=labeled)), tmp_path / "arrow")
    digest = write_index(tmp_path / "index", rows(count, labeled=labeled), NOTES)
    content = (tmp_path / "index").read_bytes()
    assert content == (tmp_path / "arrow").read_bytes() and digest == hashlib.sha256(content).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrow", "index"]
    facts = IndexFacts(
        samples=count,
        num_bytes=len(content),
        sha256=digest,
        tar_bytes=4096 * (count + 1),
        num_classes=4,
        codecs=(H264Codec(),),
    )
    index = open_index(tmp_path / "index", facts)
    for number, row in enumerate(rows(count, labeled=labeled)):
        if number in (0, count // 2, count - 1):
            found = index.row(number)
            for name in ("key", "label", "labels", "source_digest", "offset", "json_crc", "num_frames", "fps"):
                assert getattr(found, name) == getattr(row, name), name
            for name in ("frame", "offset", "size", "crc", "after"):
                assert np.array_equal(getattr(found.units, name), getattr(row.units, name)), name


def test_nothing_is_kept_of_a_row(tmp_path: Path) -> None:
    alive, most = list[weakref.ref[IndexRow]](), 0

    def watched() -> Iterator[IndexRow]:
        nonlocal most
        for row in rows(50):
            alive.append(weakref.ref(row))
            most = max(most, sum(one() is not None for one in alive))
            yield row

    write_index(tmp_path / "index", watched(), NOTES)
    assert len(alive) == 50 and most <= 2


def test_an_index_that_becomes_too_large_is_said_while_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "MAX_INDEX_BYTES", (1 << 16) + 2000)
    endless = rows(1000)
    with pytest.raises(ShardError, match=r"x\.arrow: the index of \d+ samples exceeds") as caught:
        write_index(tmp_path / "x.arrow", endless, NOTES)
    assert "--samples-per-shard" in str(caught.value.hint) and len(list(endless)) > 970
    assert not list(tmp_path.iterdir())
