"""One shard: a reproducible WebDataset tar, its Arrow index and its wds2idx index. Whole or not there.

All files are written in a scratch folder, flushed to the disk and renamed (or uploaded); the index comes last, so a
shard with an index is complete. A video is copied from file to file and never held in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rhofast.data.codecs.codec import Member
from rhofast.data.format.dataset import ShardInfo
from rhofast.data.format.index import VERSION, IndexRow, write_index
from rhofast.storage.files import publish


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSample:
    """A sample that is ready to be written. file: the encoded member, which is read at once and may be gone when the
    next sample is asked for; suffix: its suffix in the tar; note: what KEY.json says."""

    key: str
    label: int | None
    source_digest: bytes
    file: Path
    suffix: str
    member: Member
    note: dict[str, Any]


def write_shard(folder: Path, name: str, samples: Iterable[NewSample], *, scratch: Path) -> ShardInfo | None:
    """Write `name`.tar, .idx and .arrow from samples, one at a time; None (and no file) if there are none. scratch: a
    local folder for what is not finished; on the disk of `folder`, if that is local. Raises OSError."""
    tar_file, idx_file, index_file = (scratch / f"{name}.{suffix}" for suffix in ("tar", "idx", "arrow"))
    written: list[NewSample] = []
    with tarfile.open(tar_file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            note = json.dumps(sample.note, ensure_ascii=True, sort_keys=True).encode()
            _add(tar, f"{sample.key}.json", len(note), io.BytesIO(note))
            with sample.file.open("rb") as file:
                _add(tar, f"{sample.key}.{sample.suffix}", sample.file.stat().st_size, file)
            written.append(sample)
    if not written:
        return None
    places = tar_members(tar_file)
    rows = [index_row(sample, *places[f"{sample.key}.{sample.suffix}"]) for sample in written]
    index_digest = write_index(index_file, rows, {"rhofast": str(VERSION)})
    idx_file.write_text(wds2idx_text(places))
    info = ShardInfo(
        name=name,
        samples=len(rows),
        frames=sum(row.num_frames for row in rows),
        seconds=sum(row.num_frames / row.fps for row in rows),
        bytes=tar_file.stat().st_size,
        index_bytes=index_file.stat().st_size,
        tar_sha256=file_digest(tar_file),
        index_sha256=index_digest,
    )
    for aside in (tar_file, idx_file, index_file):
        publish(aside, folder / aside.name)
    return info


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


def _add(tar: tarfile.TarFile, name: str, size: int, content: BinaryIO) -> None:
    """Add a member whose header tells nothing of this machine or of now."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    entry.uname = entry.gname = "root"
    tar.addfile(entry, content)


def index_row(sample: NewSample, offset: int, size: int) -> IndexRow:
    """What the index says of a sample whose member lies at `offset` of the tar, `size` bytes long."""
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
