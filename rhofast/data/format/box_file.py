"""Boxes with actions at key frames of videos, in one Arrow file beside the shards, which may come from a stranger.

    csv files --ingest/ava_boxes.py--> boxes.arrow, one row per box --read_boxes--> KeyFrames, checked

Boxes are no part of the shards: another detector, or another list of classes, is another small file. A row is a box at
a key frame of a sample. Its coordinates are shares of the width and the height of the frame, so they hold for any
stored size. It was drawn by annotators (the ground truth), or by a detector of persons, which has a score. The schema's
metadata holds the digest of the shard set for which frames were numbered, and the classes that an evaluation counts.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.key_frames import NUM_ACTIONS, KeyFrames
from rhofast.errors import ConfigError
from rhofast.storage.files import open_regular, replacing
from rhofast.storage.strict_json import parse_record

BOXES_FILE = "boxes.arrow"

BOXES_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # key of the sample
        pa.field("second", pa.int32(), nullable=False),  # time in the source that the annotations name
        pa.field("frame", pa.int32(), nullable=False),  # number of this frame in the sample
        pa.field("detected", pa.bool_(), nullable=False),  # whether a detector drew it, and not an annotator
        *(pa.field(side, pa.float64(), nullable=False) for side in ("x1", "y1", "x2", "y2")),  # shares of the frame
        pa.field("score", pa.float64(), nullable=False),  # of the detector, in [0, 1]; 1 for the ground truth
        pa.field("actions", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),  # in [1, 80]
    ]
)
_VERSION = 1
_META = b"rhofast"
_MAX_BYTES = 1 << 31
_HINT = "make it again: rhofast boxes SHARDS --truth CSV"


class BoxFileFacts(BaseModel):
    """What the metadata of a box file say.

    Attributes:
        version: Version of the format.
        digest: Digest of the shard set whose frames are numbered.
        classes: Name of each class that an evaluation counts, by its number.
        left_out: What of the csv files has no row, in words, with counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = _VERSION
    digest: str
    classes: Annotated[dict[str, str], Field(min_length=1, max_length=NUM_ACTIONS)]
    left_out: dict[str, int] = Field(default_factory=dict)


def write_boxes(path: Path, table: pa.Table, facts: BoxFileFacts) -> None:
    """Write a box file, as a whole or not at all.

    Args:
        path: The file.
        table: Rows with the columns of BOXES_SCHEMA.
        facts: What its metadata say.

    Raises:
        OSError: The file cannot be written.
    """
    schema = BOXES_SCHEMA.with_metadata({_META: facts.model_dump_json()})
    with replacing(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table.cast(schema).combine_chunks())


def read_boxes(path: Path, shards: ShardSet) -> KeyFrames:
    """Read a box file and check everything in it.

    Args:
        path: The file.
        shards: The shard set that it belongs to, or a part of it, to which the boxes are then confined.

    Returns:
        The key frames of the samples.

    Raises:
        ConfigError: The file does not exist, is none of boxes, belongs to another shard set, or a row is impossible;
            or no sample of the set has a box.
        ShardError: An index cannot be read.
    """
    facts, table, digest = _read(path)
    if facts.digest != shards.info.digest:
        raise ConfigError(f"{path}: the boxes belong to another shard set than {shards.where}", hint=_HINT)
    _check_columns(path, table)
    lengths = frames_by_key(shards)
    keys = table["key"].combine_chunks().dictionary_encode()
    names: list[str] = keys.dictionary.to_pylist()
    found = np.array([lengths.get(name, (-1, 0)) for name in names], dtype=np.int64).reshape(-1, 2)
    if shards.part is None and (found[:, 0] < 0).any():
        name = names[int(np.argmin(found[:, 0]))]
        raise ConfigError(f"{path}: key {name!r} is not in {shards.where}", hint=_HINT)
    code = keys.indices.to_numpy()
    sample, count, frame = found[code, 0], found[code, 1], table["frame"].to_numpy().astype(np.int64)
    _require(path, table, (sample < 0) | ((frame >= 0) & (frame < count)), "frame is not in the sample")
    rows = np.flatnonzero(sample >= 0)
    if not len(rows):
        raise ConfigError(f"{path}: no sample of {shards.where} has a box", hint=_HINT)
    rows = rows[np.lexsort((table["detected"].to_numpy()[rows], frame[rows], sample[rows]))]
    ordered = table.take(pa.array(rows)).combine_chunks()
    sample, frame = sample[rows], frame[rows]
    is_first = np.append(True, (np.diff(sample) != 0) | (np.diff(frame) != 0))
    actions = ordered["actions"].chunk(0)
    return KeyFrames(
        sample=sample[is_first],
        frame=frame[is_first],
        second=ordered["second"].to_numpy().astype(np.int64)[is_first],
        begins=np.append(np.flatnonzero(is_first), len(rows)),
        boxes=np.stack([ordered[side].to_numpy() for side in ("x1", "y1", "x2", "y2")], axis=1),
        detected=ordered["detected"].to_numpy(),
        score=ordered["score"].to_numpy(),
        action_begins=actions.offsets.to_numpy().astype(np.int64) - actions.offsets[0].as_py(),
        actions=actions.flatten().to_numpy(),
        classes={int(number): facts.classes[number] for number in sorted(facts.classes, key=int)},
        digest=hashlib.sha256(f"{shards.digest} {digest}".encode()).hexdigest(),
    )


