"""One shard: a reproducible WebDataset tar, its Arrow index and its wds2idx index. Whole or not there.

All files are written under hidden names, flushed to the disk and renamed; the index comes last, so a shard with an
index is complete.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset as wds

from rhofast.data.codecs import Member
from rhofast.data.index import VERSION, IndexRow, ShardInfo, write_index
from rhofast.files import flush


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSample:
    """A sample that is ready to be written. content: the encoded member; note: what KEY.json says."""

    key: str
    label: int | None
    source_digest: bytes
    content: bytes
    suffix: str
    member: Member
    note: dict[str, Any]


def write_shard(folder: Path, name: str, samples: Iterable[NewSample]) -> ShardInfo | None:
    """Write `name`.tar, .idx and .arrow from samples, one in memory at a time; None (and no file) if there are none.
    Raises OSError; nothing half-written is left then."""
    asides = {suffix: folder / f".{name}.{suffix}.tmp" for suffix in ("tar", "idx", "arrow")}
    written: list[NewSample] = []
    try:
        with asides["tar"].open("wb") as file:
            tar = wds.TarWriter(
                file, encoder=False, user="root", group="root", mode=0o644, mtime=0.0, format=tarfile.USTAR_FORMAT
            )
            for sample in samples:
                note = json.dumps(sample.note, ensure_ascii=True, sort_keys=True).encode()
                tar.write({"__key__": sample.key, sample.suffix: sample.content, "json": note})
                written.append(_without_content(sample))
            tar.close()
        if not written:
            return None
        places = tar_members(asides["tar"])
        rows = [_row(sample, *places[f"{sample.key}.{sample.suffix}"]) for sample in written]
        index_digest = write_index(asides["arrow"], rows, {"rhofast": str(VERSION)})
        asides["idx"].write_text(wds2idx_text(places))
        info = ShardInfo(
            name=name,
            samples=len(rows),
            frames=sum(row.num_frames for row in rows),
            seconds=sum(row.num_frames / row.fps for row in rows),
            bytes=asides["tar"].stat().st_size,
            index_bytes=asides["arrow"].stat().st_size,
            tar_sha256=file_digest(asides["tar"]),
            index_sha256=index_digest,
        )
        for suffix, aside in asides.items():
            flush(aside)
            aside.replace(folder / f"{name}.{suffix}")
        return info
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)


def tar_members(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset of its first byte, size) of every regular member, in order. Raises tarfile.TarError."""
    with tarfile.open(path, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}


def wds2idx_text(places: dict[str, tuple[int, int]]) -> str:
    """The index that DALI's wds2idx makes of a tar with these members (its version 1.2)."""
    lines: dict[str, list[str]] = {}
    for name, (offset, size) in places.items():
        key, _, extension = name.partition(".")
        lines.setdefault(key, []).append(f"{extension} {offset} {size} {name}")
    return "".join(f"{line}\n" for line in [f"v1.2 {len(lines)}", *(" ".join(parts) for parts in lines.values())])


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_content(sample: NewSample) -> NewSample:
    return NewSample(
        key=sample.key,
        label=sample.label,
        source_digest=sample.source_digest,
        content=b"",
        suffix=sample.suffix,
        member=sample.member,
        note=sample.note,
    )


def _row(sample: NewSample, offset: int, size: int) -> IndexRow:
    member = sample.member
    return IndexRow(
        key=sample.key,
        label=sample.label,
        source_digest=sample.source_digest,
        offset=offset,
        size=size,
        num_frames=member.num_frames,
        fps=float(member.fps),
        width=member.width,
        height=member.height,
        units=member.units,
    )
