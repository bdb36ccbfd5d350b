"""Read one column of the indices of a remote set: keys, or digests of sources, without all the units behind them.

A set of 65 million videos has indices of more than 100 GB, of which these columns are a few percent. They stand at the
beginning of an index, so nearly always one range request has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa

from rhofast.data.format.dataset_json import ShardInfo
from rhofast.data.format.index_file import parse_column
from rhofast.errors import ShardMissingError
from rhofast.storage.range_client import RangeClient
from rhofast.storage.request_error import RequestError

_AT_ONCE = 32
_HEAD, _ROW = 16_384, 96  # bytes of a file's description of itself, and of a row up to its digest, that suffice usually
_WORTH = 4  # times as many bytes as are needed, from which an index is not fetched as a whole


def is_worth_it(shard: ShardInfo) -> bool:
    """Return whether a column of a shard's index is fetched without the rest of it."""
    return shard.index_bytes >= _WORTH * _head_bytes(shard)


def fetch_column(client: RangeClient, shard: ShardInfo, name: str, where: str) -> pa.Array:
    """Fetch a column of an index, and nothing else of it but what stands before it.

    Args:
        client: Of the folder of the set.
        shard: The shard.
        name: The column, one without nulls.
        where: Address of the index, for messages.

    Raises:
        ShardMissingError: The index cannot be had.
        ShardFormatError: It is not an index of this format version.
        MachineError: The store does not answer, which says nothing about the index.
    """
    found: pa.Array | int = min(_head_bytes(shard), shard.index_bytes)
    while isinstance(found, int):
        fetch = client.fetch(shard.index, [(0, found)])
        try:
            (head,) = fetch.contents()
            found = parse_column(head, name, samples=shard.samples, num_bytes=shard.index_bytes, where=where)
        except RequestError as fault:
            raise ShardMissingError(f"{where}: {fault.text}") from None
        finally:
            fetch.release()
    return found


def side_by_side(read: Callable[[int], pa.Array], shards: Iterable[int]) -> Iterator[pa.Array]:
    """Yield what a function returns for some shards, in their order; it is called for several at once."""
    numbers = iter(shards)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rhofast-column") as pool:
        under_way = [pool.submit(read, number) for number in islice(numbers, 2 * _AT_ONCE)]
        try:
            while under_way:
                yield under_way.pop(0).result()
                under_way += [pool.submit(read, number) for number in islice(numbers, 1)]
        finally:
            for future in under_way:
                future.cancel()


def _head_bytes(shard: ShardInfo) -> int:
    return _HEAD + _ROW * shard.samples
