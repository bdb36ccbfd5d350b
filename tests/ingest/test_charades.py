"""The recipe of Charades, on a small replica of what is published: several actions per video, with times."""

from pathlib import Path

import pytest

from rhofast.data.types import PassedOver, VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.listing import Listing
from rhofast.ingest.recipes import find_classes, find_records, published_count

HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\r\n"
COOKING = (
    '46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food;stove,"They cook; they ""eat"".",'
    "c001 20.00 24.50;c002 0.00 12.60;c001 11.90 21.20;c001 26.00 27.50;c000 5.00 5.00,24.83\r\n"
)
IDLE = "N11GT,0KZ7,Stairs,5,,No,,,,,18.33\r\n"
TEST = 'YSKX3,0KZ7,Bedroom,7,7,Yes,"x",bed,"y",c000 0.00 31.00,30.50\r\n'
CLASSES = "c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Sitting\n"


def replica(folder: Path, *, below: str = "Charades", train: str = COOKING + IDLE, classes: str = CLASSES) -> Path:
    texts = {"Charades_v1_train.csv": HEADER + train, "Charades_v1_test.csv": HEADER + TEST}
    for name, text in {**texts, "Charades_v1_classes.txt": classes}.items():
        path = folder / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


def records(source: Path, *options: str) -> list[VideoRecord]:
    return list(find_records(source, "charades", options))


def test_actions_of_one_class_that_overlap_are_joined_and_all_else_is_kept(tmp_path: Path) -> None:
    passed_over: list[PassedOver] = []
    source = replica(tmp_path)
    cooking, idle = find_records(source, "charades", [], on_passed_over=passed_over.append)
    assert cooking.labels == [(2, 0.0, 12.6), (1, 11.9, 24.5), (1, 26.0, 27.5)]
    assert cooking.extra == {
        "subject": "HR43",
        "scene": "Kitchen",
        "quality": "6",
        "relevance": "7",
        "verified": "Yes",
        "script": "A person, cooking.",
        "objects": "food;stove",
        "descriptions": 'They cook; they "eat".',
        "length": "24.83",
    }
    assert (cooking.key, cooking.label, cooking.where[-5:]) == ("46GP8", None, "csv:2")
    assert (idle.key, idle.labels) == ("N11GT", []) and idle.extra is not None and idle.extra["relevance"] == ""
    assert [one.reason for one in passed_over] == ["actions that end before they begin"]
    with Listing(iter([cooking, idle]), classes=find_classes(source, "charades", [])) as listing:
        assert listing.class_names() == ["Holding some clothes", "Putting clothes somewhere", "Sitting"]
        assert [len(record.labels or ()) for record in listing] == [3, 0]


@pytest.mark.parametrize("videos", ["Charades_v1_480", "Charades_v1", "videos", "."])
@pytest.mark.parametrize("below", ["Charades", "annotations", "."])
def test_it_is_found_in_the_usual_layouts(tmp_path: Path, videos: str, below: str) -> None:
    source = replica(tmp_path, below=below)
    path = source / videos / "YSKX3.mkv"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    (record,) = records(source, "split=test")
    assert record.path == path and record.labels == [(0, 0.0, 31.0)]
    assert records(source)[0].path == source / videos / "46GP8.mp4"  # missing there
    assert published_count(source, "charades", ["split=train"]) == 7_985
    other = tmp_path / "other"
    (record,) = records(source, "split=test", f"root={other}", f"annotations={source / below}")
    assert record.path == other / "YSKX3.mp4"


@pytest.mark.parametrize(
    ("train", "classes", "says"),
    [
        ("x,,,,,,,,,c003 1 2,9\n", CLASSES, "train.csv:2: class c003 is not in Charades_v1_classes.txt, which has 3"),
        ("x,,,,,,,,,c001 1,9\n", CLASSES, "train.csv:2: expected an action such as `c092 11.90 21.20`, got 'c001 1'"),
        ("x,,,,,,,,,c001 1 nan,9\n", CLASSES, "train.csv:2: expected an action"),
        ("x,,,,,,,,,c001 -1 2,9\n", CLASSES, "train.csv:2: expected an action"),
        ("x,,,,,,,,,walk 1 2,9\n", CLASSES, "train.csv:2: expected an action"),
        (IDLE + "x,,9\n", CLASSES, "train.csv:3: 3 values; the first line names 11 columns"),
        (IDLE + '"x,,9\n', CLASSES, "train.csv:3: quotes do not match"),
        (IDLE, "c000 a\nc002 b\n", "classes.txt:2: expected `c001 name of the class`, got 'c002 b'"),
        (IDLE, "Holding\n", "classes.txt:1: expected `c000 name of the class`, got 'Holding'"),
    ],
)
def test_what_cannot_be_understood_is_named_by_its_line(tmp_path: Path, train: str, classes: str, says: str) -> None:
    with pytest.raises(IngestError) as caught:
        records(replica(tmp_path, train=train, classes=classes))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_there_or_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"no Charades_v1_train.csv in .*Charades, .*annotations"):
        records(tmp_path)
    source = replica(tmp_path)
    (source / "Charades/Charades_v1_classes.txt").unlink()
    with pytest.raises(IngestError, match=r"Charades_v1_classes.txt: no such file"):
        records(source)
    (replica(tmp_path) / "Charades/Charades_v1_test.csv").write_text("id,action\nx,\n")
    with pytest.raises(IngestError, match=r"test.csv: no column 'actions' in the first line"):
        records(source, "split=test")
