"""The list of a data set: checked as a whole, in order, in little memory."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.listing import Listing


def record(number: int, **more: object) -> VideoRecord:
    return VideoRecord(key=f"v{number}", path=Path(f"{number}.mp4"), **more)  # type: ignore[arg-type]


def test_records_come_out_as_they_went_in() -> None:
    odd = VideoRecord(key="odd", path=Path(os.fsdecode(b"/a/raw\xff b.mp4")), label=1, label_name=os.fsdecode(b"\xfe"))
    stored = replace(odd, label_name="%FE")  # names of classes are stored as UTF-8
    records = [record(3), odd, record(1, label=0, label_name="run")]
    with Listing(records) as listing:
        assert list(listing) == [records[0], stored, records[2]]
        assert len(listing) == 3
        assert "odd" in listing and "v2" not in listing
        assert listing.class_names() == ["run", "%FE"]


def test_stored_keys_are_skipped() -> None:
    with Listing(map(record, range(5)), stored=["v1", "v3", "v9"]) as listing:
        assert [one.key for one in listing] == ["v0", "v2", "v4"]
        assert (len(listing), listing.skipped) == (3, 2)


def test_names_of_labels_must_agree_with_those_that_are_given() -> None:
    with Listing([record(0, label=2, label_name="c")], classes=["a", "b"]) as listing:
        assert listing.class_names() == ["a", "b", "c"]
    with pytest.raises(IngestError, match="label 1 is named 'x' here and 'b' before"):
        Listing([record(0, label=1, label_name="x")], classes=["a", "b"])


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "no videos"),
        ([record(1), record(2), record(1)], "'v1' occurs twice"),
        ([VideoRecord(key="a/b", path=Path("x"))], "key 'a/b' is not"),
        ([VideoRecord(key="k" * 81, path=Path("x"))], "is not 1 to 80"),
        ([record(1, label=0, label_name="")], "the name of the class is empty"),
        ([record(1, label=0, label_name="p"), record(2, label=0, label_name="q")], "label 0 is named 'q' here and 'p'"),
        ([record(1, label=-1)], "label -1"),
    ],
)
def test_a_list_that_cannot_become_a_set_is_one_error(records: list[VideoRecord], says: str) -> None:
    with pytest.raises(IngestError, match=says):
        Listing(records)


PEAK = """
import resource, sys
from pathlib import Path
from rhofast.data.types import VideoRecord
from rhofast.ingest.listing import Listing
count = int(sys.argv[1])
with Listing(VideoRecord(key=f"video-{n:030}", path=Path(f"/videos/{n:040}.mp4")) for n in range(count)) as listing:
    assert sum(1 for _ in listing) == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_list() -> None:
    def peak(count: int) -> int:
        done = subprocess.run([sys.executable, "-c", PEAK, str(count)], capture_output=True, text=True, check=True)
        return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)

    assert peak(100_000) - peak(1_000) < 10e6


def test_the_recipe_s_classes_are_kept_without_a_record_of_them() -> None:
    with Listing([record(0, label=2, label_name="c")], classes=["a", "b", "c", "d"]) as listing:
        assert listing.class_names() == ["a", "b", "c", "d"]
    with Listing([record(0)], classes=["a", "b"]) as listing:
        assert listing.class_names() == []


def test_classes_of_a_set_go_on_with_those_of_the_recipe() -> None:
    with Listing([record(0, label=1, label_name="b")], known={0: "a"}, classes=["a", "b", "c"]) as listing:
        assert listing.class_names() == ["a", "b", "c"]
    with pytest.raises(IngestError, match="label 1 is named 'x' here and 'b' before"):
        Listing([record(0, label=0, label_name="a")], known={1: "b"}, classes=["a", "x"])


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([record(1, label=0, label_name="p"), record(2, label=3, label_name="p")], "labels 0 and 3 have one name, 'p'"),
        ([record(1, label=0, label_name="1"), record(2, label=1)], "labels 0 and 1 have one name, '1'"),
        ([record(1, label=3, label_name="1")], "label 3 has the name '1', which is the number of another class"),
        ([record(1, label=20231125)], "label 20231125 is not in"),
        ([record(1, label=2**40)], "label 1099511627776 is not in"),
        ([record(1, label=40_000), record(2, label=3)], "label 40000 makes 40,001 classes, of which only 2 occur"),
        ([record(1, label=1.5)], "label 1.5 is not a whole number"),
        ([record(1, label="3")], "label '3' is not a whole number"),
        ([record(1, label=3, label_name=7)], "the name of the class, 7, is not text"),
        ([VideoRecord(key="x", path=Path("a\0b"))], "has a NUL character"),
        ([VideoRecord(key="x", path=Path("a\ud800b"))], "is not text"),
        (
            [VideoRecord(key="x", path=Path("a"), where="l.csv:1"), VideoRecord(key="x", path=Path("b"))],
            "first in l.csv:1",
        ),
        (["a.mp4"], "'a.mp4', which is not a VideoRecord"),
    ],
)
def test_labels_and_records_that_make_no_sense_are_one_error(records: list[VideoRecord], says: str) -> None:
    with pytest.raises(IngestError, match=says):
        Listing(records)


def test_labels_of_numpy_are_numbers_and_many_classes_may_be_many() -> None:
    with Listing([record(0, label=np.int64(2))]) as listing:
        assert [one.label for one in listing] == [2]
    with Listing(record(number, label=100 * number) for number in range(400)) as listing:
        assert len(listing.class_names()) == 39_901
    with Listing([record(1, label=40_000)], classes=map(str, range(50_000))) as listing:
        assert len(listing.class_names()) == 50_000


def test_a_full_temporary_folder_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def execute(self, *_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        def close(self) -> None:
            pass

    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: Full())
    with pytest.raises(IngestError, match="SQLITE_TMPDIR"):
        Listing([record(0)])
