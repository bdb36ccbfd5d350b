"""Features of all samples of a shard set as a file with keys, for whatever comes after.

    OUT.parquet, OUT.arrow    a row a sample: sample, key, label, class, feature (a list of D float32)
    OUT.npy                   f32[N, D], and OUT-keys.csv beside it, row by row: sample, key, label, class

A feature is the mean over a sample's views. Ranks write parts beside the file as they go, so a set need not fit in
memory; rank 0 joins them. What it is not: it normalizes nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from accelerate.utils import gather_object

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import ConfigError, ShardFormatError
from rhofast.evaluation.features import (
    FeatureBatch,
    FeatureStream,
    Progress,
    check_finite,
    count_spoiled,
    mean_over_views,
)
from rhofast.evaluation.model import EvalModel
from rhofast.evaluation.task import placed
from rhofast.storage.files import check_writable, replacing, writing_atomically

SUFFIXES = (".parquet", ".arrow", ".npy")
_GROUP = 1 << 22  # numbers in a group of rows: the same groups, whatever the number of processes
_COLUMNS = ("sample", "key", "label", "class")


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """What was written: how many samples, and numbers a sample; left_out: what could not be read, a line each."""

    target: Path
    samples: int
    width: int
    left_out: list[str]


def check_target(path: Path) -> None:
    """Raises ConfigError unless a file of that name can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: not one of {', '.join(SUFFIXES)}")
    check_writable(path)


def embed(subject: EvalModel, shards: ShardSet, target: Path, *, progress: Progress | None = None) -> Embedded:
    """Write the features of all samples to `target`; in every process, on a file system that all of them see. progress:
    called with (samples done, in all). Raises ConfigError, ShardFormatError if not one sample can be read,
    NotFiniteError, OSError."""
    check_target(target)
    config = subject.config
    network = placed(subject.backbone, config)
    state = PartialState()
    stream = FeatureStream(
        network,
        shards,
        config,
        reduce=mean_over_views,
        progress=progress,
    )
    width = int(subject.backbone.num_features)  # type: ignore[arg-type]
    schema = _schema(width)
    parts = [target.with_name(f".{target.name}.part-{rank}") for rank in range(state.num_processes)]
    try:
        count = wrong = 0
        with pa.ipc.new_stream(str(parts[state.process_index]), schema) as part:
            for batch in stream:
                part.write_batch(_rows(batch, shards, schema))
                count += len(batch.sample)
                wrong += count_spoiled(batch.values)
        told = gather_object([(count, wrong, [str(error) for error in stream.bad])])
        total, left_out = sum(one[0] for one in told), [line for one in told for line in one[2]]
        if not total:
            raise ShardFormatError(f"{shards.root}: not one sample could be read; the first: {left_out[0]}")
        check_finite(sum(one[1] for one in told), total)
        if state.is_main_process:
            _join(parts, target, schema, total, width)
        state.wait_for_everyone()
    finally:
        parts[state.process_index].unlink(missing_ok=True)
    return Embedded(target=target, samples=total, width=width, left_out=left_out)


def _schema(width: int) -> pa.Schema:
    names = [("sample", pa.int64()), ("key", pa.string()), ("label", pa.int32()), ("class", pa.string())]
    return pa.schema([*names, ("feature", pa.list_(pa.float32(), width))])


def _rows(batch: FeatureBatch, shards: ShardSet, schema: pa.Schema) -> pa.RecordBatch:
    classes = shards.info.classes
    labels = [None if label < 0 else label for label in batch.label.tolist()]
    keys = []
    for sample in batch.sample.tolist():
        shard, row = shards.locate(sample)
        keys.append(shards.index(shard).key(row))
    means = batch.values[:, 0]
    columns = [
        pa.array(batch.sample),
        pa.array(keys, pa.string()),
        pa.array(labels, pa.int32()),
        pa.array([None if label is None or not classes else classes[label] for label in labels], pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(means.reshape(-1)), means.shape[1]),
    ]
    return pa.record_batch(columns, schema=schema)


def _join(parts: list[Path], target: Path, schema: pa.Schema, total: int, width: int) -> None:
    """One file of the ranks' parts, in the order of samples."""
    with replacing(target) as aside:
        if target.suffix.lower() == ".npy":
            values = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=(total, width))
            done = 0
            with writing_atomically(target.with_name(f"{target.stem}-keys.csv")) as file:
                table = csv.writer(file)
                table.writerow(_COLUMNS)
                for rows in _read(parts, width):
                    values[done : done + len(rows)] = rows.column("feature").flatten().to_numpy().reshape(-1, width)
                    table.writerows(zip(*(rows.column(name).to_pylist() for name in _COLUMNS), strict=True))
                    done += len(rows)
                values.flush()  # before the keys are there, so that both appear within a moment
        elif target.suffix.lower() == ".parquet":
            with pq.ParquetWriter(aside, schema) as parquet:
                for rows in _read(parts, width):
                    parquet.write_batch(rows, row_group_size=len(rows))
        else:
            with pa.ipc.new_file(str(aside), schema) as arrow:
                for rows in _read(parts, width):
                    arrow.write_batch(rows)


def _read(parts: list[Path], width: int) -> Iterator[pa.RecordBatch]:
    """The rows of all parts, in groups of one size."""
    size, waiting, count = max(1, _GROUP // width), list[pa.RecordBatch](), 0
    for part in parts:
        with pa.ipc.open_stream(str(part)) as stream:
            for rows in stream:
                waiting.append(rows)
                count += len(rows)
                while count >= size:
                    whole = pa.concat_batches(waiting)
                    yield whole.slice(0, size)
                    waiting, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_batches(waiting)
