"""Shards of strangers: what SECURITY.md promises of them, one promise at a time. tests/fuzz tries all at random."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rhofast.data.codecs.containers import open_container
from rhofast.data.format.dataset import open_folder
from rhofast.data.format.index import SCHEMA
from rhofast.data.format.reader import Reader
from rhofast.errors import ShardError
from tests.fuzz.hostile_shards import copy_of, seal
from tests.helpers.playlists import listening, playlists

Columns = dict[str, list[Any]]


def rewrite(root: Path, change: Callable[[Columns], object], **options: Any) -> None:
    """Change the columns of the index; its digest and size are right again."""
    path = root / "shard-000000.arrow"
    columns = pa.ipc.open_file(path.read_bytes()).read_all().to_pydict()
    change(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(pa.table(columns, schema=SCHEMA))
    path.write_bytes(sink.getvalue().to_pybytes())
    seal(root)


def to(name: str, value: Any) -> Callable[[Columns], None]:
    def change(columns: Columns) -> None:
        columns[name][1] = value

    return change


def labels(*timed: tuple[int, float, float]) -> Callable[[Columns], None]:
    """Give sample 1 further labels: (class, start, end), where NaN stands for its beginning or end."""

    def change(columns: Columns) -> None:
        for place, name in enumerate(("labels", "label_start", "label_end")):
            columns[name][1] = [label[place] for label in timed]

    return change


def change_unit(name: str, unit: int, by: int) -> Callable[[Columns], None]:
    """Add a number to one value of a list of sample 1."""

    def change(columns: Columns) -> None:
        columns[name][1][unit] += by

    return change


@pytest.mark.parametrize(
    ("codec", "change", "said"),
    [
        ("jpeg", to("label", 3), "row 1 .*its label is not below the number of classes, 3"),
        ("jpeg", to("label", -7), "its label is negative"),
        ("jpeg", to("num_frames", 0), "it has no frames"),
        ("jpeg", to("fps", float("nan")), "its frame rate is impossible"),
        ("jpeg", to("width", 0), "its size is not one that its codec stores"),
        ("jpeg", to("codec", 1), r"row 1 .*its codec is not one of the 1 that dataset\.json lists"),
        ("jpeg", to("offset", 1 << 40), "its member extends beyond the tar"),
        ("jpeg", to("offset", -1), "its member extends beyond the tar"),
        ("jpeg", to("size", 1 << 40), "its member extends beyond the tar"),
        ("jpeg", to("key", "../x"), "its key is not of letters"),
        ("jpeg", to("key", ""), "its key has not 1 to"),
        ("jpeg", to("unit_size", [5]), "column unit_crc does not have one value per value of unit_size"),
        ("jpeg", to("label_end", [1.0]), "column label_end does not have one value per value of labels"),
        ("jpeg", labels((3, 0.0, 1.0)), "row 1 .*a label of it is not in \\[0, 3\\)"),
        ("jpeg", labels((0, nan, nan), (-1, nan, nan)), "row 1 .*a label of it is not in"),
        ("jpeg", labels((0, -0.5, 1.0)), "row 1 .*a label of it holds for no time"),
        ("jpeg", labels((0, 0.5, 1.5)), "row 1 .*a label of it holds for no time"),
        ("jpeg", labels((0, nan, 0.5), (1, 0.5, 0.5)), "row 1 .*a label of it holds for no time"),
        ("jpeg", labels((0, math.inf, nan)), "row 1 .*a label of it holds for no time"),
        ("jpeg", to("json_size", 1), "its KEY.json has an impossible size"),
        ("jpeg", to("json_size", 1 << 30), "its KEY.json has an impossible size"),
        ("jpeg", to("json_size", 1 << 20), "its KEY.json begins before the tar"),
        ("jpeg", to("unit_frames", [1]), "its units do not cover its frames"),
        ("h264", to("unit_frames", []), "its units do not cover its frames"),
        ("h264", change_unit("unit_frames", -1, -1), "its units do not cover its frames"),
        ("h264", change_unit("unit_frames", 0, -5), "its units do not cover its frames"),
        ("jpeg", change_unit("unit_size", 3, 1 << 29), "its units extend beyond the member"),
        ("jpeg", change_unit("unit_size", 3, -(1 << 20)), "a unit of it has no bytes"),
        ("jpeg", to("begin", -1), "its units extend beyond the member"),
        ("jpeg", to("begin", 2**63 - 1), "its units extend beyond the member"),
        ("jpeg", to("color", [0]), "it has too many or too few colors"),
        ("h264", to("color", []), "it has too many or too few colors"),
        ("h264", change_unit("color", 1, 1 << 31), "a color of it has more than 30 bits"),
        ("h264", to("width", 0), "its size is not one that its codec stores"),
    ],
)
def test_numbers_of_an_index_that_cannot_be_are_refused_when_it_is_opened(
    codec: str, change: Callable[[Columns], None], said: str, tmp_path: Path
) -> None:
    root = copy_of(codec, tmp_path)
    rewrite(root, change)
    shards = open_folder(root)
    with pytest.raises(ShardError, match=said) as caught:
        shards.row(0)  # of which nothing is wrong: the index is checked as a whole
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codec", "width", "height", "fits"),
    [
        ("jpeg", 4096, 4096, True),
        ("jpeg", 4096, 4097, False),
        ("jpeg", 16_384, 16, True),
        ("jpeg", 65_500, 16, False),
        ("h264", 7680, 4320, True),
        ("h264", 8192, 4097, False),
    ],
)
def test_frames_have_a_largest_size(codec: str, width: int, height: int, fits: bool, tmp_path: Path) -> None:
    root = copy_of(codec, tmp_path)
    rewrite(root, lambda columns: (to("width", width)(columns), to("height", height)(columns)))
    shards = open_folder(root)
    if fits:
        assert shards.row(1).width == width
    else:
        with pytest.raises(ShardError, match="its size is not one that its codec stores"):
            shards.row(0)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_index_is_not_unpacked(compression: str, tmp_path: Path) -> None:
    root = copy_of("jpeg", tmp_path)
    rewrite(root, lambda columns: None, compression=compression)
    shards = open_folder(root)
    with pytest.raises(ShardError, match="compressed"):
        shards.row(0)


def test_an_index_of_another_digest_is_refused_and_named(tmp_path: Path) -> None:
    root = copy_of("jpeg", tmp_path)
    path = root / "shard-000000.arrow"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    shards = open_folder(root)
    with pytest.raises(ShardError, match=r"shard-000000\.arrow"):
        shards.row(0)


@pytest.mark.parametrize("name", ["../shard-000000", "/etc/passwd", "..", "a/b", "a\\b", "", "x\0", "\u202eabc"])
def test_no_name_leads_out_of_the_folder_of_a_set(name: str, tmp_path: Path) -> None:
    root = copy_of("jpeg", tmp_path)
    info = json.loads((root / "dataset.json").read_text())
    info["shards"][0]["name"] = name
    (root / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ShardError, match="is not a name of a shard"):
        open_folder(root)


def test_reading_a_set_writes_no_file(tmp_path: Path) -> None:
    root = copy_of("jpeg", tmp_path / "here")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    root.chmod(0o500)
    reader = Reader(open_folder(root))
    for sample in range(4):
        assert reader.read(sample, np.arange(3, dtype=np.int32)).key == f"v{sample}"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    root.chmod(0o700)


@pytest.mark.parametrize("mp4", [True, False])
def test_a_member_that_is_a_playlist_opens_no_address_and_no_other_file(mp4: bool, tmp_path: Path) -> None:
    (tmp_path / "other.mp4").write_bytes(b"x")
    with listening() as (port, seen):
        for text in playlists(port, tmp_path / "other.mp4").values():
            with pytest.raises(ValueError, match="the stored member cannot be opened"):
                open_container(io.BytesIO(text), mp4=mp4).close()
    assert not seen
