"""Write one shard: a reproducible WebDataset tar, its Arrow index and its wds2idx index.

All files are written in a scratch folder, flushed to the disk and renamed (or uploaded). The Arrow index comes last, so
a shard with an index is complete. A video is copied from file to file and never held in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from zlib_ng.zlib_ng import crc32

from rhofast.data.codecs.codec import Member
from rhofast.data.format.dataset_json import ShardInfo
from rhofast.data.format.index import VERSION, IndexRow
from rhofast.data.format.index_writer import write_index
from rhofast.data.types import TimedLabel
from rhofast.storage.files import open_regular, publish


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSample:
    """A sample that is ready to be written.

    Attributes:
        key: Key of the sample, unique in the set.
        label: Number of the class; None without labels.
        labels: Further labels, in seconds of the sample.
        source_digest: BLAKE2b digest of the source, 16 bytes.
        file: The encoded member. It is read at once and may be deleted when the next sample is drawn.
        suffix: Suffix of the member in the tar, without the dot.
        member: Frames, size and units of the member.
        metadata: Content of KEY.json.
        codec: Place of the codec among those of the set.
    """

    key: str
    label: int | None
    labels: tuple[TimedLabel, ...] = ()
    source_digest: bytes
    file: Path
    suffix: str
    member: Member
    metadata: dict[str, Any]
    codec: int = 0

    def json_bytes(self) -> bytes:
        """Return the content of KEY.json."""
        return json.dumps(self.metadata, ensure_ascii=True, sort_keys=True).encode()


def write_shard(folder: Path, name: str, samples: Iterable[NewSample], *, scratch: Path) -> ShardInfo | None:
    """Write NAME.tar, NAME.idx and NAME.arrow, one sample at a time.

    Args:
        folder: Folder of the shard set.
        name: Name of the shard, without suffix.
        samples: The samples, in their order.
        scratch: A local folder for unfinished files; on the disk of `folder`, if that is local.

    Returns:
        What dataset.json says of the shard; None, and no file, if there are no samples.

    Raises:
        OSError: A file cannot be written.
        ShardError: The index becomes too large.
    """
    tar_file, idx_file, index_file = (scratch / f"{name}.{suffix}" for suffix in ("tar", "idx", "arrow"))
    count = frames = 0
    seconds = 0.0
    with tarfile.open(tar_file, "w", format=tarfile.USTAR_FORMAT) as tar, tempfile.TemporaryFile(dir=scratch) as lines:

        def rows() -> Iterator[IndexRow]:
            """Add the samples to the tar; nothing is kept of one, since a shard may have many."""
            nonlocal count, frames, seconds
            for sample in samples:
                metadata = sample.json_bytes()
                note = _add(tar, f"{sample.key}.json", len(metadata), io.BytesIO(metadata))
                with sample.file.open("rb") as file:
                    video = _add(tar, f"{sample.key}.{sample.suffix}", sample.file.stat().st_size, file)
                tar.getmembers().clear()
                lines.write(idx_line([note, video]))
                row = index_row(sample, video.offset, video.size)
                count, frames, seconds = count + 1, frames + row.num_frames, seconds + row.num_frames / row.fps
                yield row

        index_digest = write_index(index_file, rows(), {"rhofast": str(VERSION)})
        lines.seek(0)
        with idx_file.open("wb") as idx:
            idx.write(idx_head(count))
            shutil.copyfileobj(lines, idx)
    if not count:
        return None
    info = ShardInfo(
        name=name,
        samples=count,
        frames=frames,
        seconds=seconds,
        bytes=tar_file.stat().st_size,
        index_bytes=index_file.stat().st_size,
        tar_sha256=file_digest(tar_file),
        index_sha256=index_digest,
    )
    for finished in (tar_file, idx_file, index_file):
        publish(finished, folder / finished.name)
    return info


class TarMember(NamedTuple):
    """A file in a tar.

    Attributes:
        name: Its name.
        offset: Position of its first byte.
        size: Its size in bytes.
    """

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """Key of the sample that it belongs to: what stands before the first dot of its name."""
        return self.name.partition(".")[0]


def tar_members(path: Path) -> Iterator[TarMember]:
    """Yield all members of a tar, in order.

    The tar must be plain: long names and other extensions, for which a reader allocates what they ask for, are refused.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
        tarfile.TarError: It is cut short, or not a plain tar of files.
    """
    offset = 0
    with open_regular(path) as file:
        end = file.seek(0, io.SEEK_END)
        while True:
            file.seek(offset)
            header = file.read(tarfile.BLOCKSIZE)
            if header == bytes(tarfile.BLOCKSIZE):
                return
            entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            offset += tarfile.BLOCKSIZE
            if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise tarfile.ReadError(f"member {ascii(entry.name)[:80]} is not a plain file")
            if entry.size < 0 or offset + entry.size > end:
                raise tarfile.ReadError("unexpected end of data")
            yield TarMember(entry.name, offset, entry.size)
            offset += -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def idx_head(samples: int) -> bytes:
    """Return the first line of the index that DALI's wds2idx makes of a tar (format version 1.2)."""
    return f"v1.2 {samples}\n".encode()


def idx_line(members: Sequence[TarMember]) -> bytes:
    """Return the line of that index for a sample with these members, which follow one another in the tar."""
    parts = (f"{name.partition('.')[2]} {offset} {size} {name}" for name, offset, size in members)
    return f"{' '.join(parts)}\n".encode("utf-8", "surrogateescape")


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(tar: tarfile.TarFile, name: str, size: int, content: BinaryIO) -> TarMember:
    """Add a member whose header is independent of the machine and the time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    entry.uname = entry.gname = "root"
    tar.addfile(entry, content)
    return TarMember(name, tar.offset - -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, size)


def index_row(sample: NewSample, offset: int, size: int) -> IndexRow:
    """Return a sample's row of the index.

    Args:
        sample: The sample.
        offset: Position of the member in the tar, in bytes.
        size: Length of the member in bytes.
    """
    member, metadata = sample.member, sample.json_bytes()
    return IndexRow(
        key=sample.key,
        label=sample.label,
        labels=sample.labels,
        source_digest=sample.source_digest,
        offset=offset,
        size=size,
        json_size=len(metadata),
        json_crc=crc32(metadata),
        num_frames=member.num_frames,
        fps=float(member.fps),
        width=member.width,
        height=member.height,
        units=member.units,
        codec=sample.codec,
        pixel_aspect=member.pixel_aspect,
    )
