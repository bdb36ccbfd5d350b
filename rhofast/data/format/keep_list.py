"""Read the file that lists a part of a shard set: keys of samples, with or without weights.

    keys.parquet   columns `key` (text) and, if there are weights, `weight` (numbers); other columns are not read
    keys.csv       the same columns, with a header
    keys.txt       one key per line

subset.py finds the samples. The file is read batch by batch, so that what is kept in memory grows with the listed keys.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from rhofast.errors import ConfigError
from rhofast.storage.files import open_regular

KEY, WEIGHT = "key", "weight"
SUFFIXES = (".parquet", ".csv", ".txt")

_ROWS = 1 << 16  # per batch
_SHOWN = 3  # keys, or columns, that a message names
_HEADER_BYTES = 1 << 16
_Batch = tuple[pa.Array, pa.Array | None]  # keys as text, weights as numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepList:
    """The keys of a part of a shard set.

    Attributes:
        path: The file.
        keys: Distinct keys, K of them, at least one.
        weights: A positive, finite weight per key, f64[K]; None if the file has no weights.
    """

    path: Path
    keys: pa.ChunkedArray
    weights: npt.NDArray[np.float64] | None


def read_keep_list(path: Path) -> KeepList:
    """Read a list of keys.

    Args:
        path: The file; its suffix, one of SUFFIXES, says what it is.

    Returns:
        The list.

    Raises:
        ConfigError: The file cannot be read or is of another kind, lists no key or a key twice, or has a weight that
            is not a positive number.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"keep={path}: the suffix must be one of {', '.join(SUFFIXES)}")
    read = {".parquet": _read_parquet, ".csv": _read_csv, ".txt": _read_text}[suffix]
    keys: list[pa.Array] = []
    weights: list[npt.NDArray[np.float64]] = []
    try:
        with open_regular(path) as file:
            for batch, numbers in read(file, path):
                keys.append(batch)
                if numbers is not None:
                    weights.append(numbers.to_numpy(zero_copy_only=False))
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError(f"keep={path}: not a {suffix} file of UTF-8 text") from None
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or f"not a readable {suffix} file: {str(error).partition(chr(10))[0]}"
        raise ConfigError(f"keep={path}: {reason}") from None
    listed = pa.chunked_array(keys, pa.large_string())
    if not len(listed):
        raise ConfigError(f"keep={path}: lists no keys", hint="list at least one sample, or leave keep out")
    _check_keys(listed, path)
    return KeepList(
        path=path, keys=listed, weights=_checked(np.concatenate(weights), listed, path) if weights else None
    )


def shown_keys(keys: pa.Array | pa.ChunkedArray) -> str:
    """Return the first keys of several, for a message."""
    first = ", ".join(map(repr, keys.slice(0, _SHOWN).to_pylist()))
    return f"{first}, ..." if len(keys) > _SHOWN else first


def _read_parquet(file: BinaryIO, path: Path) -> Iterator[_Batch]:
    table = pq.ParquetFile(file)
    columns = _columns(table.schema_arrow.names, path)
    kinds = {name: table.schema_arrow.field(name).type for name in columns}
    plain = kinds[KEY].value_type if pa.types.is_dictionary(kinds[KEY]) else kinds[KEY]
    if not (pa.types.is_string(plain) or pa.types.is_large_string(plain)):
        raise ConfigError(f"keep={path}: column 'key' holds {plain}, not text", hint="write the keys as text")
    number = kinds.get(WEIGHT, pa.float64())
    if not (pa.types.is_integer(number) or pa.types.is_floating(number)):
        raise ConfigError(f"keep={path}: column 'weight' holds {number}, not numbers")
    for batch in table.iter_batches(batch_size=_ROWS, columns=columns):
        yield _typed(batch.column(KEY), batch.column(WEIGHT) if WEIGHT in columns else None)


def _read_csv(file: BinaryIO, path: Path) -> Iterator[_Batch]:
    header = file.readline(_HEADER_BYTES).decode("utf-8-sig")
    columns = _columns(next(csv.reader([header]), []), path)
    file.seek(0)
    # Only an empty field is no value; the texts NA and nan are keys, or weights that are refused.
    options = pa_csv.ConvertOptions(
        column_types={KEY: pa.large_string(), WEIGHT: pa.float64()}, include_columns=columns, null_values=[""]
    )
    with pa_csv.open_csv(file, convert_options=options) as table:
        for batch in table:
            yield batch.column(KEY), batch.column(WEIGHT) if WEIGHT in columns else None


def _read_text(file: BinaryIO, path: Path) -> Iterator[_Batch]:
    lines = (line.decode("utf-8").strip() for line in file)
    keys = (line for line in lines if line)
    while batch := list(islice(keys, _ROWS)):
        yield pa.array(batch, pa.large_string()), None


def _columns(names: list[str], path: Path) -> list[str]:
    """Return which of the two columns there are; raise ConfigError without keys."""
    if KEY not in names:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise ConfigError(
            f"keep={path}: there is no column 'key'; the columns are {shown or 'none'}",
            hint="name the column that holds the keys of the samples 'key'",
        )
    return [name for name in (KEY, WEIGHT) if name in names]


def _typed(keys: pa.Array, weights: pa.Array | None) -> _Batch:
    return keys.cast(pa.large_string()), None if weights is None else weights.cast(pa.float64(), safe=False)


def _check_keys(keys: pa.ChunkedArray, path: Path) -> None:
    """Raise ConfigError if a key is missing or listed twice."""
    missing = pc.fill_null(pc.equal(keys, ""), True).to_numpy()
    if missing.any():
        raise ConfigError(f"keep={path}: row {int(missing.argmax()) + 1} has no key")
    counts = pc.value_counts(keys)
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        what = "1 key is" if len(twice) == 1 else f"{len(twice):,} keys are"
        raise ConfigError(
            f"keep={path}: {what} listed more than once: {shown_keys(twice)}",
            hint="list each key once; to visit a sample more often, give it a larger weight",
        )


def _checked(weights: npt.NDArray[np.float64], keys: pa.ChunkedArray, path: Path) -> npt.NDArray[np.float64]:
    """Return weights; raise ConfigError unless each is positive and finite."""
    right = (weights > 0) & np.isfinite(weights)  # a null is NaN here
    if not right.all():
        row = int(right.argmin())
        raise ConfigError(
            f"keep={path}: the weight of {keys[row].as_py()!r} is {weights[row]:g}; it must be positive and finite",
            hint="leave out the rows of samples that are not wanted",
        )
    return weights
