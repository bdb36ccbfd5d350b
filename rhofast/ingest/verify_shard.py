"""Check one shard: its files against `dataset.json` and its samples against its index.

verify_member.py checks the stored members, with `deep` by decoding them. The check runs in a process of its own, which
a decoder may kill (verify.py).
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from rhofast.data.codecs.codec import Codec
from rhofast.data.format.dataset_json import ShardInfo
from rhofast.data.format.index import IndexRow, ShardIndex
from rhofast.data.format.index_file import open_index
from rhofast.data.format.index_rows import MAX_JSON_BYTES, IndexFacts
from rhofast.errors import MachineError, ShardError, ShardFormatError
from rhofast.ingest.executors import tick
from rhofast.ingest.verify_member import FormatProblem, decoding_problems, unit_problems
from rhofast.ingest.writer import TarMember, file_digest, idx_head, idx_line, tar_members
from rhofast.storage.fetch import FetchError, fetch
from rhofast.storage.files import open_regular
from rhofast.storage.network import RetryPolicy
from rhofast.storage.request_error import Kind
from rhofast.storage.strict_json import parse_record

if TYPE_CHECKING:
    from rhofast.data.decode.picture_decoder import PictureDecoder

_SHOWN = 80  # characters of a value in a message
_POLICY = RetryPolicy(outage_s=600.0)
_HEAD = 32  # bytes, more than the first line of a wds2idx index has

ByteSpan = tuple[int, int]  # offset of the first byte in the tar, size
_Group = tuple[str, list[TarMember]]  # a sample of a tar: its key, its members


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyJob:
    """One shard to check.

    Attributes:
        number: Number of the shard within the set, from 0.
        root: Folder of the set.
        shard: What dataset.json says of the shard.
        facts: What dataset.json says of the shard's index.
        classes: Class names by label.
        deep: Decode all samples too.
        address: Address of the set, if it is behind one; its files are copied for the time of the check then.
        copied: The copies of these files, if they are there already.
        marker: A file that exists while the shard is being checked. While a member is being decoded, it holds the
            member's key and offset.
    """

    number: int
    root: Path
    shard: ShardInfo
    facts: IndexFacts
    classes: tuple[str, ...]
    deep: bool
    address: str | None = None
    copied: CopiedShard | None = None
    marker: Path


@dataclass(frozen=True, slots=True)
class CopiedShard:
    """Copies of the files of a shard.

    Attributes:
        folder: Their folder.
        problems: Which files cannot be read, and why.
    """

    folder: Path
    problems: tuple[FormatProblem, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """The result of checking one shard.

    Attributes:
        number: Number of the shard within the set.
        problems: Everything that is wrong.
        keys: Digests of its keys, u64[N], in the order of its index; empty if the index cannot be read.
    """

    number: int
    problems: tuple[FormatProblem, ...]
    keys: npt.NDArray[np.uint64]


def check_shard(job: VerifyJob) -> ShardReport:
    """Check one shard and return everything that is wrong with it.

    Raises:
        DependencyError: DALI is needed and is not installed.
    """
    job.marker.write_text("")
    if job.address is None:
        return _check_files(job)
    if job.copied is None:
        with tempfile.TemporaryDirectory(prefix="rhofast-verify.") as folder:
            return check_shard(replace(job, copied=copy_shard(job, Path(folder))))
    report, problems = _check_files(replace(job, root=job.copied.folder)), job.copied.problems
    shutil.rmtree(job.copied.folder, ignore_errors=True)
    unread = {problem.file for problem in problems}
    return replace(report, problems=(*problems, *(one for one in report.problems if one.file not in unread)))


def copy_shard(job: VerifyJob, folder: Path) -> CopiedShard:
    """Copy the files of a shard of a remote set to a folder."""
    assert job.address is not None
    names = (job.shard.index, job.shard.tar, f"{job.shard.name}.idx")
    return CopiedShard(folder, tuple(copy_files(job.address, names, folder)))


def copy_files(address: str, names: Sequence[str], folder: Path) -> list[FormatProblem]:
    """Copy files of a remote set to a folder; a file that is not there is left out.

    Returns:
        Which files cannot be read, and why.

    Raises:
        MachineError: The store does not answer.
    """
    problems = []
    for name in names:
        try:
            fetch(f"{address}/{name}", folder / name, _POLICY)
        except FetchError as error:
            (folder / name).unlink(missing_ok=True)
            if error.kind in (Kind.AWAY, Kind.BUSY):  # which says nothing about the file
                raise MachineError(f"{address}/{name}: {error}", hint="verify the set again when it answers") from None
            if not error.missing:
                problems.append(FormatProblem(file=name, what=f"cannot be read: {error}"))
    return problems


def _check_files(job: VerifyJob) -> ShardReport:
    """Check the files of a shard."""
    shard, index, problems = job.shard, None, list[FormatProblem]()
    path = job.root / shard.index
    try:
        index = open_index(path, job.facts)
    except ShardError as error:
        problems.append(FormatProblem(file=shard.index, what=error.message.removeprefix(f"{path}: ")))
    try:
        for problem in _shard_problems(job, index):
            problems.append(problem)  # one by one, so that those before a read error are kept
    except (OSError, tarfile.TarError) as error:
        problems.append(
            FormatProblem(file=shard.tar, what=f"cannot be read: {getattr(error, 'strerror', '') or error}")
        )
    job.marker.unlink()
    return ShardReport(number=job.number, problems=tuple(problems), keys=_key_digests(index))


def _key_digests(index: ShardIndex | None) -> npt.NDArray[np.uint64]:
    keys = (index.key(row).encode() for row in range(len(index))) if index is not None else ()
    digests = (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) for key in keys)
    return np.fromiter(digests, dtype=np.uint64)


def _shard_problems(job: VerifyJob, index: ShardIndex | None) -> Iterator[FormatProblem]:
    shard, tar, idx = job.shard, job.root / job.shard.tar, f"{job.shard.name}.idx"
    if index is not None:
        frames, seconds = int(index.num_frames.sum(dtype=np.int64)), float((index.num_frames / index.fps).sum())
        if frames != shard.frames or not np.isclose(seconds, shard.seconds):
            facts = f"{len(index)} samples, {frames} frames, {seconds:.2f} s"
            yield FormatProblem(file=shard.index, what=f"{facts}; dataset.json disagrees")
    if not tar.is_file():
        what = "not a regular file" if tar.exists() else "no such file, but dataset.json lists it"
        yield FormatProblem(file=shard.tar, what=what)
        return
    if (size := tar.stat().st_size) != shard.bytes:
        yield FormatProblem(file=shard.tar, what=f"is {size} bytes long; dataset.json says {shard.bytes}")
    elif file_digest(tar) != shard.tar_sha256:
        yield FormatProblem(file=shard.tar, what="its SHA-256 digest differs from the one in dataset.json")
    comparison = _IdxComparison(job.root / idx)
    groups = comparison.passing(_groups(tar))
    try:
        if index is not None:
            yield from _sample_problems(job, index, groups)
        for _ in groups:  # none is left, but without an index
            pass
    except tarfile.TarError as error:
        yield FormatProblem(file=shard.tar, what=f"is not a complete tar file: {error}")
        return
    if not comparison.same:
        yield FormatProblem(file=idx, what="does not match the tar (wds2idx index)")


def _groups(tar: Path) -> Iterator[_Group]:
    """Yield the samples of a tar in order: the key and the members of each; errors are those of `tar_members`."""
    for key, members in groupby(tar_members(tar), key=lambda member: member.key):
        yield key, list(members)


class _IdxComparison:
    """Compares a wds2idx index with the samples of a tar as they pass, so that their headers are read once.

    Attributes:
        same: Whether the file is the index of the samples, when all have passed.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.same = path, False

    def passing(self, groups: Iterator[_Group]) -> Iterator[_Group]:
        """Yield the samples."""
        samples, same = 0, self._path.is_file()
        with open_regular(self._path) if same else io.BytesIO() as file:
            head = file.readline(_HEAD)
            for group in groups:
                line = idx_line(group[1])
                same = same and file.read(len(line)) == line
                samples += 1
                yield group
            self.same = same and head == idx_head(samples) and not file.read(1)


