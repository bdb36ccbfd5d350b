"""List the fields of the user's own in a shard set: their names, types and examples, from a part of the samples or all.

Memory does not grow with the set: names beyond a limit are counted together, and examples are few and short.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from rhofast.data.format.dataset import ShardSet
from rhofast.data.format.reader import Reader
from rhofast.errors import SampleError

SAMPLED = 1_000  # samples that are read, unless all are
_SHARDS = 32  # shards in which they lie
_NAMES = 1_000  # distinct names that are counted one by one
_EXAMPLES = 3
_EXAMPLE = 60  # characters of an example
_EVERY = 64  # samples that are read side by side, and between two reports of progress
_THREADS = 8

_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    list: "list",
    dict: "object",
}

OnRead = Callable[[int, int], None]


@dataclass(kw_only=True, slots=True)
class FieldUse:
    """One field of the user's own.

    Attributes:
        samples: Number of samples that have it.
        types: Number of them by the type of the value, most frequent first.
        examples: Its first distinct values, as JSON, at most 60 characters each.
    """

    samples: int = 0
    types: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, value: Any) -> None:
        """Count the value of a sample."""
        self.samples += 1
        self.types[_TYPES.get(type(value), "null")] += 1
        if len(self.examples) < _EXAMPLES:
            text = json.dumps(value, ensure_ascii=False)
            text = text if len(text) <= _EXAMPLE else f"{text[: _EXAMPLE - 3]}..."
            if text not in self.examples:
                self.examples.append(text)


@dataclass(kw_only=True, slots=True)
class FieldsFound:
    """What was found in the samples that were read.

    Attributes:
        total: Number of samples of the set.
        read: Number of samples that were read.
        without: Number of these without any field.
        fields: The fields by name, most frequent first.
        others: Number of samples with a name beyond the first 1,000 distinct ones.
        bad: Number of samples that could not be read.
        first_bad: The first error.
    """

    total: int
    read: int = 0
    without: int = 0
    fields: dict[str, FieldUse] = field(default_factory=dict)
    others: int = 0
    bad: int = 0
    first_bad: SampleError | None = None

    def add(self, extra: dict[str, Any] | SampleError) -> None:
        """Count the fields of a sample, or that it could not be read."""
        if isinstance(extra, SampleError):
            self.bad += 1
            self.first_bad = self.first_bad or extra
            return
        self.read += 1
        self.without += not extra
        is_other = False
        for name, value in extra.items():
            if name not in self.fields and len(self.fields) >= _NAMES:
                is_other = True
            else:
                self.fields.setdefault(name, FieldUse()).add(value)
        self.others += is_other


def find_fields(shards: ShardSet, *, every: bool = False, on_read: OnRead | None = None) -> FieldsFound:
    """Read the fields of the user's own.

    Args:
        shards: The set.
        every: Whether all samples are read; otherwise at most 1,000, evenly spread over at most 32 shards.
        on_read: Called after every 64 samples with (samples done, samples to read).

    Returns:
        What was found. Samples that cannot be read are counted.

    Raises:
        MachineError: The machine refuses to read, for a reason that is not in the data.
    """
    found, reader = FieldsFound(total=len(shards)), Reader(shards)
    count = len(shards) if every else sum(1 for _ in _some_samples(shards))
    samples = iter(range(count) if every else _some_samples(shards))

    def read(sample: int) -> dict[str, Any] | SampleError:
        try:
            return reader.read_json(sample).extra
        except SampleError as error:
            return error

    with closing(reader), ThreadPoolExecutor(_THREADS) as pool:
        done = 0
        while some := list(islice(samples, _EVERY)):
            for extra in pool.map(read, some):
                found.add(extra)
            done += len(some)
            if on_read is not None:
                on_read(done, count)
    found.fields = dict(sorted(found.fields.items(), key=lambda item: -item[1].samples))
    return found


def _some_samples(shards: ShardSet) -> Iterator[int]:
    """Yield numbers of samples, ascending: evenly spread over the shards, and over the samples of these."""
    used = shards.used_shards()
    chosen = used[np.unique(np.linspace(0, len(used) - 1, _SHARDS).astype(int))] if len(used) else used
    each = SAMPLED // max(1, len(chosen))
    for shard in chosen.tolist():
        first, last = int(shards.starts[shard]), int(shards.starts[shard + 1]) - 1
        yield from np.unique(np.linspace(first, last, each).astype(int)).tolist()
