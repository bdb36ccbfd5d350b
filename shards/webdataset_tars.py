"""webdataset_tars: tars in WebDataset's form, on a disk, in an object store or on a web server, read where they are.

    rhofast shard 'videos-{000000..000127}.tar' OUT
    rhofast shard s3://bucket/tars OUT --recipe webdataset_tars --option label=json.action --option classes=names.txt

SOURCE is a tar, a folder of tars, a name with braces or with * and ?, or a text file with one of these per line. A
sample is, as in WebDataset, the successive members with one key: `000017.mp4`, `000017.cls`, `000017.json`. Only
headers and small fields are read to list the samples; later each video is read as one range of bytes. Nothing is
unpacked, and memory and scratch space do not grow with the tars. Of remote tars, 16 are listed side by side; web
servers must answer requests for ranges.

The video is the member with the suffix of a video; `video` chooses if there are several (`video=left.mp4`). A sample
without one is an error; with `missing=skip` it is passed over and counted.

`label` says which field is the label: `cls`, `txt`, or `json.NAME` (`json.a.b` inside objects); by default `cls` where
there is one; `none` for no labels. Labels are numbers; with `classes` (a file with one name per line from class 0 on,
or a JSON file) they may be names; `unlabeled` is the label that means none, such as -1. `fields` says which members are
stored as your own fields (`extra`): `json,txt` by default, `none` for none. An object in `json` becomes fields itself;
any other member is a field with its suffix as its name.

Keys are those of the tars if they consist of letters, digits, "_" and "-", and made of their digest otherwise. A key
that occurs in two tars is an error that names both; `prefix=true` puts the name of the tar before each key.

An error that names the tar, and the member where there is one: a tar that ends early (`cut=keep` takes the samples
before and counts the tar as cut short), a compressed tar, a damaged header, several tars in one file, links, sparse
members. Long names (GNU, PAX) are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from _ahead import read_ahead
from _files import find_files
from _labels import Classes
from _lists import problem
from _paths import key_of
from _tars import CutError, Member, TarSample, samples
from _walk import VIDEO_SUFFIXES

from rhofast.data.inside import ByteRange
from rhofast.data.types import PassedOver, VideoRecord
from rhofast.errors import IngestError
from rhofast.storage.address import redacted
from rhofast.storage.files import is_local
from rhofast.storage.strict_json import parse_record

_AT_ONCE, _HELD = 16, 2_048  # remote tars that are listed side by side, and samples of each that wait
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


def records(
    source: Path,
    *,
    video: str | None = None,
    label: str | None = None,
    classes: Path | None = None,
    unlabeled: str | None = None,
    fields: str = "json,txt",
    prefix: bool = False,
    missing: Literal["error", "skip"] = "error",
    cut: Literal["error", "keep"] = "error",
) -> Iterator[VideoRecord | PassedOver]:
    """Yield the videos of the tars, in their order.

    Args:
        source: The tars.
        video: Suffix of the video's member; None: the one that is a video's.
        label: The field that is the label, or `none`; None: `cls` where there is one.
        classes: File with the names of the classes; None: labels are numbers.
        unlabeled: The label that means none, such as -1; None: there is no such label.
        fields: Suffixes of the members that are stored as fields of the user's own, or `none`.
        prefix: Whether keys begin with the name of the tar.
        missing: What becomes of a sample without a video.
        cut: What becomes of a tar that ends early.

    Raises:
        ValueError: A tar or a sample cannot be understood.
        IngestError: A `json` member is none.
    """
    known, stored = Classes(classes, unlabeled=unlabeled), set[str]()
    if fields != "none":
        stored = {name.strip().removeprefix(".") for name in fields.lower().split(",")}
    unseen = stored - {"json", "txt"}  # which are taken where they are
    chosen = label or "cls"
    labeled = None if chosen == "none" else chosen.partition(".")[0].lower() if chosen.startswith("json") else chosen
    for tar, found in _readings(source, lambda suffix: suffix in stored or suffix == labeled):
        try:
            for sample in found:
                unseen -= sample.fields.keys()
                member = _video(sample, video)
                if member is None and missing == "skip":
                    yield PassedOver(path=tar / sample.key, reason="samples without a video")
                    continue
                if member is None:
                    raise problem(
                        f"{sample.where}: no video among its members: {', '.join(sample.members)}",
                        "choose it with --option video=SUFFIX, or skip such samples with --option missing=skip",
                    )
                number, name = (None, None) if labeled is None else _label(sample, label, chosen, known)
                yield VideoRecord(
                    key=_key(tar, sample.key, prefix=prefix),
                    path=tar,
                    inside=ByteRange(offset=member.offset, size=member.size, name=member.name),
                    label=number,
                    label_name=name,
                    extra=_extra(sample, stored),
                )
        except CutError:
            if cut == "error":
                raise
            yield PassedOver(path=tar, reason="tars cut short")
    if unseen:
        raise problem(
            f"{redacted(str(source))}: no sample has a member .{min(unseen)}", f"correct --option fields={fields}"
        )


def classes(source: Path, *, classes: Path | None = None, **_: object) -> list[str]:
    """Return the names of all classes, by number, if a file gives them."""
    return Classes(classes).names


def _readings(source: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[Path, Iterator[TarSample]]]:
    """Yield each tar with its samples; of remote tars, the next ones are read already."""
    tars, read = find_files(source, ".tar"), partial(samples, wanted=wanted)
    first = next(tars)
    if is_local(first):
        yield from ((tar, read(tar)) for tar in chain([first], tars))
    else:
        yield from read_ahead(chain([first], tars), read, at_once=_AT_ONCE, held=_HELD)


def _video(sample: TarSample, chosen: str | None) -> Member | None:
    """Return the member that is the video; None if there is none."""
    if chosen is not None:
        return sample.members.get(chosen.lower().removeprefix("."))
    found = [suffix for suffix in sample.members if f".{suffix.rpartition('.')[2]}" in VIDEO_SUFFIXES]
    if len(found) > 1:
        raise problem(f"{sample.where}: several videos: {', '.join(found)}", f"choose one: --option video={found[0]}")
    return sample.members[found[0]] if found else None


def _key(tar: Path, key: str, *, prefix: bool) -> str:
    full = f"{PurePosixPath(tar.name).stem}/{key}" if prefix else key
    plain = full.replace("/", "_", 1) if prefix else full
    return plain if _KEY.fullmatch(plain) else key_of(full, size=10)


def _label(sample: TarSample, asked: str | None, chosen: str, known: Classes) -> tuple[int | None, str | None]:
    """Return the number and the name of the sample's class."""
    suffix, _, names = chosen.partition(".") if chosen.startswith("json") else (chosen, "", "")
    if suffix not in sample.fields:
        if asked is None:
            return None, None
        raise problem(f"{sample.where}: no member .{suffix}, which has the label", "choose: --option label=NAME")
    value: Any = _value(sample, suffix)
    for name in filter(None, names.split(".")):
        if not isinstance(value, dict) or name not in value:
            raise problem(f"{sample.where}: {suffix} has no {names}", "choose the label: --option label=json.NAME")
        value = value[name]
    return known.label(f"{sample.where}.{chosen}", value)


def _extra(sample: TarSample, stored: set[str]) -> dict[str, Any] | None:
    """Return the members that are stored as fields."""
    extra: dict[str, Any] = {}
    for suffix in sorted(sample.fields.keys() & stored):
        value = _value(sample, suffix)
        new = value if suffix == "json" and isinstance(value, dict) else {suffix: value}
        if twice := extra.keys() & new.keys():
            raise problem(f"{sample.where}: two fields {min(twice)!r}", "choose: --option fields=json, or fields=txt")
        extra |= new
    return extra or None


def _value(sample: TarSample, suffix: str) -> Any:
    """Return what a field says: JSON, or text."""
    content, where = sample.fields[suffix], f"{sample.where}.{suffix}"
    if suffix.rpartition(".")[2] == "json":
        return parse_record(content, Any, where=where, raises=IngestError)  # type: ignore[arg-type]
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise problem(f"{where}: not text", "choose other fields: --option fields=json (or none)") from None
