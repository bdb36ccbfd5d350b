"""Open the tars of a set on this machine, or copied to it, and read spans of them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from rhofast.data.format.dataset import ShardSet
from rhofast.errors import SampleError, ShardError
from rhofast.storage.machine_errors import with_patience

_OPEN_FILES = 256


class _OpenFile:
    """A descriptor that is closed with its last reference, so that no thread closes it while another one reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class TarFiles:
    """Reads spans of the tars of a set. Thread-safe; at most 256 tars are open at the same time.

    Args:
        shards: The shard set.
        patience_s: Seconds for which a read is tried again while the machine refuses it.
    """

    def __init__(self, shards: ShardSet, *, patience_s: float) -> None:
        self.shards, self._patience_s = shards, patience_s
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def close(self) -> None:
        """Close every open tar; a next read opens it again."""
        with self._lock:
            self._files.clear()

    def read(self, shard: int, spans: Sequence[tuple[int, int]], key: str) -> list[memoryview]:
        """Read spans of a tar.

        Args:
            shard: Number of the shard.
            spans: Position of the first byte and size in bytes of each span.
            key: Key of the sample, for errors.

        Raises:
            SampleError: The tar is missing or short, or a read failed.
            MachineError: The machine refused the read for too long, for a reason that is not in the data.
        """
        name = self.shards.info.shards[shard].tar
        contents: list[memoryview] = []

        def read() -> None:
            """Read the spans that are still missing."""
            file = self._file(shard)  # keeps the descriptor open until the reads are over
            try:
                for offset, size in spans[len(contents) :]:
                    contents.append(memoryview(_read_span(file.descriptor, offset, size)))
            except OSError:
                with self._lock:
                    self._files.pop(shard, None)  # a descriptor of a mount that was lost stays bad
                raise

        try:
            with_patience(read, f"{self.shards.where}/{name}", patience_s=self._patience_s)
        except OSError as error:
            offset, _ = spans[len(contents)]
            raise SampleError(f"{error.strerror or error}", shard=name, key=key, offset=offset) from None
        except ShardError as error:
            offset, _ = spans[len(contents)]
            raise SampleError(error.message, shard=name, key=key, offset=offset, hint=error.hint) from None
        for (offset, size), content in zip(spans, contents, strict=True):
            if len(content) < size:
                raise SampleError("the shard is cut short", shard=name, key=key, offset=offset + len(content))
        return contents

    def _file(self, shard: int) -> _OpenFile:
        name = self.shards.info.shards[shard].tar
        if not self.shards.keeps_files:  # an evicted file takes its space as long as it is open
            return _OpenFile(self.shards.open(name))
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        file = _OpenFile(self.shards.open(name))  # without the lock: on a dead mount this never returns
        with self._lock:
            file = self._files.setdefault(shard, file)
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return file


def _read_span(descriptor: int, offset: int, size: int) -> bytes:
    """Return the bytes of a span; fewer at the end of the file."""
    content = os.pread(descriptor, size, offset)
    while 0 < len(content) < size:  # a signal or a network file system may cut a read short
        rest = os.pread(descriptor, size - len(content), offset + len(content))
        if not rest:
            break
        content += rest
    return content
