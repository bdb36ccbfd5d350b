"""Make the box file of a shard set from the csv files of AVA, or of any set in the same layout.

    ava_val_v2.2.csv                      ground truth, one line per box and action
    ava_detection_val_....csv             boxes of a detector of persons, with scores           optional
    ava_val_excluded_timestamps_v2.2.csv  key frames that do not count                          optional
    ava_action_list_v2.2_....pbtxt        the classes that count, with their numbers and names
        --> boxes.arrow, one row per box (data/format/box_file.py)

A line of the first two is `video_id, second, x1, y1, x2, y2, action, person or score`. Lines with the same video,
second and text of the box are one box with several actions. A detected box may have no action, and has one score.
Everything is checked against the shards: annotated movies that are not stored (a copy of AVA misses some) are counted
and left out; a stored movie without annotations, or a detection in a movie that has none, means that files of different
splits were mixed.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from rhofast.data.format.box_file import BOXES_SCHEMA, BoxFileFacts, check_box
from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.key_frames import NUM_ACTIONS
from rhofast.data.format.reader import Reader
from rhofast.errors import IngestError
from rhofast.storage.files import open_regular

_FIELDS = 8
_SIDES = slice(2, 6)
_MAX_LABEL_MAP = 1 << 20  # bytes
_ITEM = re.compile(r"\w+\s*\{([^{}]*)\}")
_NAME = re.compile(r"\bname\s*:\s*\"((?:[^\"\\]|\\.)*)\"|\bname\s*:\s*'([^']*)'")
_NUMBER = re.compile(r"\b(?:label_)?id\s*:\s*(-?\d+)")

KeyFrame = tuple[str, int]  # video, second


@dataclass(kw_only=True, slots=True)
class Box:
    """One box at a key frame.

    Attributes:
        sides: Left, top, right and bottom as shares of the frame.
        score: Score of the detector; 1 for the ground truth.
        actions: Numbers of its actions.
        where: File and line of its first line.
    """

    sides: tuple[float, float, float, float]
    score: float
    actions: list[int] = field(default_factory=list)
    where: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    """A stored movie: its first second in the source, frame rate and frames."""

    start: float
    fps: float
    frames: int


Boxes = dict[KeyFrame, dict[str, Box]]


def make_boxes(
    shards: ShardSet, truth: Path, classes: Path, *, detections: Path | None = None, excluded: Path | None = None
) -> tuple[pa.Table, BoxFileFacts]:
    """Make the content of a box file.

    Args:
        shards: The whole shard set. Keys of its samples are the video ids of the csv files.
        truth: csv file of the ground truth.
        classes: The classes that count, as .pbtxt or .csv.
        detections: csv file of a detector's boxes.
        excluded: csv file of the key frames that do not count.

    Returns:
        The rows, and what the metadata of the file say.

    Raises:
        IngestError: A file is missing, a line of one is impossible, or the files do not belong together.
        ShardError: The shards cannot be read.
        SampleError: The KEY.json of a sample cannot be read.
    """
    names = read_classes(classes)
    skipped = set() if excluded is None else set(read_key_frames(excluded))
    annotated = read_box_lines(truth, detected=False)
    drawn = {} if detections is None else read_box_lines(detections, detected=True)
    movies, samples = {video for video, _ in annotated}, _samples(shards)
    for (video, _), boxes in drawn.items():
        if video not in movies:
            where = next(iter(boxes.values())).where
            raise IngestError(
                f"{where}: a detection in video {video!r}, which has no annotation in {truth}",
                hint="give the ground truth and the detections of the same split",
            )
    for key in samples:
        if key not in movies:
            raise IngestError(
                f"{shards.where}: the video {key!r} has no annotation in {truth}",
                hint="give the csv file of this split, or make the shards from its list: rhofast recipes ava",
            )
    left_out = {
        "annotated videos that are not stored": len(movies - samples.keys()),
        "excluded key frames": len(skipped & (annotated.keys() | drawn.keys())),
    }
    columns: dict[str, list[object]] = {name: [] for name in BOXES_SCHEMA.names}
    for detected, found in ((False, annotated), (True, drawn)):
        for (video, second), boxes in found.items():
            if video in samples and (video, second) not in skipped:
                for box in boxes.values():
                    frame = _stored_frame(samples[video], video, second, box.where)
                    row = (video, second, frame, detected, *box.sides, box.score, box.actions)
                    for column, value in zip(columns.values(), row, strict=True):
                        column.append(value)
    if not columns["key"]:
        raise IngestError(
            f"{truth}: every key frame is excluded, or in a movie that {shards.where} does not have",
            hint="give the csv files of the split that was stored",
        )
    facts = BoxFileFacts(
        digest=shards.info.digest, classes={str(number): name for number, name in names.items()}, left_out=left_out
    )
    return pa.table(columns, schema=BOXES_SCHEMA), facts


def read_box_lines(path: Path, *, detected: bool) -> Boxes:
    """Read a csv file of boxes.

    Args:
        path: The file.
        detected: Whether its last column is a detector's score, and actions may be missing.

    Returns:
        The boxes of each key frame, by the text of their coordinates.

    Raises:
        IngestError: The file is missing, or a line of it is impossible.
    """
    found: Boxes = {}
    for line, row in _lines(path):
        where = f"{path}:{line}"
        if len(row) != _FIELDS:
            raise IngestError(
                f"{where}: {len(row)} fields, not {_FIELDS}",
                hint=f"video, second, x1, y1, x2, y2, action, {'score' if detected else 'person'}",
            )
        boxes = found.setdefault((row[0], _second(where, row[1])), {})
        text = ",".join(row[_SIDES])
        box = boxes.get(text)
        if box is None:
            x1, y1, x2, y2 = (_number(where, side) for side in row[_SIDES])
            problem = check_box((x1, y1, x2, y2))
            if problem is not None:
                raise IngestError(f"{where}: {problem}, got {text}", hint="give shares of width and height, not pixels")
            boxes[text] = box = Box(
                sides=(x1, y1, x2, y2), score=_score(where, row[7]) if detected else 1.0, where=where
            )
        elif detected and _score(where, row[7]) != box.score:
            raise IngestError(
                f"{where}: score {row[7]} of a box that has {box.score:g} at {box.where}",
                hint="a box has one score, in a line per action; leave out what was detected twice",
            )
        if row[6] or not detected:
            action = _whole(row[6])
            if action is None or not 1 <= action <= NUM_ACTIONS:
                raise IngestError(
                    f"{where}: action {row[6][:20]!r} is not in [1, {NUM_ACTIONS}]",
                    hint="column 7 is the number of an action; only detections may lack it",
                )
            if not detected or action not in box.actions:  # annotators' lines all count, as in the official evaluation
                box.actions.append(action)
    if not found:
        raise IngestError(f"{path}: no boxes", hint="give a csv file of boxes, one line per box and action")
    return found


def read_key_frames(path: Path) -> Iterator[KeyFrame]:
    """Yield the (video, second) of each line of a csv file; raises IngestError for a line that is none."""
    for line, row in _lines(path):
        if len(row) != 2:
            raise IngestError(f"{path}:{line}: {len(row)} fields, not 2", hint="video, second")
        yield row[0], _second(f"{path}:{line}", row[1])


def read_classes(path: Path) -> dict[int, str]:
    """Read the classes that count.

    Args:
        path: Label map as .pbtxt (`name: "..."` and `id:` or `label_id:` in braces), or as .csv (number, name).

    Returns:
        The name of each class by its number, ascending.

    Raises:
        IngestError: The file is missing, lists no class, or a number is outside [1, NUM_ACTIONS] or listed twice.
    """
    pairs = _pbtxt_classes(path) if path.suffix.lower() == ".pbtxt" else _csv_classes(path)
    names: dict[int, str] = {}
    for where, number, name in pairs:
        if not 1 <= number <= NUM_ACTIONS:
            raise IngestError(f"{where}: class {number} is not in [1, {NUM_ACTIONS}]", hint="classes count from 1")
        if number in names or name in names.values():
            raise IngestError(f"{where}: class {number} {name!r} is listed twice", hint="list each class once")
        names[number] = name
    if not names:
        raise IngestError(f"{path}: no classes", hint='a .pbtxt has `label { name: "stand" label_id: 12 }`')
    return dict(sorted(names.items()))


def _pbtxt_classes(path: Path) -> Iterator[tuple[str, int, str]]:
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_LABEL_MAP).decode("utf-8-sig")
    except OSError as error:
        raise IngestError(f"{path}: {error.strerror}", hint="check the path") from None
    except UnicodeDecodeError:
        raise IngestError(f"{path}: not UTF-8", hint="give a label map as text") from None
    for item in _ITEM.finditer(text):
        where = f"{path}:{text.count(chr(10), 0, item.start()) + 1}"
        name, number = _NAME.search(item[1]), _NUMBER.search(item[1])
        if name is None or number is None:
            raise IngestError(f"{where}: a class without name or number", hint='name: "stand" label_id: 12')
        yield where, int(number[1]), name[1] if name[2] is None else name[2]


def _csv_classes(path: Path) -> Iterator[tuple[str, int, str]]:
    for line, row in _lines(path):
        number = _whole(row[0])
        if number is None and line == 1:  # the names of the columns
            continue
        if number is None or len(row) < 2 or not row[1]:
            raise IngestError(f"{path}:{line}: not the number and the name of a class", hint="12,stand")
        yield f"{path}:{line}", number, row[1]


def _score(where: str, text: str) -> float:
    score = _number(where, text, "column 8 is the score of the detector")
    if not 0 <= score <= 1:
        raise IngestError(f"{where}: score {text[:20]} is not in [0, 1]", hint="the last column is the score")
    return score


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, stripped fields) of each line of a csv file that is not blank."""
    try:
        with open_regular(path) as binary:
            reader = csv.reader((text.decode("utf-8-sig") for text in binary), strict=True)
            for row in reader:
                if any(row):
                    yield reader.line_num, [one.strip() for one in row]
    except OSError as error:
        raise IngestError(f"{path}: {error.strerror}", hint="check the path") from None
    except UnicodeDecodeError:
        raise IngestError(f"{path}: not UTF-8", hint="give a csv file") from None
    except csv.Error as error:
        raise IngestError(f"{path}: not a csv file: {error}", hint="check the quotes in it") from None


