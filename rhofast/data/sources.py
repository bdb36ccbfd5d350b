"""Open the shard sets of a configuration, local or remote, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rhofast.config.schema import DataConfig
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.remote import RemoteShardSet, is_remote, shard_bytes
from rhofast.data.sampling.shuffle import lanes_of
from rhofast.errors import ConfigError
from rhofast.storage.cache import Cache, default_folder
from rhofast.storage.download import RemoteFolder
from rhofast.storage.files import as_path


@dataclass(frozen=True, slots=True)
class Sources:
    """The training sets of a run and their weights, one each."""

    sets: tuple[ShardSet, ...]
    weights: tuple[float, ...]


def open_training(data: DataConfig, *, world_size: int = 1, node_size: int = 1) -> Sources:
    """Open the training shards of a run of so many processes, of which each node has so many. Raises ConfigError where
    there are none, or a node's cache cannot hold what is needed at a time; and as `open_shards` does."""
    if not data.train:
        raise ConfigError("data.train is not set", hint="give the folder of the training shards: --set data.train=...")
    sets = tuple(open_shards(source.shards, data=data) for source in data.train)
    if remote := [one for one in sets if isinstance(one, RemoteShardSet)]:
        _divide(remote, data, _most_lanes(node_size, world_size, data.lanes), _most_lanes(1, world_size, data.lanes))
    return Sources(sets, tuple(source.weight for source in data.train))


def open_test(data: DataConfig) -> ShardSet | None:
    """Open the held-out shards of a run; None where there are none. Raises as `open_shards` does."""
    return None if data.test is None else open_shards(data.test, data=data)


def open_shards(source: str | Path, *, check_files: bool = True, data: DataConfig | None = None) -> ShardSet:
    """Open the shard set in a folder or behind an address. check_files: see that every shard is there and as long as it
    should be; of a remote set, that is seen when a shard is fetched. data: where the cache is, and its bound; None: the
    defaults.

    Raises ShardMissingError, ShardFormatError, ConfigError for an address that nothing can open or a cache that cannot
    be used, DependencyError where a package for it is missing.
    """
    if isinstance(source, Path) or not is_remote(source):
        return open_folder(as_path(str(source)), check_files=check_files)
    folder = RemoteFolder(source)
    return RemoteShardSet(folder, open_cache(data or DataConfig()))


def open_cache(data: DataConfig) -> Cache:
    """The cache that a run's page describes. Raises ConfigError."""
    return Cache(data.cache or default_folder(), max_bytes=int(data.cache_gb * 1e9))


def _divide(sets: Sequence[RemoteShardSet], data: DataConfig, on_node: int, of_process: int) -> None:
    """Say how much of the cache each set of a run may fill ahead. on_node, of_process: lanes whose shards a node needs,
    and a process of it. Raises ConfigError where the cache cannot hold what is needed at a time: of each set and lane
    two blocks, or all that it will ever need."""
    blocks, needed, totals = [], [], []
    for one in sets:
        sizes = sorted(map(shard_bytes, one.info.shards), reverse=True)
        lane = sum(sizes) // data.lanes + 2 * sizes[0]  # it begins in one shard and ends in another
        totals.append(min(on_node * lane, sum(sizes)) if data.fixed_lanes else sum(sizes))
        blocks.append(on_node * (lane if data.block_shards is None else sum(sizes[: data.block_shards])))
        needed.append(min(2 * blocks[-1], totals[-1]))
    room = sets[0].cache.max_bytes
    if sum(needed) > room:
        what = "all remote shards" if data.block_shards is None else f"two blocks of {data.block_shards} shards"
        if data.lanes > 1:
            what += f" of {on_node} {'lane' if on_node == 1 else 'lanes'}"
        raise ConfigError(
            f"data.cache_gb: {what} have {sum(needed) / 1e9:.3g} GB, the cache may have {room / 1e9:.3g} GB",
            hint="need fewer shards at a time with --set data.block_shards=..., or allow more",
        )
    for one, block, need, total in zip(sets, blocks, needed, totals, strict=True):
        share = room * need // sum(needed)
        # What a block is read from must stay. Processes of a node fetch what is ahead of their own lanes.
        one.ahead_bytes = share if share >= total else (share - block) * of_process // on_node
        if data.block_shards is not None:
            one.keep_mapped(of_process * data.block_shards)


def _most_lanes(ranks: int, world_size: int, lanes: int) -> int:
    """Lanes that a node, or a process, of so many ranks needs at most."""
    parts = (range(first, min(first + ranks, world_size)) for first in range(0, world_size, ranks))
    return max(len(lanes_of(part, world_size, lanes)) for part in parts)
