"""Tables of videos: which column is which, what rows say, and one error for what a table cannot mean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhofast.data.inside import ParquetCell
from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError, RhofastError
from rhofast.ingest.listing import Listing
from rhofast.ingest.recipes import find_classes, find_records


def write(path: Path, metadata: dict[str, Any] | None = None, /, **columns: Any) -> Path:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=2)
    return path


def listed(source: Path, *options: str, recipe: str | None = None) -> list[VideoRecord]:
    records = find_records(source, recipe, options)
    with Listing(records, classes=find_classes(source, recipe, options)) as listing:
        return list(listing)


VIDEOS = [b"a" * 10, b"b" * 20, b"c" * 30]
NAMES = ["x.mp4", None, "y.webm"]


def feature() -> pa.Array:
    """Return a column as Hugging Face's Video feature stores it."""
    return pa.array([{"bytes": video, "path": name} for video, name in zip(VIDEOS, NAMES, strict=True)])


def test_a_table_of_paths(tmp_path: Path) -> None:
    source = write(
        tmp_path / "t.parquet",
        video_path=["a.mp4", "/b/é.mp4", "s3://bucket/x.mp4"],
        label=[1, None, 0],
        caption=["one", "two", None],
        begin_s=[None, 1.5, 0],
        end_s=pa.array([2, None, 3], pa.int32()),
        rate=[1.0, 2.0, 3.0],
    )
    options = ("start_column=begin_s", "end_column=end_s", "fields=caption,rate", "root=/videos")
    first, second, third = listed(source, *options)
    assert [str(record.path) for record in (first, second, third)] == ["/videos/a.mp4", "/b/é.mp4", "s3://bucket/x.mp4"]
    assert [record.label for record in (first, second, third)] == [1, None, 0]
    assert (second.start, second.end, second.where) == (1.5, None, f"{source}: row 1")
    assert (third.extra, third.inside) == ({"caption": None, "rate": 3.0}, None)
    assert first.key == listed(write(tmp_path / "u.parquet", path=["a.mp4"], t=[2.0]), "end_column=t")[0].key


def test_views_of_texts_are_texts(tmp_path: Path) -> None:
    source = write(tmp_path / "t.parquet", path=pa.array(["a.mp4"], pa.string_view()), label=["1"])
    assert [(record.path.name, record.label) for record in listed(source)] == [("a.mp4", 1)]


def test_times_of_segments_are_found_by_their_names(tmp_path: Path) -> None:
    columns = {"path": ["x", "x"], "start_time": [0, 2], "end sec": [1.5, None]}
    source = write(tmp_path / "t.parquet", **columns)
    assert [(record.start, record.end) for record in listed(source)] == [(0.0, 1.5), (2.0, None)]
    with pytest.raises(IngestError, match="occurs twice"):
        listed(source, "start_column=none", "end_column=none")
    source = write(tmp_path / "d.parquet", path=["x"], start=[1.0], duration=[2.0])
    with pytest.raises(IngestError, match=r"d\.parquet: column 'duration' may be the duration of the segments"):
        listed(source)
    assert [(record.start, record.end) for record in listed(source, "end_column=none")] == [(1.0, None)]


def test_keys_are_found_by_their_name_or_chosen(tmp_path: Path) -> None:
    source = write(tmp_path / "t.parquet", path=["x", "y"], key=["one", "two"], id=[7, 8])
    assert [record.key for record in listed(source)] == ["one", "two"]
    assert [record.key for record in listed(source, "key_column=id", "ignore=key")] == ["7", "8"]
    made = listed(write(tmp_path / "u.parquet", path=["x", "y"]))
    assert [record.key for record in listed(source, "key_column=none")] == [record.key for record in made]


def test_a_table_of_bytes(tmp_path: Path) -> None:
    for name, columns, column, names in (
        ("feature", {"video": feature()}, "video.bytes", ["x.mp4", "row 1", "y.webm"]),
        ("plain", {"content": VIDEOS}, "content", ["row 0", "row 1", "row 2"]),
        ("large", {"content": pa.array(VIDEOS, pa.large_binary())}, "content", ["row 0", "row 1", "row 2"]),
    ):
        source = write(tmp_path / f"{name}.parquet", id=[7, 8, 9], **columns)  # type: ignore[arg-type]
        records = listed(source)
        assert [record.inside for record in records] == [
            ParquetCell(column=column, row=row, name=video) for row, video in enumerate(names)
        ]
        assert len({record.key for record in records}) == 3 and records[0].path == source
        keyed = listed(source, f"bytes_column={column}", "key_column=id", "fields=all")
        assert [(record.key, record.extra) for record in keyed] == [("7", None), ("8", None), ("9", None)]


def test_keys_of_several_files_differ_and_stay(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "same.name 0.parquet", content=VIDEOS)
    keys = [record.key for record in listed(tmp_path, recipe="parquet")]
    assert len(set(keys)) == 6
    write(tmp_path / "a" / "earlier.parquet", content=VIDEOS)
    assert set(keys) < {record.key for record in listed(tmp_path, recipe="parquet")}


