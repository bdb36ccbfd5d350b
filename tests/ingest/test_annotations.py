"""What a record says beside its path and label: refused in one line, or stored as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhofast.data.types import TimedLabel, VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.annotations import MAX_EXTRA_BYTES, labels_of_sample
from rhofast.ingest.listing import Listing

RECORD = VideoRecord(key="v", path=Path("v.mp4"), where="list.csv:7")


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"in": value}
    return value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"start": -1.0}, "segment: start=-1.0 is not a number of seconds >= 0"),
        ({"end": nan}, "segment: end=nan is not a number"),
        ({"end": inf}, "segment: end=inf is not a number"),
        ({"start": "3"}, "segment: start='3' is not a number"),
        ({"start": True}, "segment: start=True is not a number"),
        ({"start": 5, "end": 5}, "segment: end=5 is not after start=5"),
        ({"end": 0}, "segment: end=0 is not after start=0"),
        ({"labels": "walk"}, "labels='walk' are no list"),
        ({"labels": [3]}, "label '3' is not \\(class number, start, end\\)"),
        ({"labels": [(3, 1.0)]}, "is not \\(class number, start, end\\)"),
        ({"labels": [("walk", None, None)]}, "label 'walk' is not a whole number"),
        ({"labels": [(-1, None, None)]}, "label -1 is not in"),
        ({"labels": [(1, 4.0, 2.0)]}, "label 1: end=2 is not after start=4"),
        ({"labels": [(1, nan, 2.0)]}, "label 1: start=nan is not a number"),
        ({"labels": [(1, 0.0, 2.0), (2, 0, 9), (1, 1.5, None)]}, "two labels 1 overlap at 1.5 s"),
        ({"labels": [(1, None, None), (1, 3.0, 4.0)]}, "two labels 1 overlap at 3 s"),
        ({"start": 10, "labels": [(1, 2.0, 10.0)]}, "label 1 at \\[2, 10\\) s is outside the segment \\[10, end\\) s"),
        ({"end": 10, "labels": [(1, 10.0, None)]}, "label 1 at \\[10, end\\) s is outside the segment \\[0, 10\\) s"),
        ({"labels": [(1, None, None)] * 10_001}, "more than 10,000 labels"),
        ({"extra": [1]}, "extra='\\[1\\]' is not a JSON object"),
        ({"extra": {"b": 1, "a": nan}}, "extra 'a' is not JSON"),
        ({"extra": {"a": {1, 2}}}, "extra '(a|in)' is not JSON"),
        ({"extra": {1: 2}}, "extra changes when it is stored"),
        ({"extra": {"a": (1, 2)}}, "extra changes when it is stored"),
        ({"extra": {"a": "\ud800"}}, "not text"),
        ({"extra": deep(100)}, "nested|deep"),
        ({"extra": deep(100_000)}, "extra '(a|in)' is not JSON"),
        ({"extra": {"a": "x" * MAX_EXTRA_BYTES}}, "extra has 65,545 bytes as JSON, of at most 65,536"),
    ],
)
def test_what_cannot_be_stored_is_one_line_that_names_the_record(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(IngestError, match=says) as caught:
        Listing([replace(RECORD, **changes)])
    assert caught.value.message.startswith("list.csv:7: v.mp4: ")
    assert "\n" not in str(caught.value) and len(caught.value.message) < 500


def test_all_that_a_record_says_comes_out_of_the_listing() -> None:
    extra = {"caption": "a cat é\n", "boxes": [[0, 0.5, 1e300]], "none": None, "big": 2**53 + 1, "": {"b": True}}
    record = replace(
        RECORD,
        label=1,
        label_name="b",
        start=1,
        end=2.5,
        labels=[(0, 1.25, None), (2, None, 2), (0, 0, 1.25)],
        extra=extra,
    )
    with Listing([record], classes=["a", "b"]) as listing:
        (stored,) = listing
        assert listing.class_names() == ["a", "b", "2"]
    assert (stored.start, stored.end, stored.extra) == (1.0, 2.5, extra)
    assert stored.labels == [TimedLabel(0, 1.25, None), TimedLabel(2, None, 2.0), TimedLabel(0, 0.0, 1.25)]


def test_the_largest_fields_are_stored() -> None:
    extra = {"a": "x" * (MAX_EXTRA_BYTES - len(json.dumps({"a": ""})))}
    with Listing([replace(RECORD, extra=extra)]) as listing:
        assert next(iter(listing)).extra == extra


def test_fields_are_measured_in_utf_8_as_files_of_json_have_them() -> None:
    extra = {"a": "é" * ((MAX_EXTRA_BYTES - len(json.dumps({"a": ""}))) // 2)}
    with Listing([replace(RECORD, extra=extra)]) as listing:
        assert next(iter(listing)).extra == extra
    with pytest.raises(IngestError, match="extra has 65,537 bytes"):
        Listing([replace(RECORD, extra={"a": extra["a"] + "é"})])


def test_times_of_numpy_are_times_as_a_table_gives_them() -> None:
    labels = [(np.int64(1), np.int32(2), np.float16(2.5))]
    with Listing([replace(RECORD, start=np.float32(1.5), end=np.int64(3), labels=labels)]) as listing:
        (stored,) = listing
    assert (stored.start, stored.end, stored.labels) == (1.5, 3.0, [TimedLabel(1, 2.0, 2.5)])


def test_times_in_the_sample_are_as_short_as_those_in_the_video() -> None:
    (held,) = labels_of_sample([TimedLabel(1, 0.7, 1.1)], 0.5, 1.5, 1.0)
    assert held == TimedLabel(1, 0.2, 0.6)


def test_labels_are_cut_to_the_sample_and_count_from_its_beginning() -> None:
    labels = [TimedLabel(*each) for each in [(0, None, None), (1, 3, 12), (2, 12, 14), (3, 19, 30), (4, 20, None)]]
    labels += [TimedLabel(*each) for each in [(5, None, 10), (6, 10, 20), (7, 15, 19.96)]]
    held = labels_of_sample(labels, 10.0, 20.0, 9.95)  # frames end a little before the segment does
    whole, cut = (0, None, None), [(1, None, 2.0), (2, 2.0, 4.0), (3, 9.0, None), (6, None, None), (7, 5.0, None)]
    assert [tuple(label) for label in held] == [whole, *cut]


def test_windows_share_out_the_labels_of_a_video() -> None:
    labels = [TimedLabel(0, 1.0, 7.0), TimedLabel(1, 4.0, 8.0)]
    windows = [labels_of_sample(labels, begin, begin + 4.0, 4.0) for begin in (0.0, 4.0, 8.0)]
    assert windows == [(TimedLabel(0, 1.0, None),), (TimedLabel(0, None, 3.0), TimedLabel(1, None, None)), ()]
