"""Any table that is written as CSV is read as it was written, whatever separates the fields and names the columns."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from string import ascii_letters

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rhofast.ingest.recipes import find_records

# Text of names: no control characters, no spaces at the ends, nothing that begins a comment.
TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12).map(str.strip)
STEMS = TEXT.filter(lambda text: text and not text.startswith("#") and "://" not in text and text not in (".", ".."))
PATHS = st.lists(STEMS.filter(lambda text: "/" not in text), min_size=1, max_size=3).map("/".join)
VIDEOS = st.builds(lambda path, suffix: path + suffix, PATHS, st.sampled_from([".mp4", ".AVI", ".webm", ".ogv"]))
NUMBERS = st.integers(0, 999_999)
NAMES = st.text(st.sampled_from(ascii_letters + " -_'()[]/éüß中"), min_size=1, max_size=20).map(str.strip)
HEADERS = [
    None,
    ("path", "label"),
    ("file_name", "target"),
    ("Video File", "class"),
    ("spam", "label"),
    ("clip", "eggs"),
]


def written(rows: list[tuple[str, str]], mark: str, end: str, quoting: int, header: tuple[str, str] | None) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=mark, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([header] if header else [])
    writer.writerows(rows)
    return sink.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    numeric=st.booleans(),
    mark=st.sampled_from(",\t;|"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    header=st.sampled_from(HEADERS),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_table_is_read_as_it_was_written(  # type: ignore[no-untyped-def]
    tmp_path: Path, data, numeric, mark, end, quoting, header, encoding
) -> None:
    labels = NUMBERS.map(str) if numeric else NAMES.filter(lambda name: name and name.lower() != "nan")
    rows = data.draw(st.lists(st.tuples(VIDEOS, labels), min_size=1, max_size=8, unique_by=lambda row: row[0]))
    assume(numeric or header != ("clip", "eggs"))  # of names, not known to be columns
    source = tmp_path / "list.csv"
    source.write_bytes(written(rows, mark, end, quoting, header).encode(encoding))
    found = list(find_records(source, "csv_list", []))
    names = sorted({label for _, label in rows})
    assert [record.path for record in found] == [tmp_path / path for path, _ in rows]
    assert [record.label for record in found] == [int(label) if numeric else names.index(label) for _, label in rows]
    assert [record.label_name for record in found] == [None if numeric else label for _, label in rows]


@pytest.mark.parametrize("path", [",.mp4", "a;b,c.mp4", "x|y z,.mp4"])
@pytest.mark.parametrize("mark", [",", ";", "|", "\t"])
def test_a_quoted_path_may_have_other_separators(tmp_path: Path, path: str, mark: str) -> None:
    source = tmp_path / "list.csv"
    source.write_text(written([(path, "A")], mark, "\n", csv.QUOTE_ALL, None))  # type: ignore[arg-type]
    (record,) = find_records(source, "csv_list", [])
    assert (record.path, record.label_name) == (tmp_path / path, "A")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(VIDEOS, NUMBERS), min_size=1, max_size=8, unique_by=lambda row: row[0]))
def test_paths_with_spaces_need_no_quotes_before_a_label(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    assume(not any(path.startswith('"') for path, _ in rows))
    source = tmp_path / "list.txt"
    source.write_text("".join(f"{path} {label}\n" for path, label in rows))
    found = list(find_records(source, None, []))
    assert [(record.path, record.label) for record in found] == [(tmp_path / path, label) for path, label in rows]