def frames_by_key(shards: ShardSet) -> dict[str, tuple[int, int]]:
    """Return the number and the frames of each sample by its key.

    Raises:
        ShardError: An index cannot be read.
    """
    found = {}
    for number in shards.used_shards().tolist():
        index = shards.index(number)
        for sample, row in enumerate(shards.rows_of(number).tolist(), int(shards.starts[number])):
            found[index.key(row)] = (sample, int(index.num_frames[row]))
    return found


def check_box(box: npt.NDArray[np.float64] | tuple[float, float, float, float]) -> str | None:
    """Return what is wrong with a box, or None."""
    x1, y1, x2, y2 = box
    if not (0 <= x1 <= 1 and 0 <= y1 <= 1 and 0 <= x2 <= 1 and 0 <= y2 <= 1):
        return "a box must lie in [0, 1]"
    return None if x1 <= x2 and y1 <= y2 else "a box must have x1 <= x2 and y1 <= y2"


def _read(path: Path) -> tuple[BoxFileFacts, pa.Table, str]:
    """Return metadata, rows and digest of a file; raises ConfigError if it is no box file."""
    try:
        with open_regular(path) as file:
            if file.seek(0, 2) > _MAX_BYTES:
                raise ConfigError(f"{path}: larger than {_MAX_BYTES:,} bytes", hint=_HINT)
            file.seek(0)
            content = file.read()
        table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
        table.validate(full=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="make it: rhofast boxes SHARDS --truth CSV") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{path}: not a file of boxes: {reason}", hint=_HINT) from None
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    if not table.schema.equals(BOXES_SCHEMA, check_metadata=False) or _META not in metadata:
        raise ConfigError(f"{path}: not a file of boxes: its columns differ", hint=_HINT)
    facts = parse_record(metadata[_META], BoxFileFacts, where=f"{path}: metadata", raises=ConfigError, hint=_HINT)
    if facts.version != _VERSION:
        raise ConfigError(f"{path}: version {facts.version}; this version reads {_VERSION}", hint=_HINT)
    wrong = [number for number in facts.classes if not _is_action(number)]
    if wrong:
        raise ConfigError(f"{path}: class {wrong[0][:20]!r} is not in [1, {NUM_ACTIONS}]", hint=_HINT)
    return facts, table, hashlib.sha256(content).hexdigest()


def _is_action(text: str) -> bool:
    return text.isascii() and text.isdigit() and str(int(text)) == text and 1 <= int(text) <= NUM_ACTIONS


def _check_columns(path: Path, table: pa.Table) -> None:
    """Raise ConfigError for the first impossible row."""
    if any(column.null_count for column in table.columns):
        raise ConfigError(f"{path}: a row has no value", hint=_HINT)
    x1, y1, x2, y2 = (table[side].to_numpy() for side in ("x1", "y1", "x2", "y2"))
    inside = (x1 >= 0) & (y1 >= 0) & (x2 <= 1) & (y2 <= 1)  # a NaN is not inside
    _require(path, table, inside & (x1 <= x2) & (y1 <= y2), "the box is not in [0, 1], or has x1 > x2 or y1 > y2")
    score = table["score"].to_numpy()
    _require(path, table, (score >= 0) & (score <= 1), "score is not in [0, 1]")
    actions = table["actions"].combine_chunks()
    numbers = actions.flatten()
    if numbers.null_count:
        raise ConfigError(f"{path}: a row has no value", hint=_HINT)
    wrong = (numbers.to_numpy() < 1) | (numbers.to_numpy() > NUM_ACTIONS)
    counts = np.diff(actions.offsets.to_numpy()) if len(actions) else np.zeros(0, dtype=np.int64)
    bad = np.zeros(len(table), dtype=np.bool_)
    bad[np.repeat(np.arange(len(counts)), counts)[wrong]] = True
    _require(path, table, ~bad, f"an action is not in [1, {NUM_ACTIONS}]")


def _require(path: Path, table: pa.Table, right: Any, what: str) -> None:
    """Raise ConfigError that names the first row for which a condition does not hold."""
    if not right.all():
        row = int(np.argmin(right))
        key, second = table["key"][row].as_py(), table["second"][row].as_py()
        raise ConfigError(f"{path}: row {row}, key {key!r}, second {second}: {what}", hint=_HINT)
