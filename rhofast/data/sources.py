"""Open the shard sets of a configuration, local or remote, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rhofast.config.schema import ClipConfig, DataConfig, ShardsConfig
from rhofast.config.section import parse_section
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.keep_list import read_keep_list
from rhofast.data.format.ranges import RangeOptions
from rhofast.data.format.remote import RemoteShardSet, shard_bytes
from rhofast.data.format.remote_choice import RemoteChoice, choose_remote
from rhofast.data.format.selection import find_subset
from rhofast.data.format.subset import VISIT
from rhofast.data.sampling.shuffle import lanes_of
from rhofast.errors import ConfigError
from rhofast.storage.address import check_address, is_remote
from rhofast.storage.cache import Cache, own_folder
from rhofast.storage.download import RemoteFolder
from rhofast.storage.network import TIMEOUT_S, RetryPolicy
from rhofast.storage.store_path import as_path

_PATIENCE = 0.9  # share of data.timeout_s for which an outage is waited for: the loader itself waits no longer
_PATIENCE_OF_FILES = 0.75  # the same for whole files, whose attempts last longer


@dataclass(frozen=True, slots=True)
class Sources:
    """The training sets of a run.

    Attributes:
        sets: The shard sets, in the order of the configuration.
        weights: Weight of each set in the mixture.
    """

    sets: tuple[ShardSet, ...]
    weights: tuple[float, ...]


def open_training(
    data: DataConfig,
    *,
    world_size: int = 1,
    node_size: int = 1,
    clips: ClipConfig | None = None,
    epochs: float | None = None,
) -> Sources:
    """Open the training shards of a run.

    Args:
        data: The data section of the configuration.
        world_size: Number of processes of the run.
        node_size: Number of processes per node, which share a cache.
        clips: Options of the clips, for the choice of how remote sets are read; None if they are not known.
        epochs: Length of the run, for the same choice; None if it is not known.

    Returns:
        The sets and their weights.

    Raises:
        ConfigError: data.train is not set, or the cache of a node cannot hold the shards that it needs at a time.
        RhofastError: A set cannot be opened; see `open_shards`.
    """
    if not data.train:
        raise ConfigError(
            "data.train is not set", hint="set the folder of the training shards: --set data.train=FOLDER"
        )
    sets = tuple(_open_part(source.shards, source.keep, check_files=True, data=data) for source in data.train)
    if remote := [shards for shards in sets if isinstance(shards, RemoteShardSet)]:
        _use(remote, data, clips, epochs)
        node_lanes = _most_lanes(node_size, world_size, data.lanes)
        _divide_cache(remote, data, node_lanes, _most_lanes(1, world_size, data.lanes))
    return Sources(sets, tuple(source.weight for source in data.train))


def open_test(data: DataConfig) -> ShardSet | None:
    """Open the held-out shards of a run, which it reads many times; return None if data.test is not set.

    Errors are those of `open_shards`.
    """
    if data.test is None:
        return None
    shards = _open_part(data.test.shards, data.test.keep, check_files=True, data=data)
    if isinstance(shards, RemoteShardSet):
        _use([shards], data, None, None)
    return shards


def open_source(source: ShardsConfig, *, data: DataConfig, check_files: bool = True) -> ShardSet:
    """Open one shard set of a configuration, or a part of one. Arguments and errors are those of `open_shards`."""
    return open_shards(source.shards, keep=source.keep, check_files=check_files, data=data)


def open_shards(
    source: str | Path,
    *,
    keep: str | Path | None = None,
    check_files: bool = True,
    data: DataConfig | None = None,
    passes: float | None = 1.0,
) -> ShardSet:
    """Open the shard set in a folder or at a URL, or a part of it.

    The samples of a part are numbered among themselves, in the order of the set.

    Args:
        source: The folder or the URL of the set.
        keep: File that lists the samples of the part: .parquet or .csv with a column `key`, or .txt with one key per
            line. Training visits a sample by the number in a column `weight`, if there is one: weight / mean weight
            times per epoch on average. None for all samples, each visited once.
        check_files: Whether to check that every shard of a folder exists and has its recorded size. The shards of a
            remote set are always checked when they are fetched, and not before.
        data: The data section of the configuration, for the cache and how a remote set is read; None for the defaults.
        passes: How often the samples will be read about; with `data.remote="auto"`, whole shards of a remote set are
            copied to the cache only if that is more than once. None: often.

    Returns:
        The shard set.

    Raises:
        ShardMissingError: The set or one of its shards does not exist.
        ShardFormatError: The set is not in a format that this version reads, or is damaged.
        ConfigError: Nothing can open the URL, the cache cannot be used, the list of keys cannot be read, or it does
            not fit the set.
        DependencyError: A package that the URL requires is not installed.
    """
    data = data or DataConfig()
    shards = _open_part(source, keep, check_files=check_files, data=data)
    if isinstance(shards, RemoteShardSet):
        _use([shards], data, None, passes)
    return shards


def _open_part(source: str | Path, keep: str | Path | None, *, check_files: bool, data: DataConfig) -> ShardSet:
    """Open a set, or the part of it that a list names. How a remote one is read is not chosen yet."""
    listed = None if keep is None else read_keep_list(_checked_path(keep))
    shards = _open_whole(source, check_files=check_files, data=data)
    return shards if listed is None else shards.subset(find_subset(shards, listed))


def _checked_path(keep: str | Path) -> Path:
    """Return the path of a list of keys; raise ConfigError if it is an address, or neither text nor a path."""
    path = parse_section(ShardsConfig, {"shards": ".", "keep": keep}, "data").keep
    assert path is not None
    return path


def _open_whole(source: str | Path, *, check_files: bool, data: DataConfig) -> ShardSet:
    if isinstance(source, Path):
        return open_folder(source, check_files=check_files)
    address = check_address(source, "shards")
    if not is_remote(address):
        return open_folder(as_path(address), check_files=check_files)
    policy = RetryPolicy(
        timeout_s=min(TIMEOUT_S, data.timeout_s), total_s=data.timeout_s, outage_s=_PATIENCE_OF_FILES * data.timeout_s
    )
    return RemoteShardSet(RemoteFolder(address, policy), open_cache(data))


def open_cache(data: DataConfig) -> Cache:
    """Open the cache that a configuration describes; raise ConfigError if it cannot be used."""
    return Cache(own_folder(data.cache), max_bytes=int(data.cache_gb * 1e9))


def _use(sets: Sequence[RemoteShardSet], data: DataConfig, clips: ClipConfig | None, passes: float | None) -> None:
    """Choose how the tars of remote sets are read, and tell the sets.

    Raises:
        ConfigError: data.remote="ranges", and a server ignores range requests.
    """
    choice = RemoteChoice(data.remote == "ranges", "data.remote is set")
    if data.remote == "auto":
        needed = [sum(shard_bytes(one.info.shards[number]) for number in one.used_shards().tolist()) for one in sets]
        infos = zip((one.info for one in sets), needed, strict=True)
        choice = choose_remote(list(infos), cache_bytes=sets[0].cache.max_bytes, clips=clips, passes=passes)
    if choice.ranges and (refusing := next((one for one in sets if not one.answers_ranges()), None)):
        if data.remote == "ranges":
            raise ConfigError(
                f"data.remote=ranges: the server of {refusing.where} ignores range requests",
                hint="read whole shards: --set data.remote=cache",
            )
        choice = RemoteChoice(False, f"the server of {refusing.where} ignores range requests")
    options = RangeOptions(
        gap=int(1000 * data.range_gap_kb), requests=data.range_requests, patience_s=_PATIENCE * data.timeout_s
    )
    for shards in sets:
        if choice.ranges:
            shards.use_ranges(options)
        shards.transport = (
            f"{shards.where}: {'range requests' if choice.ranges else 'whole shards, through the cache'}: "
            f"{choice.reason}"
        )


def _divide_cache(sets: Sequence[RemoteShardSet], data: DataConfig, node_lanes: int, process_lanes: int) -> None:
    """Set how much of the cache each remote set of a run may fill in advance.

    Args:
        sets: The remote sets; they share one cache.
        data: The data section of the configuration.
        node_lanes: Number of lanes whose shards a node needs.
        process_lanes: Number of lanes whose shards one process of a node needs.

    Raises:
        ConfigError: The cache cannot hold what is needed at a time: two blocks per set and lane, or, if that is less,
            all shards that the node will ever need.
    """
    blocks, needed, totals = [], [], []
    for shards in sets:
        used = shards.used_shards().tolist()
        sizes = sorted(map(shards.cached_bytes, used), reverse=True)
        lane = _lane_bytes(shards, used, data.lanes)
        totals.append(min(node_lanes * lane, sum(sizes)) if data.fixed_lanes else sum(sizes))
        blocks.append(node_lanes * (lane if data.block_shards is None else sum(sizes[: data.block_shards])))
        needed.append(min(2 * blocks[-1], totals[-1]))
    limit = sets[0].cache.max_bytes
    if sum(needed) > limit:
        files = "shards" if sets[0].ranges is None else "indices"
        what = f"all remote {files}" if data.block_shards is None else f"two blocks of {data.block_shards} {files}"
        if data.lanes > 1:
            what += f" of {node_lanes} {'lane' if node_lanes == 1 else 'lanes'}"
        raise ConfigError(
            f"data.cache_gb={limit / 1e9:.3g} is too small: {what} need {sum(needed) / 1e9:.3g} GB",
            hint="raise the limit (--set data.cache_gb=N) or use fewer shards at a time (--set data.block_shards=N)",
        )
    for shards, block, need, total in zip(sets, blocks, needed, totals, strict=True):
        share = limit * need // sum(needed)
        # The shards of the block that is being read must stay. Each process of a node fetches ahead for its own lanes.
        shards.ahead_bytes = share if share >= total else (share - block) * process_lanes // node_lanes
        if data.block_shards is not None:
            shards.keep_mapped(process_lanes * data.block_shards)


def _lane_bytes(shards: RemoteShardSet, used: list[int], lanes: int) -> int:
    """Return the most bytes of shards that a lane can need, however the shards are shuffled.

    A lane has an equal part of the visits. It begins in one shard, ends in another, and has others as a whole: at most
    those with the most bytes per visit.
    """
    sizes = np.array([shards.cached_bytes(number) for number in used])
    visits = np.diff(shards.starts)[used].astype(float)
    if shards.part is not None and shards.part.rates is not None:
        visits = np.add.reduceat(shards.part.rates, shards.starts[used]) / VISIT
    order = np.argsort(-sizes / visits)
    whole = int(np.searchsorted(np.cumsum(visits[order]), len(shards) // lanes, side="right"))
    return min(int(sizes.sum()), int(sizes[order[:whole]].sum() + 2 * sizes.max()))


def _most_lanes(ranks: int, world_size: int, lanes: int) -> int:
    """Return the largest number of lanes that a group of `ranks` consecutive ranks needs."""
    parts = (range(first, min(first + ranks, world_size)) for first in range(0, world_size, ranks))
    return max(len(lanes_of(part, world_size, lanes)) for part in parts)
