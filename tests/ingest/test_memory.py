"""Lists of any length are listed and built in the same memory, whichever recipe reads them."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhofast.data.codecs.remux import RemuxCodec
from rhofast.data.types import VideoRecord
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.listing import Listing
from rhofast.ingest.recipes import find_classes, find_records
from rhofast.ingest.transcode import TranscodeSettings
from tests.helpers.bars import write_bars

FEW, MANY = 1_000, 2_500
MOST = 80  # bytes more per record, of which each needs several hundred; caches of parsers make some difference
PER_FOLDER = 100  # videos; of tables, rows of a group


def growth(run: Callable[[int], object], few: int, many: int) -> float:
    """Return how many bytes more per record Python and numpy allocate at their peak for a call with more records."""

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            run(count)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(many)  # what is loaded once, and caches of a fixed size
    # Python's table of the names in paths grows now and then, but not twice in succession.
    return (min(peak(many), peak(many)) - peak(few)) / (many - few)


def folders(place: Path, count: int) -> tuple[Path, str, list[str]]:
    for number in range(count):
        path = place / "class" / f"{number // PER_FOLDER:03}" / f"{number:06}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return place, "folder", []


def uncurated(place: Path, count: int) -> tuple[Path, str, list[str]]:
    return folders(place, count)[0], "uncurated", []


def csv_list(place: Path, count: int) -> tuple[Path, str, list[str]]:
    path = place / "list.csv"
    path.write_text("".join(f"folder/{number:06}.mp4,{number % 10}\n" for number in range(count)))
    return path, "csv_list", []


def segments(place: Path, count: int) -> tuple[Path, str, list[str]]:
    path = place / "list.csv"
    lines = (f"{number % 4}.mp4,{number / 10},{number / 10 + 1},class {number % 10}\n" for number in range(count))
    path.write_text("".join(["path,start,end,label\n", *lines]))
    return path, "csv_list", []


def records(place: Path, count: int) -> tuple[Path, str, list[str]]:
    path = place / "records.jsonl"
    lines = ({"path": f"{n:06}.mp4", "labels": [[n % 10, 0, 1]], "extra": {"n": n}} for n in range(count))
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path, "records", []


def tars(place: Path, count: int) -> tuple[Path, str, list[str]]:
    with tarfile.open(place / "all.tar", "w") as tar:
        for number in range(count):
            for suffix, content in (("mp4", b"video"), ("cls", b"%d" % (number % 10)), ("json", b'{"a": 1}')):
                entry = tarfile.TarInfo(f"{number:06}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return place / "all.tar", "webdataset_tars", []


def table(place: Path, count: int) -> tuple[Path, str, list[str]]:
    columns: dict[str, Any] = {
        "path": [f"{number:06}.mp4" for number in range(count)],
        "label": [number % 10 for number in range(count)],
        "caption": [f"video {number}" for number in range(count)],
    }
    pq.write_table(pa.table(columns), place / "all.parquet", row_group_size=PER_FOLDER)
    return place / "all.parquet", "parquet", ["fields=caption"]


@pytest.mark.parametrize("write", [folders, uncurated, csv_list, segments, records, tars, table])
def test_listing_needs_the_memory_of_a_few_records(
    tmp_path: Path, write: Callable[[Path, int], tuple[Path, str, list[str]]]
) -> None:
    sources = {}
    for count in (FEW, MANY):
        place = tmp_path / str(count)
        place.mkdir()
        sources[count] = write(place, count)

    def run(count: int) -> None:
        source, recipe, options = sources[count]
        found = find_records(source, recipe, options)
        with Listing(found, classes=find_classes(source, recipe, options)) as listing:
            assert sum(1 for _ in listing) == count

    assert growth(run, FEW, MANY) < MOST


class InProcess:
    """An executor that runs the jobs here, one after another."""

    def run(self, function, jobs, *, on_ticks=None):  # type: ignore[no-untyped-def]
        for job in jobs:
            yield function(job)
            gc.collect()  # errors refer to themselves


def test_a_build_needs_the_memory_of_a_few_records(tmp_path: Path) -> None:
    whole = write_bars(tmp_path / "whole.mp4", 10, 10)
    settings = BuildSettings(
        name="x", split="all", codec=RemuxCodec(), transcode=TranscodeSettings(), samples_per_shard=20
    )

    def made(count: int) -> Iterator[VideoRecord]:
        yield VideoRecord(key="whole", path=whole)
        for number in range(count):
            yield VideoRecord(key=f"v{number}", path=tmp_path / f"{number:06}.mp4", extra={"number": number})

    def run(count: int) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as out, Listing(made(count)) as listing:
            info = build_shards(listing, Path(out), settings, InProcess())
        assert info is not None and info.refused == {"missing": count}

    assert growth(run, 50, 450) < 2 * MOST  # the result file of a job is read in one piece
