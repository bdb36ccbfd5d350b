"""Features on disk, batch by batch: what was computed is there when a killed evaluation is started again.

    FOLDER/IDENTITY/part-NNNN-RANK.arrow      Arrow IPC streams: sample, label, values (V x D float32)

IDENTITY names the weights, the shards, the clips and the views, so that features of something else are never taken for
these. A part that was cut short is good up to there. What it is not: a file for others (embed.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, with their names."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class FeatureCache:
    """The features of one network on one shard set, in one way. All ranks see the same folder."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Raises OSError where the folder cannot be made."""
        text = json.dumps(identity, sort_keys=True)
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:20]
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "identity.json").write_text(text, encoding="utf-8")
        self._next = len(list(self._folder.glob("part-*")))

    def read(
        self, asked: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(values f32[N, V, D], sample i64[N] ascending, label i64[N]) of those samples that are there; N may be 0."""
        rows = [row for part in sorted(self._folder.glob("part-*")) for row in _whole_batches(part)]
        if not rows:
            return np.empty((0, 0, 0), np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
        views = int(rows[0].schema.metadata[b"views"])
        values = np.concatenate([row.column("values").flatten().to_numpy(zero_copy_only=False) for row in rows])
        sample, label = (np.concatenate([row.column(name).to_numpy() for row in rows]) for name in ("sample", "label"))
        values = values.reshape(len(sample), views, -1)
        sample, first = np.unique(sample, return_index=True)
        wanted = np.isin(sample, asked)
        first = first[wanted]
        return values[first], sample[wanted], label[first]

    @contextmanager
    def writing(self, rank: int) -> Iterator[_Part]:
        """A new part of this rank. Made at the first batch; flushed after each."""
        part = _Part(self._folder / f"part-{self._next:04d}-{rank}")
        try:
            yield part
        finally:
            part.close()


class _Part:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def write(
        self, values: npt.NDArray[np.float32], sample: npt.NDArray[np.int64], label: npt.NDArray[np.int64]
    ) -> None:
        """A batch: f32[B, V, D], i64[B], i64[B]."""
        views, width = values.shape[1:]
        schema = pa.schema(
            [("sample", pa.int64()), ("label", pa.int64()), ("values", pa.list_(pa.float32(), views * width))],
            metadata={"views": str(views)},
        )
        if self._file is None:
            self._file = self._path.open("wb")
            self._writer = pa.ipc.new_stream(self._file, schema)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), views * width)
        self._writer.write_batch(pa.record_batch([pa.array(sample), pa.array(label), flat], schema=schema))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._writer.close()
            self._file.close()


def _whole_batches(path: Path) -> list[pa.RecordBatch]:
    rows: list[pa.RecordBatch] = []
    with suppress(pa.ArrowInvalid, OSError):  # it ends where the process did
        stream = pa.ipc.open_stream(pa.py_buffer(path.read_bytes()))
        rows.extend(stream)
    return rows