def _second(where: str, text: str) -> int:
    second = _whole(text)
    if second is None:
        raise IngestError(f"{where}: {text[:20]!r} is not a whole number of seconds", hint="such as 0902")
    return second


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


def _number(where: str, text: str, hint: str = "columns 3 to 6 are x1, y1, x2, y2") -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise IngestError(f"{where}: {text[:20]!r} is not a number", hint=hint)
    return number


def _samples(shards: ShardSet) -> dict[str, _Sample]:
    """Return what the shards say of each movie, by its key."""
    reader = Reader(shards)
    try:
        found = {}
        for sample in range(len(shards)):
            row = reader.locate(sample)
            start = reader.read_json(sample, row).start
            found[row.key] = _Sample(start=start or 0.0, fps=row.fps, frames=row.num_frames)
        return found
    finally:
        reader.close()


def frame_at(second: int, *, start: float, fps: float) -> int:
    """Return the number of the frame that is shown at a second of the source.

    Args:
        second: Time in the source.
        start: Second of the source at which the stored segment begins.
        fps: Stored frames per second.
    """
    return round((second - start) * fps)


def _stored_frame(sample: _Sample, video: str, second: int, where: str) -> int:
    """Return the number of the frame at a second of the source; raises IngestError if it is not stored."""
    frame = frame_at(second, start=sample.start, fps=sample.fps)
    if not 0 <= frame < sample.frames:
        end = sample.start + sample.frames / sample.fps
        raise IngestError(
            f"{where}: second {second} of {video!r} is not stored: the shards have [{sample.start:g}, {end:g}) s of it",
            hint="make the shards from the seconds that are annotated: rhofast recipes ava",
        )
    return frame
