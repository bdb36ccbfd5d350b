"""Cache of computed features on disk, from which an interrupted evaluation continues.

    FOLDER/IDENTITY/part-NNNN-RANK            one frame per batch: length, SHA-256, and an Arrow IPC stream with the
                                              columns sample, label, values (V x D float32)

IDENTITY is a digest of the weights, the shards, the clips and the views, so that features of something else are never
used. A batch whose digest is wrong is not used, and is computed again; so is what follows a part's last whole batch.
The digests detect damage; they do not authenticate. `rhofast embed` writes features for other programs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from rhofast.storage.files import open_regular, write_atomically

_HEAD = struct.Struct("<Q32s")  # length in bytes, SHA-256 of identity and content


def weights_digest(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """The features of one network on one shard set with one set of settings. All ranks use the same folder."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Create the folder of the cache.

        Args:
            folder: Folder of all caches.
            identity: JSON values that determine the features.

        Raises:
            OSError: If the folder cannot be created.
        """
        text = json.dumps(identity, sort_keys=True)
        self._identity = hashlib.sha256(text.encode()).digest()
        self._folder = folder / self._identity.hex()[:20]
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / "identity.json", text)
        self._next = len(list(self._folder.glob("part-*")))

    def read(
        self, requested: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Read the requested samples that are in the cache, batch by batch.

        Args:
            requested: i64[M], sample numbers.

        Yields:
            (values f32[B, V, D], sample i64[B], label i64[B]), each sample once.
        """
        missing = np.sort(requested)
        for path in sorted(self._folder.glob("part-*")):
            for rows in self._sound_batches(path):
                sample, label = (rows.column(name).to_numpy() for name in ("sample", "label"))
                wanted = np.isin(sample, missing)
                if wanted.any():
                    missing = np.setdiff1d(missing, sample[wanted], assume_unique=True)
                    views = int(rows.schema.metadata[b"views"])
                    values = rows.column("values").flatten().to_numpy(zero_copy_only=False)
                    yield values.reshape(len(sample), views, -1)[wanted], sample[wanted], label[wanted]

    @contextmanager
    def writing(self, rank: int) -> Iterator[_Part]:
        """Open a new part for a rank. The file is created with the first batch and flushed after each batch."""
        part = _Part(self._folder, self._next, rank, self._identity)
        try:
            yield part
        finally:
            part.close()

    def _sound_batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a part whose digests are right; it ends where a process was killed."""
        with suppress(OSError), open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                length, digest = _HEAD.unpack(head)
                if length > size - file.tell():  # cut short, or a damaged length
                    break
                content = file.read(length)
                if hashlib.sha256(self._identity + content).digest() == digest:
                    yield from pa.ipc.open_stream(pa.py_buffer(content))


class _Part:
    def __init__(self, folder: Path, number: int, rank: int, identity: bytes) -> None:
        self._folder, self._number, self._rank, self._identity = folder, number, rank, identity
        self._file: BinaryIO | None = None

    def write(
        self, values: npt.NDArray[np.float32], sample: npt.NDArray[np.int64], label: npt.NDArray[np.int64]
    ) -> None:
        """Append a batch.

        Args:
            values: f32[B, V, D].
            sample: i64[B], sample numbers.
            label: i64[B], labels.
        """
        views, width = values.shape[1:]
        schema = pa.schema(
            [("sample", pa.int64()), ("label", pa.int64()), ("values", pa.list_(pa.float32(), views * width))],
            metadata={"views": str(views)},
        )
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), views * width)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(pa.record_batch([pa.array(sample), pa.array(label), flat], schema=schema))
        content = sink.getvalue().to_pybytes()
        if self._file is None:
            self._file = self._create()
        digest = hashlib.sha256(self._identity + content).digest()
        self._file.write(_HEAD.pack(len(content), digest) + content)
        self._file.flush()

    def _create(self) -> BinaryIO:
        """Create the file; another evaluation may keep the same features at the same time."""
        while True:
            with suppress(FileExistsError):
                return (self._folder / f"part-{self._number:04d}-{self._rank}").open("xb")
            self._number += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