def _matched(index: ShardIndex, groups: Iterator[_Group]) -> Iterator[tuple[int | None, str, list[TarMember]]]:
    """Pair the rows of an index with the samples of its tar, both in the order of their positions.

    Yields:
        Number of the row, None for a sample without one; key and members of the sample, empty for a row without one.
    """
    none = ("", list[TarMember]())
    group = next(groups, none)
    for number in np.argsort(index.offset, kind="stable").tolist():
        key, offset = index.key(number), int(index.offset[number])
        while group[1] and group[0] != key and group[1][-1].offset <= offset:
            yield None, *group
            group = next(groups, none)
        if group[0] == key:
            yield number, *group
            group = next(groups, none)
        else:
            yield number, *none
    while group[1]:
        yield None, *group
        group = next(groups, none)


def _sample_problems(job: VerifyJob, index: ShardIndex, groups: Iterator[_Group]) -> Iterator[FormatProblem]:
    name, codecs = job.shard.tar, job.facts.codecs
    decoder = _picture_decoder() if job.deep and any(codec.pictures for codec in codecs) else None
    with (job.root / name).open("rb") as file:
        for number, key, members in _matched(index, groups):
            if number is None:
                what = "the sample is in the tar but not in the index"
                yield FormatProblem(file=name, key=ascii(key)[1:-1], what=what)
                continue
            row = index.row(number)
            codec = codecs[row.codec]
            found = {member.name.partition(".")[2]: (member.offset, member.size) for member in members}
            metadata = found.pop("json", None)
            has_suffix = codec.suffix is None or codec.suffix in found
            if metadata is None or not has_suffix or list(found.values()) != [(row.offset, row.size)]:
                yield FormatProblem(
                    file=name, key=row.key, what="the tar has no such member at the position in the index"
                )
            else:
                yield from _metadata_problems(name, row, file, metadata, codec, job.classes)
                problems = list(unit_problems(name, row, file))
                if job.deep and not problems:  # a decoder gets only bytes whose checksum is right
                    job.marker.write_text(f"{row.key} {row.offset}")
                    problems += decoding_problems(name, row, file, codec, decoder if codec.pictures else None)
                    job.marker.write_text("")
                yield from problems
            tick(row.size)


