"""Write the features of all samples of a shard set to a file, with the keys of the samples.

    OUT.parquet, OUT.arrow    one row per sample: sample, key, label, class, feature (a list of D float32)
    OUT.npy                   f32[N, D], and in OUT-keys.csv one line per row: sample, key, label, class

A feature is the mean over the views of a sample and is not normalized. Each rank writes a part next to the file while
it computes, so that a set need not fit in memory; rank 0 joins the parts.
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
from rhofast.evaluation.feature_stream import FeatureBatch, FeatureStream
from rhofast.evaluation.features import Progress, check_finite, count_not_finite, mean_over_views
from rhofast.evaluation.model import EvalModel
from rhofast.evaluation.task import placed
from rhofast.storage.files import check_writable, replacing, writing_atomically

SUFFIXES = (".parquet", ".arrow", ".npy")
_GROUP = 1 << 22  # values per row group; the groups are the same for any number of processes
_COLUMNS = ("sample", "key", "label", "class")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedResult:
    """The file that was written.

    Attributes:
        target: Path of the file.
        samples: Number of samples.
        width: Number of values per sample.
        left_out: Samples that could not be read, one line each.
    """

    target: Path
    samples: int
    width: int
    left_out: list[str]


def check_target(path: Path) -> None:
    """Raise ConfigError unless the file has a known suffix and can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"OUT={path}: the suffix must be one of {', '.join(SUFFIXES)}")
    check_writable(path)


def embed(model: EvalModel, shards: ShardSet, target: Path, *, progress: Progress | None = None) -> EmbedResult:
    """Write the features of all samples to a file.

    Call it in every process, with a file system that all of them share.

    Args:
        model: The backbone and its configuration.
        shards: The shard set.
        target: File to write, with one of SUFFIXES.
        progress: Called with (samples done, total samples).

    Returns:
        What was written.

    Raises:
        ConfigError: If the file cannot be written.
        ShardFormatError: If no sample can be read.
        NotFiniteError: If a feature is not finite.
        OSError: If writing fails.
    """
    check_target(target)
    config = model.config
    network = placed(model.backbone, config)
    state = PartialState()
    stream = FeatureStream(
        network,
        shards,
        config,
        reduce=mean_over_views,
        progress=progress,
    )
    width = int(model.backbone.num_features)  # type: ignore[arg-type]
    schema = _schema(width)
    parts = [target.with_name(f".{target.name}.part-{rank}") for rank in range(state.num_processes)]
    try:
        count = wrong = 0
        with pa.ipc.new_stream(str(parts[state.process_index]), schema) as part:
            for batch in stream:
                part.write_batch(_rows(batch, shards, schema))
                count += len(batch.sample)
                wrong += count_not_finite(batch.values)
        gathered = gather_object([(count, wrong, [str(error) for error in stream.bad])])
        total = sum(samples for samples, _, _ in gathered)
        left_out = [line for _, _, lines in gathered for line in lines]
        if not total:
            raise ShardFormatError(f"{shards.root}: no sample could be read; the first error: {left_out[0]}")
        check_finite(sum(count for _, count, _ in gathered), total)
        if state.is_main_process:
            _join(parts, target, schema, total, width)
        state.wait_for_everyone()
    finally:
        parts[state.process_index].unlink(missing_ok=True)
    return EmbedResult(target=target, samples=total, width=width, left_out=left_out)


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
    """Join the parts of all ranks into one file, in sample order."""
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
                values.flush()  # before the keys are renamed into place, so that both files appear together
        elif target.suffix.lower() == ".parquet":
            with pq.ParquetWriter(aside, schema) as parquet:
                for rows in _read(parts, width):
                    parquet.write_batch(rows, row_group_size=len(rows))
        else:
            with pa.ipc.new_file(str(aside), schema) as arrow:
                for rows in _read(parts, width):
                    arrow.write_batch(rows)


def _read(parts: list[Path], width: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all parts in groups of equal size."""
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
