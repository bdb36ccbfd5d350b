"""Box files made from csv files in the layout of AVA, and what is refused, one line each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rhofast.data.format.box_file import read_boxes
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.keep_list import read_keep_list
from rhofast.data.format.selection import find_subset
from rhofast.errors import IngestError
from rhofast.ingest.ava_boxes import frame_at, make_boxes, read_classes
from tests.helpers.program import run
from tests.helpers.shards import FPS, encode_mjpeg, frame_pixels, write_shards

TRUTH = """v0,0900,0.100,0.200,0.300,0.900,12,0
v0,0900,0.100,0.200,0.300,0.900,80,0
v0,0900,0.500,0.200,0.800,0.900,12,1
v0,0901,0.110,0.200,0.300,0.900,1,0
v1,0901,0.000,0.000,1.000,1.000,17,5
gone,0901,0.000,0.000,1.000,1.000,17,5
"""
FOUND = """v0,0900,0.105,0.200,0.300,0.900,12,0.990
v0,0901,0.105,0.200,0.300,0.900,,0.950
v1,0901,0.000,0.100,1.000,1.000,,0.5
"""
EXCLUDED = "v0,0901\nother,0902\n"
CLASSES = """label {
  name: "stand"
  label_id: 12
  label_type: PERSON_MOVEMENT
}
item { id: 80 name: 'watch (a person)' }
label { name: "talk to (e.g., \\"self\\")" label_id: 79 }
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Two segments of 2 seconds that begin at second 900 of their movies."""
    videos = [encode_mjpeg([frame_pixels(video, frame) for frame in range(2 * FPS)]) for video in range(2)]
    return write_shards(tmp_path_factory.mktemp("movies") / "set", videos, start=900)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    texts = {"truth.csv": TRUTH, "found.csv": FOUND, "excluded.csv": EXCLUDED, "classes.pbtxt": CLASSES}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {Path(name).stem: tmp_path / name for name in texts}


def command(shards: ShardSet, files: dict[str, Path], out: Path) -> list[object]:
    named = {"truth": "truth", "detections": "found", "excluded": "excluded", "classes": "classes"}
    options = [part for option, name in named.items() for part in (f"--{option}", files[name])]
    return ["boxes", shards.root, *options, "--out", out]


def test_a_file_says_what_the_csv_files_say(
    shards: ShardSet, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "boxes.arrow"
    assert run(*command(shards, files, out)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 key frames of 2 videos, 3 annotated and 2 detected boxes; classes that count: 3" in said
    assert "left out: annotated videos that are not stored: 1, excluded key frames: 1" in said
    found = read_boxes(out, shards)
    assert found.sample.tolist() == [0, 1] and found.second.tolist() == [900, 901] and found.frame.tolist() == [0, FPS]
    assert found.begins.tolist() == [0, 3, 5]
    assert found.detected.tolist() == [False, False, True, False, True]
    assert found.boxes[0].tolist() == [0.1, 0.2, 0.3, 0.9] and found.boxes[2].tolist() == [0.105, 0.2, 0.3, 0.9]
    assert found.score.tolist() == [1, 1, 0.99, 1, 0.5]
    assert dict(found.classes) == {12: "stand", 79: r"talk to (e.g., \"self\")", 80: "watch (a person)"}
    targets = found.targets(np.arange(5))
    assert [np.flatnonzero(row).tolist() for row in targets] == [[11, 79], [11], [11], [16], []]
    place, boxes = found.boxes_of(np.array([1, 0, 1]))
    assert place.tolist() == [0, 0, 1, 1, 1, 2, 2] and boxes.tolist() == [3, 4, 0, 1, 2, 3, 4]
    drawn = found.where(found.detected & (found.score >= 0.9))
    assert drawn.sample.tolist() == [0] and drawn.begins.tolist() == [0, 1] and drawn.digest != found.digest
    assert np.flatnonzero(drawn.targets(np.array([0]))).tolist() == [11]


def test_a_part_of_the_set_has_the_boxes_of_its_samples(
    shards: ShardSet, files: dict[str, Path], tmp_path: Path
) -> None:
    out, keep = tmp_path / "boxes.arrow", tmp_path / "keep.txt"
    assert run(*command(shards, files, out)) == 0
    keep.write_text("v1\n")
    part = shards.subset(find_subset(shards, read_keep_list(keep)))
    found = read_boxes(out, part)
    assert found.sample.tolist() == [0] and found.second.tolist() == [901]
    assert found.digest != read_boxes(out, shards).digest


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("truth", TRUTH.replace("0.500", "1.500"), "truth.csv:3: a box must lie in [0, 1], got 1.500,0.200"),
        ("truth", TRUTH.replace("0.500", "0.900"), "truth.csv:3: a box must have x1 <= x2"),
        ("truth", TRUTH.replace("0.500", "nan"), "truth.csv:3: 'nan' is not a number"),
        ("truth", TRUTH.replace(",80,", ",81,"), "truth.csv:2: action '81' is not in [1, 80]"),
        ("truth", TRUTH.replace(",80,", ",0,"), "truth.csv:2: action '0' is not in [1, 80]"),
        ("truth", TRUTH.replace(",80,", ",,"), "truth.csv:2: action '' is not in [1, 80]"),
        ("truth", TRUTH.replace("0901,0.110", "0902,0.110"), "second 902 of 'v0' is not stored: the shards have [900,"),
        ("truth", TRUTH.replace("0901,0.110", "9.5,0.110"), "truth.csv:4: '9.5' is not a whole number of seconds"),
        ("truth", TRUTH.replace(",80,0", ",80"), "truth.csv:2: 7 fields, not 8"),
        ("truth", "\n", "truth.csv: no boxes"),
        ("found", FOUND.replace("v1,", "elsewhere,"), "found.csv:3: a detection in video 'elsewhere'"),
        ("found", FOUND.replace("0.990", "9.990"), "found.csv:1: score 9.990 is not in [0, 1]"),
        ("found", FOUND.replace("0.990", "nan"), "found.csv:1: 'nan' is not a number"),
        (
            "found",
            FOUND + FOUND.splitlines()[0].replace("0.990", "0.980") + "\n",
            f"found.csv:{len(FOUND.splitlines()) + 1}: score 0.980 of a box that has 0.99 at",
        ),
        (
            "excluded",
            "".join(sorted({",".join(row.split(",")[:2]) + "\n" for row in (TRUTH + FOUND).splitlines()})),
            "truth.csv: every key frame is excluded",
        ),
        ("excluded", "v0\n", "excluded.csv:1: 1 fields, not 2"),
        ("classes", CLASSES.replace("id: 80", "id: 81"), "classes.pbtxt:6: class 81 is not in [1, 80]"),
        (
            "classes",
            CLASSES.replace("id: 80", "id: 12"),
            "class 12 'watch (a person)' is listed twice",
        ),
        ("classes", CLASSES.replace("id: 80", ""), "classes.pbtxt:6: a class without name or number"),
        ("classes", "stand\n", "classes.pbtxt: no classes"),
    ],
)
def test_what_is_wrong_is_one_line(
    shards: ShardSet,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    says: str,
) -> None:
    files[name].write_text(text)
    out = tmp_path / "boxes.arrow"
    assert run(*command(shards, files, out)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert says in lines[0] and lines[1].startswith("  hint: ") and len(lines) == 2
    assert not out.exists()


def test_classes_may_come_as_a_table(tmp_path: Path) -> None:
    table = tmp_path / "classes.csv"
    table.write_text('label_id,label_name,label_type\n12,stand,PERSON_MOVEMENT\n1,"bend, bow",PERSON_MOVEMENT\n')
    assert read_classes(table) == {1: "bend, bow", 12: "stand"}
    table.write_text("12,stand\nsit,11\n")
    with pytest.raises(IngestError, match=r"classes.csv:2: not the number and the name"):
        read_classes(table)


def test_files_that_are_missing_or_none_of_text_are_named(shards: ShardSet, files: dict[str, Path]) -> None:
    with pytest.raises(IngestError, match=r"nowhere\.csv: No such file"):
        make_boxes(shards, files["truth"].with_name("nowhere.csv"), files["classes"])
    files["truth"].write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IngestError, match=r"truth\.csv: not UTF-8"):
        make_boxes(shards, files["truth"], files["classes"])


def test_a_stored_video_without_annotations_is_refused(shards: ShardSet, files: dict[str, Path]) -> None:
    files["truth"].write_text(TRUTH.replace("v1,", "v2,"))
    with pytest.raises(IngestError, match=r"the video 'v1' has no annotation in .*truth\.csv .*make the shards"):
        make_boxes(shards, files["truth"], files["classes"])


def test_a_second_is_the_nearest_frame_of_any_rate() -> None:
    assert frame_at(902, start=900, fps=30) == 60  # as PySlowFast counts the pictures that it extracts
    assert frame_at(1000, start=900, fps=30_000 / 1001) == 2997
    assert frame_at(3, start=0.0, fps=23.976) == 72