def _picture_decoder() -> PictureDecoder:
    """Load DALI's picture decoder; imported here because DALI and torch take seconds to load."""
    from rhofast.data.decode.picture_decoder import PictureDecoder

    return PictureDecoder()


def _metadata_problems(
    file: str, row: IndexRow, tar: io.BufferedReader, span: ByteSpan, codec: Codec, classes: Sequence[str]
) -> Iterator[FormatProblem]:
    """Check KEY.json against the index."""
    offset, size = span
    tar.seek(offset)
    content = tar.read(min(size, MAX_JSON_BYTES))
    faults = list(_metadata_faults(row, content, codec, classes))
    if not faults and (offset, size, crc32(content)) != (row.json_offset, row.json_size, row.json_crc):
        faults = ["KEY.json is not the one that the index describes (position, size, checksum)"]
    for what in faults:
        yield FormatProblem(file=file, key=row.key, offset=offset, what=what)


def _metadata_faults(row: IndexRow, content: bytes, codec: Codec, classes: Sequence[str]) -> Iterator[str]:
    """Compare the fields of KEY.json with the index."""
    try:
        metadata: dict[str, Any] = parse_record(content, dict[str, Any], where="KEY.json", raises=ShardFormatError)
    except ShardFormatError as error:
        yield error.message
        return
    expected = {
        "label": row.label,
        "labels": [list(label) for label in row.labels],
        "fps": row.fps,
        "frames": row.num_frames,
        "width": row.width,
        "height": row.height,
        "pixel_aspect": row.pixel_aspect,
        "source_digest": row.source_digest.hex(),
        "codec": codec.name,
    }
    if row.label is not None and metadata.get("label_name") is not None:
        expected["label_name"] = classes[row.label]
    for name, value in expected.items():
        if metadata.get(name) != value:
            yield f"KEY.json says {name}={ascii(metadata.get(name))[:_SHOWN]}, the index {value!r}"
