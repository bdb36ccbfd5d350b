"""Lists and published annotations of any bytes: a listing, or one error line; never a traceback, never for long."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rhofast.ingest.listing import Listing, PassedOverCount
from rhofast.ingest.recipes import find_classes, find_records
from tests.fuzz.mutations import NAMES, NUMBERS, choose, mutate_bytes, mutate_json

Rng = np.random.Generator

FIELDS = ("a.mp4", "v 1.avi", "sub/b.webm", "s3://b/c.mkv", "abc", "label", "path", "3", "1.0", "-1", "run", "x;y", '"')
MARKS = (",", "\t", ";", "|", " ", ", ", "")
ENDS = ("\n", "\r\n", "\r", "\n\n", "\x0b", "\x85", "\u2028")
TEXTS = {
    "annotations/train.csv": "label,youtube_id,time_start,time_end,split\nrun,abcdefghij1,1,11,train\n",
    "annotations/val.csv": "label,youtube_id,time_start,time_end,split\nrun,abcdefghij2,1,11,validate\n",
    "classInd.txt": "1 Run\n2 Jump\n",
    "trainlist01.txt": "Run/v_Run_g01_c01.avi 1\nJump/v_Jump_g01_c01.avi 2\n",
    "run_test_split1.txt": "a.avi 1\nb.avi 2\n",
    "jump_test_split1.txt": "c.avi 1 \nd.avi 0\n",
    "train.json": json.dumps([{"id": "1", "template": "Run [x]"}, {"id": "2", "template": "Jump [x]"}]),
    "labels.json": json.dumps({"Run x": "0", "Jump x": "1"}),
    "ava_train_v2.2.csv": "-a_B,0902,0.1,0.2,0.3,0.4,12,0\nc,0902,0.1,0.2,0.3,0.4,12,0\n",
}
RECIPES = {
    "kinetics": ("annotations/train.csv", "annotations/val.csv"),
    "ucf101": ("classInd.txt", "trainlist01.txt"),
    "hmdb51": ("run_test_split1.txt", "jump_test_split1.txt"),
    "ssv2": ("train.json", "labels.json"),
    "ava": ("ava_train_v2.2.csv",),
}


def read(case: Path) -> None:
    """List a case: a list of videos, or the folder of the recipe whose name it has."""
    recipe = case.name if case.is_dir() else None
    options = (case.parent / "options").read_text().splitlines() if recipe is None else []
    count = PassedOverCount()
    records = find_records(case, recipe, options, on_passed_over=count.add)
    with Listing(records, classes=find_classes(case, recipe, options), passed_over=count) as listing:
        assert all(record.label is None or record.label >= 0 for record in listing)
        names = listing.class_names()
        assert len(set(names)) == len(names)


def make_list(rng: Rng, folder: Path) -> Path:
    """A list of fields and names of trouble; half of them regular but for a few bytes."""
    if rng.random() < 0.5:
        mark, width = choose(rng, MARKS), int(rng.integers(1, 4))
        rows = [[choose(rng, FIELDS) for _ in range(width)] for _ in range(int(rng.integers(1, 30)))]
        if rng.random() < 0.5:
            rows[int(rng.integers(len(rows)))].append(str(choose(rng, (*NAMES, *NUMBERS[:-1]))))
        text = choose(rng, ENDS[:3]).join(map(mark.join, rows))
    else:
        parts = (*FIELDS, *NAMES, *MARKS, *ENDS, "#", "# ", "'", "\ufeff", "0" * 5000, "x" * 70_000)
        text = "".join(choose(rng, parts) for _ in range(int(rng.integers(40))))
    content = text.encode(choose(rng, ("utf-8", "utf-8", "utf-16", "utf-16-le", "utf-32")), "surrogatepass")
    (folder / "list.csv").write_bytes(mutate_bytes(rng, content) if rng.random() < 0.5 else content)
    options = ("", "labels=names", "labels=numbers", "header=true", "header=false", "unlabeled=-1", "path_column=2")
    more = ("label_column=1", "label_column=none", *(f"separator={name}" for name in ("tab", "space", "none", "comma")))
    (folder / "options").write_text(choose(rng, (*[""] * 10, *options, *more)))
    return folder / "list.csv"


def make_annotations(rng: Rng, folder: Path) -> Path:
    """The files of a published data set, of which one is spoiled."""
    recipe = choose(rng, tuple(RECIPES))
    source = folder / recipe
    for name in RECIPES[recipe]:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXTS[name])
    path = source / choose(rng, RECIPES[recipe])
    if path.suffix == ".json":
        path.write_bytes(mutate_json(rng, json.loads(path.read_text())))
    elif rng.random() < 0.5:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    else:
        words = path.read_text().replace(",", " , ").split(" ")
        words[int(rng.integers(len(words)))] = str(choose(rng, (*NAMES, *NUMBERS[:-1])))
        path.write_bytes("".join(words).encode("utf-8", "surrogatepass"))
    return source


@pytest.mark.parametrize(("make", "cases"), [(make_list, 200), (make_annotations, 100)])
def test_sources_of_any_bytes_are_listed_or_refused_in_one_line(  # type: ignore[no-untyped-def]
    fuzz, make, cases: int
) -> None:
    fuzz("tests.fuzz.test_sources:read", make, cases=cases)
