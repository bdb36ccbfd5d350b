"""What a batch has of its samples beside pixels and class numbers: keys, labels by time, the user's own fields.

    fields=("key", "labels", "extra.caption") --checked against the sets--> BatchFields
    BatchFields --with the bytes of the frames--> Sample.extra --with the plan's frames--> Views.key, .labels, .extra

Nothing is read or computed for fields that are not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rhofast.data.decode.finish import copy_to_device
from rhofast.data.format.dataset import ShardSet, choose_samples
from rhofast.data.format.index import IndexRow
from rhofast.data.format.reader import Reader
from rhofast.data.loader.batch import Batch
from rhofast.data.sampling.labels import labels_in_clips
from rhofast.data.types import Views
from rhofast.errors import ConfigError, SampleError

NO_LABEL = -100  # torch's ignore index

_FIELDS = ("label", "labels", "key", "extra")
_EXTRA = "extra."  # before the name of one of the user's own fields
_LOOKED_AT = 16  # samples in which a named field must occur
_MAX_LABELS = 1 << 28  # values of `labels` in a batch


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFields:
    """The fields that a batch, or an item of a dataset, shall have.

    Attributes:
        label: Whether the class number was asked for; batches always have it.
        key: Whether it has the keys of its samples.
        classes: Number of classes of `labels`; None without `labels`.
        extra: Names of the user's own fields; empty for all of them, None for none.
    """

    label: bool = False
    key: bool = False
    classes: int | None = None
    extra: tuple[str, ...] | None = None

    def chosen(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that were asked for, as far as a sample has them."""
        return {name: value for name, value in extra.items() if not self.extra or name in self.extra}

    def item(self, reader: Reader, row: IndexRow, local: int, frames: npt.NDArray[np.int32]) -> dict[str, Any]:
        """Return the fields of one sample, as `views` does of a batch: {} if none were asked for.

        Args:
            reader: Reader of its set.
            row: Its row of the index.
            local: Its number in the set.
            frames: The frames that are shown, i32[T].

        Raises:
            SampleError: As `Reader.read_json`.
            MachineError: As `Reader.read_json`.
        """
        found: dict[str, Any] = {}
        if self.label:
            found["label"] = NO_LABEL if row.label is None else row.label
        if self.classes is not None:
            found["labels"] = torch.from_numpy(labels_in_clips([row], frames[None, None], self.classes)[0, 0])
        if self.key:
            found["key"] = row.key
        if self.extra is not None:
            found["extra"] = self.chosen(reader.read_json(local, row).extra)
        return found

    def views(self, pixels: torch.Tensor, batch: Batch, device: torch.device) -> Views:
        """Return what the consumer gets of a batch.

        Args:
            pixels: Its pixels [B, P, C, T, H, W], on the device.
            batch: The batch.
            device: The device.
        """
        label = [NO_LABEL if sample.label is None else sample.label for sample in batch.read]
        labels, share = None, batch.augment.share
        if self.classes is not None:
            held = labels_in_clips(batch.rows, batch.clips.frames, self.classes)
            labels = copy_to_device(torch.from_numpy(held), device)
        return Views(
            pixels=pixels,
            sample=copy_to_device(torch.from_numpy(batch.samples), device),
            label=copy_to_device(torch.tensor(label), device),
            share=None if share is None else copy_to_device(torch.from_numpy(share), device),
            labels=labels,
            key=[sample.key for sample in batch.read] if self.key else None,
            extra=None if self.extra is None else [self.chosen(sample.extra or {}) for sample in batch.read],
        )


def parse_fields(fields: object, sets: Sequence[ShardSet], *, clips: int = 1) -> BatchFields:
    """Check the names of fields, and that the sets have them.

    Args:
        fields: Names: "label", "labels", "key", "extra" (all fields of the user's own) and "extra.NAME" (one of them);
            or fields that were checked already.
        sets: The shard sets.
        clips: Clips of a batch, of all its videos together.

    Returns:
        The fields.

    Raises:
        ConfigError: A name is none of these, or a set lacks the field.
    """
    if isinstance(fields, BatchFields):
        return fields
    if isinstance(fields, str) or not isinstance(fields, Sequence):
        raise ConfigError(f"fields={fields!r} must be a list of names", hint='for example fields=["label"]')
    for name in fields:
        if name not in _FIELDS and not (isinstance(name, str) and name.startswith(_EXTRA) and name != _EXTRA):
            known = ", ".join(map(repr, _FIELDS))
            raise ConfigError(
                f"fields: unknown field {name!r}; it must be one of {known} or 'extra.NAME'",
                hint="`rhofast inspect SHARDS --fields` lists the fields of a set",
            )
    for name in ("label", "labels"):
        if name in fields:
            _check_classes(name, sets)
    classes = len(sets[0].info.classes) if "labels" in fields else None
    if classes is not None and clips * classes > _MAX_LABELS:
        raise ConfigError(
            f"fields: 'labels' of {clips:,} clips and {classes:,} classes are {clips * classes:,} values; the limit is "
            f"{_MAX_LABELS:,}",
            hint="decrease batch_size, or use 'label'",
        )
    named = tuple(name.removeprefix(_EXTRA) for name in fields if name.startswith(_EXTRA))
    extra = () if "extra" in fields else named or None
    for shards in sets if extra else ():
        _check_named(extra or (), shards)
    return BatchFields(label="label" in fields, key="key" in fields, classes=classes, extra=extra)


def _check_classes(name: str, sets: Sequence[ShardSet]) -> None:
    """Raise ConfigError if a set has no labels or, for `labels`, other classes than the first."""
    for shards in sets:
        if not shards.info.classes:
            raise ConfigError(
                f"fields: {name!r} is not in {shards.where}: its videos have no labels",
                hint="make the shards from a list with labels: rhofast recipes",
            )
        if name == "labels" and shards.info.classes != sets[0].info.classes:
            raise ConfigError(
                f"fields: 'labels' needs the same classes in all sets; {shards.where} has others than {sets[0].where}",
                hint="make the shards with the same classes",
            )


def _check_named(names: Sequence[str], shards: ShardSet) -> None:
    """Raise ConfigError if none of some samples of a local set has a field; a remote set is not downloaded for it."""
    if not shards.keeps_files or not len(shards):
        return
    reader, seen, readable = Reader(shards), dict[str, None](), 0
    for sample in choose_samples(shards, _LOOKED_AT):
        try:
            seen |= dict.fromkeys(reader.read_json(sample).extra)
            readable += 1
        except SampleError:
            continue  # a bad sample is met in its batch
    reader.close()
    missing = [name for name in names if name not in seen]
    if missing and readable:
        have = f"have {', '.join(seen)}" if seen else "have no fields of your own"
        raise ConfigError(
            f"fields: none of {readable} samples of {shards.where} has {_EXTRA + missing[0]!r}; they {have}",
            hint="fields that few samples have come with 'extra'; rhofast inspect SHARDS --fields lists them all",
        )
