"""Every promise of the shard format, checked; and what is wrong, said with its address."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rhofast.data.codecs import JpegCodec, build_codec
from rhofast.data.index import IndexRow, ShardInfo, ShardSet, open_index
from rhofast.errors import ConfigError, ShardError
from rhofast.ingest.writer import file_digest, tar_members, wds2idx_text

_MEAN_TOLERANCE = 1.0  # of 255, between the stored mean color and that of the decoded picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One broken promise. key and offset (in the file) are None where the whole file is meant."""

    file: str
    what: str
    key: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        where = self.file if self.key is None else f"{self.file}, key {self.key}"
        return f"{where}{'' if self.offset is None else f', byte {self.offset}'}: {self.what}"


def verify_shards(
    shards: ShardSet, *, deep: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[Problem]:
    """Check a whole set; yields what is wrong. deep: decode every picture too. on_progress: (shards done, in all)."""
    root, info = shards.root, shards.info
    try:
        codec = build_codec(info.codec)
    except ConfigError as error:
        yield Problem(file="dataset.json", what=error.message)
        return
    keys: dict[str, str] = {}
    for number, shard in enumerate(info.shards):
        yield from _verify_shard(root, shard, codec, keys, num_classes=len(info.classes), deep=deep)
        if on_progress is not None:
            on_progress(number + 1, len(info.shards))
    expected_sizes = {shard.tar: shard.samples for shard in info.shards}
    if _read_json(root / "sizes.json") != expected_sizes:
        yield Problem(file="sizes.json", what="does not list the samples of the shards")
    refused = root / "refused.jsonl"
    count = len(refused.read_text(encoding="utf-8").splitlines()) if refused.is_file() else -1
    if count != sum(info.refused.values()):
        yield Problem(file="refused.jsonl", what=f"does not list the {sum(info.refused.values())} refused sources")
    for leftover in sorted([*root.glob(".*.tmp"), *root.glob(".unit-*.json")]):
        yield Problem(file=leftover.name, what="left over from an interrupted run; run the same command again")
    known = {shard.name for shard in info.shards}
    for stray in sorted(path for path in root.glob("shard-*") if path.stem not in known):
        yield Problem(file=stray.name, what="is not listed in dataset.json")


def _verify_shard(
    root: Path, shard: ShardInfo, codec: JpegCodec, keys: dict[str, str], *, num_classes: int, deep: bool
) -> Iterator[Problem]:
    try:
        index = open_index(root / shard.index, digest=shard.index_sha256)
    except ShardError as error:
        yield Problem(file=shard.index, what=error.message.removeprefix(f"{root / shard.index}: "))
        return
    tar = root / shard.tar
    if not tar.is_file():
        yield Problem(file=shard.tar, what="no such file, although dataset.json names it")
        return
    size = tar.stat().st_size
    if size != shard.bytes:
        yield Problem(file=shard.tar, what=f"is {size} bytes long, dataset.json says {shard.bytes}")
    elif file_digest(tar) != shard.tar_sha256:
        yield Problem(file=shard.tar, what="its digest is not the one in dataset.json")
    try:
        places = tar_members(tar)
    except tarfile.TarError as error:
        yield Problem(file=shard.tar, what=f"is not a whole tar file: {error}")
        return
    facts = (len(index), int(index.num_frames.sum()))
    if facts != (shard.samples, shard.frames):
        yield Problem(file=shard.index, what=f"{facts[0]} samples, {facts[1]} frames; dataset.json says otherwise")
    idx = root / f"{shard.name}.idx"
    if not idx.is_file() or idx.read_text() != wds2idx_text(places):
        yield Problem(file=idx.name, what="is not the wds2idx index of the tar")
    with tar.open("rb") as file:
        for number in range(len(index)):
            row = index.row(number)
            if row.key in keys:
                yield Problem(file=shard.index, key=row.key, what=f"the key is in {keys[row.key]} too")
            keys[row.key] = shard.name
            member, note = places.get(f"{row.key}.{codec.suffix}"), places.get(f"{row.key}.json")
            if member != (row.offset, row.size) or note is None:
                yield Problem(file=shard.tar, key=row.key, what="the tar has no such member where the index says")
                continue
            file.seek(note[0])
            yield from _verify_note(shard.tar, row, file.read(note[1]), note[0])
            file.seek(row.offset)
            yield from _verify_member(shard.tar, row, file.read(row.size), codec, deep=deep)
            if row.label is not None and row.label >= num_classes:
                yield Problem(file=shard.index, key=row.key, what=f"label {row.label} of {num_classes} classes")


def _verify_note(file: str, row: IndexRow, content: bytes, offset: int) -> Iterator[Problem]:
    try:
        note = json.loads(content)
    except ValueError:
        yield Problem(file=file, key=row.key, offset=offset, what="KEY.json is not JSON")
        return
    expected = {
        "label": row.label,
        "fps": row.fps,
        "frames": row.num_frames,
        "width": row.width,
        "height": row.height,
        "source_digest": row.source_digest.hex(),
    }
    for name, value in expected.items():
        if note.get(name) != value:
            what = f"KEY.json says {name} {note.get(name)!r}, the index {value!r}"
            yield Problem(file=file, key=row.key, offset=offset, what=what)


def _verify_member(file: str, row: IndexRow, content: bytes, codec: JpegCodec, *, deep: bool) -> Iterator[Problem]:
    units = row.units
    for unit in range(len(units.frame)):
        start, end = int(units.offset[unit]), int(units.offset[unit]) + int(units.size[unit])
        if end > len(content) or zlib.crc32(content[start:end]) != int(units.crc[unit]):
            what = f"frame {int(units.frame[unit])}: checksum mismatch"
            yield Problem(file=file, key=row.key, offset=row.offset + start, what=what)
            return
    if not deep:
        return
    try:
        member = codec.index_member(content)
    except ValueError as error:
        yield Problem(file=file, key=row.key, offset=row.offset, what=str(error))
        return
    if (member.num_frames, member.width, member.height) != (row.num_frames, row.width, row.height):
        found = f"{member.num_frames} frames of {member.width}x{member.height}"
        yield Problem(file=file, key=row.key, offset=row.offset, what=f"holds {found}; the index says otherwise")
        return
    wrong = np.flatnonzero(np.abs(member.units.rgb - units.rgb).max(axis=1) > _MEAN_TOLERANCE)
    if len(wrong):
        what = f"frame {int(wrong[0])}: its mean color is not the stored one"
        yield Problem(file=file, key=row.key, offset=row.offset + int(units.offset[wrong[0]]), what=what)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