def test_names_of_classes_come_from_the_file_or_an_option(tmp_path: Path) -> None:
    features = {"video": {"_type": "Video"}, "label": {"names": ["run", "jump"], "_type": "ClassLabel"}}
    source = write(tmp_path / "t.parquet", {"info": {"features": features}}, video=feature(), label=[1, 0, -1])
    records = listed(source, "unlabeled=-1")
    assert [(record.label, record.label_name) for record in records] == [(1, "jump"), (0, "run"), (None, None)]
    assert find_classes(source, None, []) == ["run", "jump"]
    (tmp_path / "names.json").write_text('{"b": 0, "a": 1}')
    table = write(tmp_path / "u.parquet", path=["1", "2"], action=["a", "b"])
    records = listed(table, f"classes={tmp_path / 'names.json'}")
    assert [(record.label, record.label_name) for record in records] == [(1, "a"), (0, "b")]
    assert [record.label for record in listed(table, "label_column=none")] == [None, None]


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"a": ["x"]}, [], "t.parquet: no column is known to hold videos or paths: a"),
        ({"a": VIDEOS, "b": VIDEOS}, [], "t.parquet: the videos may be in several columns: a, b"),
        ({"thumb": VIDEOS, "path": ["x", "y", "z"]}, [], "may be in several columns: thumb, path"),
        ({"path": ["x"]}, ["label_column=l"], "there is no column 'l', only path"),
        ({"path": ["x"]}, ["fields=f"], "there is no column 'f'"),
        ({"path": ["x"]}, ["ignore=f"], "there is no column 'f'"),
        ({"path": ["x"]}, ["bytes_column=path"], "column 'path' holds string, not bytes"),
        ({"path": ["x"], "thumb": [b"1"]}, ["path_column=path", "fields=thumb"], "'thumb' holds bytes, which are no"),
        ({"path": ["x"], "split": ["val"]}, [], "'split' seems to choose .*ignore=split"),
        ({"path": ["x"], "start": ["0:01"]}, [], "'start' seems to choose .*start_column"),
        ({"path": ["x"], "start": [1], "begin": [1.0]}, [], "several columns may be the start: start, begin"),
        ({"path": ["x"], "start_frame": [1]}, [], "'start_frame' seems to choose .*ignore=start_frame"),
        ({"path": ["x"], "label": [1], "class": [2]}, [], "several columns may be the label: label, class"),
        ({"path": ["x", None]}, [], "t.parquet: row 1: path=None is not a path"),
        ({"path": ["x", "y"], "label": [0, -1]}, [], "t.parquet: row 1: label -1 is below 0"),
        ({"path": ["x"], "label": ["run"]}, [], "t.parquet: row 0: label 'run' is a name.*classes=FILE"),
        ({"path": ["x"], "label": [0.5]}, [], "t.parquet: row 0: label 0.5 is neither"),
        ({"path": ["x"], "label": [float("nan")]}, [], "t.parquet: row 0: label nan is neither"),
        ({"path": ["x"], "k": [None]}, ["key_column=k"], "t.parquet: row 0: k=None is not a key"),
        ({"path": ["x", "x"]}, [], "t.parquet: row 1: .*occurs twice, first in .*t.parquet: row 0"),
        ({"path": ["x"], "t": [float("nan")]}, ["start_column=t"], "t.parquet: row 0: .*start=nan is not a number"),
        ({"path": ["x"], "t": ["one"]}, ["start_column=t"], "t.parquet: row 0: .*start='one' is not a number"),
        ({"path": ["x"], "f": [float("inf")]}, ["fields=f"], "t.parquet: row 0: .*extra 'f' is not JSON"),
    ],
)  # fmt: skip
def test_what_a_table_cannot_mean_is_one_line(
    tmp_path: Path, columns: dict[str, Any], options: list[str], says: str
) -> None:
    with pytest.raises(RhofastError, match=says) as caught:
        listed(write(tmp_path / "t.parquet", **columns), *options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "page", "missing"])
def test_a_damaged_table_is_one_line(tmp_path: Path, damage: str) -> None:
    source = write(tmp_path / "t.parquet", path=[f"{n}.mp4" for n in range(1000)])
    content = bytearray(source.read_bytes())
    if damage == "page":
        content[4:60] = bytes(56)
    changed = {"cut": content[: len(content) // 2], "text": b"no table " * 9, "empty": b"", "page": content}
    source.unlink()
    if damage != "missing":
        source.write_bytes(changed[damage])
    says = "No such file|no such file" if damage == "missing" else "t.parquet: not a whole parquet file: "
    with pytest.raises(IngestError, match=says) as caught:
        listed(source)
    assert "\n" not in str(caught.value)


PEAK = """
import resource, sys, tempfile
from pathlib import Path
from rhofast.ingest.recipes import find_records
from rhofast.ingest.inside_source import copy_inside
from rhofast.storage.network import RetryPolicy
with tempfile.TemporaryDirectory() as folder:
    for record in find_records(Path(sys.argv[1]), None, []):
        copy_inside(record.path, record.inside, Path(folder) / "copy", RetryPolicy())
        assert (Path(folder) / "copy").stat().st_size == 1 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path, random = tmp_path / f"{count}.parquet", np.random.default_rng(0)
        videos = pa.chunked_array([pa.array([random.bytes(1 << 20)], pa.binary()) for _ in range(count)])
        pq.write_table(pa.table({"video": videos}), path, row_group_size=count)
        assert pq.ParquetFile(path).num_row_groups == 1
        done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
        return int(done.stdout)  # KiB

    assert peak(64) < peak(4) + (16 << 10)
