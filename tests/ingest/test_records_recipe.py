"""JSON lines: every key, one error with file and line for each mistake, any number of lines in the same memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.listing import Listing
from rhofast.ingest.recipes import find_classes, find_records


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def listed(source: Path, *options: str) -> list[VideoRecord]:
    records = find_records(source, None, options)
    with Listing(records, classes=find_classes(source, None, options)) as listing:
        return list(listing)


def test_every_key_of_a_line_reaches_the_record(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("rest\nserve\n")
    labels = [["serve"], [0, None, 2.5], {"label": "rest", "start": 4}]
    line = {"path": "a/x.mp4", "key": "mine", "label": "serve", "start": 1, "end": 9.5, "labels": labels}
    source = write(tmp_path / "list.jsonl", "\n", {**line, "extra": {"a": [1, {"b": None}]}}, {"path": "/b/é.mp4"})
    full, plain = listed(source, f"classes={tmp_path / 'names.txt'}")
    assert full == VideoRecord(
        key="mine",
        path=tmp_path / "a/x.mp4",
        label=1,
        label_name="serve",
        start=1.0,
        end=9.5,
        labels=[(1, None, None), (0, None, 2.5), (0, 4.0, None)],
        extra={"a": [1, {"b": None}]},
    )
    assert (full.where, plain.where) == (f"{source}:2", f"{source}:3")
    assert (plain.path, plain.label, plain.start, plain.labels, plain.extra) == (
        Path("/b/é.mp4"),
        None,
        None,
        None,
        None,
    )
    assert find_classes(source, None, [f"classes={tmp_path / 'names.txt'}"]) == ["rest", "serve"]


def test_a_file_as_windows_writes_it(tmp_path: Path) -> None:
    text = '{"path": "a.mp4", "label": "é"}\n\n{"path": "b.mp4"}'.replace("\n", "\r\n")
    (tmp_path / "list.jsonl").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / "names.txt").write_bytes("é\r\n".encode("utf-8-sig"))
    records = listed(tmp_path / "list.jsonl", f"classes={tmp_path / 'names.txt'}")
    assert [(record.path.name, record.label) for record in records] == [("a.mp4", 0), ("b.mp4", None)]


def test_segments_of_one_file_have_keys_of_their_own_that_stay(tmp_path: Path) -> None:
    spans = [(None, None), (None, 1), (1, None), (1, 2), (1.5, 2)]
    lines = [{"path": "x.mp4", "start": start, "end": end} for start, end in spans]
    keys = [record.key for record in listed(write(tmp_path / "a.jsonl", *lines))]
    assert len(set(keys)) == len(spans)
    assert keys == [record.key for record in listed(write(tmp_path / "b.ndjson", *lines))]
    assert keys[0] == listed(write(tmp_path / "c.csv", "path\nx.mp4\n"))[0].key  # a list gives the same one


def test_a_folder_of_files_and_roots_and_addresses(tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    write(folder / "b.jsonl", {"path": "https://host/x.mp4?id=1"})
    write(folder / "a.jsonl", {"path": "1.mp4"})
    (folder / "notes.txt").write_text("none")
    records = [*find_records(folder, "records", [f"root={tmp_path / 'videos'}"])]
    assert [str(record.path) for record in records] == [f"{tmp_path}/videos/1.mp4", "https://host/x.mp4?id=1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(IngestError, match=r"no \.jsonl or \.ndjson"):
        list(find_records(tmp_path / "empty", "records", []))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"path": "x", "lable": 1}, "line 2: unknown key lable"),
        ({"file": "x"}, "line 2: unknown key file"),
        ({"key": "x"}, "line 2: key path is missing"),
        ({"path": 7}, "line 2: path=7: must be a string"),
        ({"path": ""}, ":2: path is empty"),
        ("[1]\n", "line 2: "),
        ("{\"path\": \"x\"\n", "line 2: not JSON at column 13: "),
        ("{\"path\": \"x\", \"path\": \"y\"}\n", "line 2: key 'path' occurs twice"),
        ("{\"path\": \"x\", \"start\": NaN}\n", "line 2: start: not a finite number"),
        ({"path": "x", "label": "serve"}, ":2: label 'serve' is a name, whose number is not known .*classes=FILE"),
        ({"path": "x", "label": -1}, ":2: label -1 is below 0"),
        ({"path": "x", "label": True}, "line 2: label=True: must be an integer"),
        ({"path": "x", "label_name": "a"}, ":2: label_name='a' without a label"),
        ({"path": "x", "labels": [[0, 3, 3]]}, ":2: .*end=3 is not after start=3"),
        ({"path": "x", "labels": [[0, 1, 3], [0, 2, 4]]}, ":2: .*two labels 0 overlap at 2 s"),
        ({"path": "x", "labels": [[0, 1]]}, r":2: '\[0, 1\]' is not a label|:2: \[0, 1\]"),
        ({"path": "x", "labels": [{"label": 1, "begin": 2}]}, ":2: a label has the unknown key 'begin'"),
        ({"path": "x", "labels": [{"start": 2}]}, ":2: one of the labels has no class"),
        ({"path": "x", "start": -1}, ":2: .*start=-1"),
        ({"path": "x", "start": 3, "end": 2}, ":2: .*end=2 is not after start=3"),
        ({"path": "x", "extra": [1]}, "line 2: extra"),
        ({"path": "x", "extra": {"a": "b" * (64 << 10)}}, ":2: .*extra has 65,5.. bytes"),
        ({"path": "x", "key": "ä"}, ":2: .*key 'ä' is not 1 to 80 ASCII letters"),
        ({"path": "first.mp4"}, r":2: .*occurs twice, first in .*list\.jsonl:1"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_file_and_line(tmp_path: Path, line: Any, says: str) -> None:
    source = write(tmp_path / "list.jsonl", {"path": "first.mp4"}, line, {"path": "third.mp4"})
    with pytest.raises(IngestError, match=f"list\\.jsonl:? ?{says.removeprefix(':')}") as caught:
        listed(source)
    assert "\n" not in str(caught.value)


def test_names_of_classes_must_be_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('["a", "b"]')
    options = [f"classes={tmp_path / 'names.json'}"]
    for label, says in (("c", "class 'c' is not in "), (2, "label 2, but .* names 2 classes")):
        for line in ({"path": "x", "label": label}, {"path": "x", "labels": [[label]]}):
            with pytest.raises(IngestError, match=f"list.jsonl:1: {says}"):
                listed(write(tmp_path / "list.jsonl", line), *options)
    with pytest.raises(IngestError, match="label_name='z', but class 1 is 'b'"):
        listed(write(tmp_path / "list.jsonl", {"path": "x", "label": 1, "label_name": "z"}), *options)


def test_a_label_that_means_none_is_named_by_the_option_of_the_hint(tmp_path: Path) -> None:
    source = write(tmp_path / "list.jsonl", {"path": "x", "label": 3}, {"path": "y", "label": -1})
    with pytest.raises(IngestError, match=r"list\.jsonl:2: label -1 is below 0.*--option unlabeled=-1"):
        listed(source)
    assert [record.label for record in listed(source, "unlabeled=-1")] == [3, None]


PEAK = """
import resource, sys
from pathlib import Path
from rhofast.ingest.recipes import find_records
assert sum(1 for _ in find_records(Path(sys.argv[1]), None, [])) == int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_lines(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            file.writelines(f'{{"path": "{n}.mp4", "extra": {{"caption": "{"x" * 200}"}}}}\n' for n in range(count))
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(path), str(count)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)  # KiB

    assert peak(60_000) < peak(2_000) + (8 << 10)
