"""ssv2: Something-Something v2, 220,847 videos of 174 kinds of actions with everyday objects.

    rhofast shard SSV2 OUT/train --recipe ssv2 --option split=train --split train
    rhofast shard SSV2 OUT/val   --recipe ssv2 --option split=val   --split val

Download: https://www.qualcomm.com/developer/software/something-something-v-2-dataset, after registration. Join the
parts of the archive to unpack it: `cat 20bn-something-something-v2-?? | tar zx`. The labels are a separate download.
License: Qualcomm's own data set license, which you accept when you download it; for research, not for commercial use.

SOURCE is the folder into which both were unpacked:

    20bn-something-something-v2/78687.webm    or in videos/20bn-something-something-v2/, videos/ or SOURCE
    labels/train.json  labels.json  ...       or in annotations/ or SOURCE; also something-something-v2-train.json, ...

`root` sets the folder of the videos, `annotations` that of the JSON files. The suffix of a video does not matter (some
copies are .mp4). The label of a video is the number that labels.json has for its template without brackets. The test
split has labels if test-answers.csv (`id;template` lines) lies beside the JSON files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from _lists import CLASSES_BYTES, numbered_lines, read_json
from _paths import VideoFolders, first_file, first_folder

from rhofast.data.types import VideoRecord

Split = Literal["train", "val", "test"]

FILES = {"train": "train", "val": "validation", "test": "test"}
PUBLISHED = {"train": 168_913, "val": 24_777, "test": 27_157}
LISTING_BYTES = 96 << 20  # the published one of training has some 40 MB
PREFIXES = ("something-something-v2-", "")


def records(
    source: Path, *, split: Split = "train", root: Path | None = None, annotations: Path | None = None
) -> Iterator[VideoRecord]:
    """Yield the videos of one split, in the order of its JSON file.

    Args:
        source: Folder of the data set.
        split: Which split to list.
        root: Folder of the videos; None: searched in `source`.
        annotations: Folder of the JSON files; None: searched in `source`.

    Raises:
        ValueError: A file is missing or an entry of it cannot be understood.
    """
    listing = find_listing(source, split, annotations)
    labels = read_labels(listing)
    answers = read_answers(listing.parent) if split == "test" else {}
    archive = "20bn-something-something-v2"
    videos = root or first_folder([source / archive, source / "videos" / archive, source / "videos", source])
    finder = VideoFolders()
    for number, (key, template) in enumerate(read_entries(listing), start=1):
        name = template or answers.get(key)
        if name is not None and name not in labels:
            raise ValueError(f"{listing}: entry {number}: {name!r} is not in labels.json")
        yield VideoRecord(
            key=key,
            path=finder.find(videos, key) or videos / f"{key}.webm",
            label=None if name is None else labels[name],
            label_name=name,
            where=f"{listing}: entry {number}",
        )


def classes(source: Path, *, split: Split = "train", annotations: Path | None = None, **_: object) -> list[str]:
    """Return the names of all classes, by number. The options are those of records."""
    names = {number: name for name, number in read_labels(find_listing(source, split, annotations)).items()}
    return [names.get(number, str(number)) for number in range(max(names, default=-1) + 1)]


def published(source: Path, *, split: Split = "train", **_: object) -> int:
    """Return how many videos the published split has."""
    return PUBLISHED[split]


def named(name: str) -> list[str]:
    """Return the two published names of a file."""
    return [prefix + name for prefix in PREFIXES]


def find_listing(source: Path, split: Split, annotations: Path | None) -> Path:
    """Return the JSON file of a split; the arguments are as for records."""
    beside = [source / "labels", source / "annotations", source]
    return first_file([annotations] if annotations else beside, named(f"{FILES[split]}.json"))


def read_labels(listing: Path) -> dict[str, int]:
    """Return the number of each class by its template, from labels.json beside the file of a split.

    Raises:
        ValueError: The file has something else, or two classes have one number. It has the numbers as text.
    """
    path = first_file([listing.parent], named("labels.json"))
    content = read_json(path, most=CLASSES_BYTES, unique=True)
    try:
        labels = {name: int(str(number)) for name, number in content.items()}
    except (AttributeError, ValueError):
        raise ValueError(f"{path}: expected numbers by template") from None
    if len(set(labels.values())) != len(labels) or not all(0 <= number < 1_000_000 for number in labels.values()):
        raise ValueError(f"{path}: expected numbers by template, each once, from 0 on")
    return labels


def read_entries(path: Path) -> list[tuple[str, str | None]]:
    """Return (id, template without brackets or None) for each video; nothing else of the large file is kept."""
    entries: list[tuple[str, str | None]] = []
    content = read_json(path, most=LISTING_BYTES)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of videos")
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, dict) or "id" not in entry:
            raise ValueError(f"{path}: entry {number}: expected an object with an id, got {str(entry)[:80]}")
        template = entry.get("template")
        entries.append((str(entry["id"]), None if template is None else without_brackets(str(template))))
    return entries


def read_answers(folder: Path) -> dict[str, str]:
    """Return templates of the test split by id; empty without test-answers.csv."""
    answers: dict[str, str] = {}
    path = next((folder / name for name in named("test-answers.csv") if (folder / name).is_file()), None)
    for line, text in numbered_lines(path) if path else ():
        key, semicolon, template = text.partition(";")
        if not semicolon:
            raise ValueError(f"{path}:{line}: expected `id;template`, got {text!r}")
        answers[key] = without_brackets(template)
    return answers


def without_brackets(template: str) -> str:
    """Return a template without the brackets around its placeholders."""
    return template.replace("[", "").replace("]", "").strip()
