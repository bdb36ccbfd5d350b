"""curator: the output folder of NeMo Curator's video pipeline: clips, with the metadata of each in a JSON file.

    rhofast shard OUTPUT OUT --recipe curator
    rhofast shard OUTPUT OUT --recipe curator --option where="motion_score > 0.3 and aesthetic_score >= 4"

SOURCE is the folder that the pipeline's clip writer was given, on a disk or in an object store:

    clips/UUID.mp4           the clips that passed the pipeline's own filters
    filtered_clips/UUID.mp4  those that did not
    metas/v0/UUID.json       the metadata of each: where it is from, scores, captions

Where there is no folder metas/v0, the metadata of a clip is the JSON file beside it, in clips/ or in SOURCE itself.

`clips` chooses which clips are listed: `kept` (default), `filtered`, or `all`. Keys are the UUIDs. The metadata becomes
your own fields (`extra`): all of it, the fields that `fields` names (separated by commas), or `none`.

`where` is a condition on the metadata; clips for which it does not hold are passed over and counted. It compares fields
(`aesthetic_score`, `windows.0.qwen_caption`) with numbers, texts in quotes, true, false and null by < <= > >= == != or
`in (1280, 1920)`, joined by and, or, not and parentheses. `motion_score` alone is its `global_mean`. A field that a
clip lacks is an error, so that a misspelled name does not empty the set. Where only some clips have it:
where="aesthetic_score != null and aesthetic_score > 4". Nothing in it is run as code.

`label` names the field that is the label (`a.b` inside objects), a number, or a name with `classes` (a file with one
name per line from class 0 on, or a JSON file); `unlabeled` is the label that means none, such as -1. A clip without
metadata is passed over and counted. Other files of the folder (previews, embeddings, summaries of videos) are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from _labels import Classes
from _lists import problem
from _paths import key_of
from _walk import Entry, Kind, entries
from _where import Where

from rhofast.data.types import PassedOver, VideoRecord
from rhofast.errors import IngestError
from rhofast.storage.address import redacted
from rhofast.storage.files import is_local
from rhofast.storage.strict_json import read_record

_FOLDERS = {"kept": ("clips",), "filtered": ("filtered_clips",), "all": ("clips", "filtered_clips")}
_METAS = "metas/v0"
_ALIASES = {"motion_score": "motion_score.global_mean"}
_MAX_BYTES = 4 << 20  # of the metadata of a clip
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


def records(
    source: Path,
    *,
    clips: Literal["kept", "filtered", "all"] = "kept",
    where: str | None = None,
    fields: str = "all",
    label: str | None = None,
    classes: Path | None = None,
    unlabeled: str | None = None,
) -> Iterator[VideoRecord | PassedOver]:
    """Yield the clips, sorted by name.

    Args:
        source: The output folder.
        clips: Which clips are listed.
        where: Condition on the metadata; None: all clips.
        fields: Names of the metadata that is stored, `all` or `none`.
        label: Field that is the label; None: no labels.
        classes: File with the names of the classes; None: labels are numbers.
        unlabeled: The label that means none, such as -1; None: there is no such label.

    Raises:
        ValueError: The folder is no such output, or the condition or the label cannot be understood.
        IngestError: The metadata of a clip cannot be read.
    """
    holds, known = None if where is None else Where(where, _ALIASES), Classes(classes, unlabeled=unlabeled)
    unseen = set() if fields in ("all", "none") else set(_names(fields))
    for found, metas, with_metadata in _folders(source, clips):
        for entry in found:
            name = f"{entry.path.stem}.json"
            if entry.kind not in (Kind.VIDEO, Kind.MISSING):
                yield PassedOver(path=entry.path, reason="other files")
                continue
            if name not in with_metadata:
                yield PassedOver(path=entry.path, reason="clips without metadata")
                continue
            meta = metas / name
            shown = redacted(str(meta))
            metadata = read_record(meta, dict[str, Any], raises=IngestError, max_bytes=_MAX_BYTES)
            if holds is not None and not holds(metadata, shown):
                yield PassedOver(path=entry.path, reason="clips that `where` leaves out")
                continue
            unseen -= metadata.keys()
            number, class_name = known.label(shown, None if label is None else _label(shown, metadata, label))
            stem = entry.path.stem
            yield VideoRecord(
                key=stem if _KEY.fullmatch(stem) else key_of(stem, size=10),
                path=entry.path,
                label=number,
                label_name=class_name,
                extra=_extra(shown, metadata, fields),
                where=shown,
            )
    if unseen:
        raise problem(
            f"{redacted(str(source))}: no clip has a field {min(unseen)!r}", f"correct --option fields={fields}"
        )


def classes(source: Path, *, classes: Path | None = None, **_: object) -> list[str]:
    """Return the names of all classes, by number, if a file gives them."""
    return Classes(classes).names


def _folders(source: Path, clips: str) -> Iterator[tuple[list[Entry], Path, set[str]]]:
    """Yield what is in each folder of clips, the folder of their metadata, and the names of its files.

    Raises:
        ValueError: There is no metadata.
    """
    if is_local(source) and not source.is_dir():
        raise problem(f"{redacted(str(source))}: not a folder", "name the clip writer's output folder")
    folders = [source / name for name in _FOLDERS[clips] if (source / name).is_dir()]
    metas = source / _METAS
    if metas.is_dir():
        names = {entry.path.name for entry in entries(metas)}
        yield from ((entries(folder), metas, names) for folder in folders)
        return
    beside = []
    for folder in folders or [source]:
        found = entries(folder)
        names = {entry.path.name for entry in found if entry.path.suffix == ".json"}
        beside.append(([entry for entry in found if entry.path.name not in names], folder, names))
    if not any(names for _, _, names in beside):
        raise problem(
            f"{redacted(str(source))}: there is no folder {_METAS}, and no .json beside a clip",
            "name the clip writer's output folder",
        )
    yield from beside


def _names(fields: str) -> list[str]:
    return [name.strip() for name in fields.split(",")]


def _label(shown: str, metadata: dict[str, Any], label: str) -> Any:
    value: Any = metadata
    for part in label.split("."):
        if not isinstance(value, dict) or part not in value:
            raise problem(f"{shown}: there is no field {label!r}", "choose another one: --option label=NAME")
        value = value[part]
    return value


def _extra(shown: str, metadata: dict[str, Any], fields: str) -> dict[str, Any] | None:
    if fields in ("all", "none"):
        return metadata if fields == "all" else None
    return {name: metadata[name] for name in _names(fields) if name in metadata} or None
