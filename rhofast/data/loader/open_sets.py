"""Open what a caller of `clips` or `eval_clips` names as shards: sets, folders, addresses, several with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rhofast.config.schema import DataConfig
from rhofast.config.section import parse_section
from rhofast.data.format.dataset import ShardSet
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sources import open_shards, open_training
from rhofast.distributed.process_group import ranks_per_node
from rhofast.errors import ConfigError


def open_mixture(shards: object, keep: object, data: DataConfig, world_size: int) -> Mixture:
    """Open one or several training sets, and share the cache among those that are remote.

    Args:
        shards: A set, its folder or address, several of them, a mapping of them to weights, or an open mixture.
        keep: A file with the samples to take of a set that is alone, or a mapping of sets to files.
        data: Options of loading.
        world_size: Number of ranks.

    Raises:
        ConfigError: An argument is none of these, or a list of samples is wrong.
        ShardError: A set cannot be opened.
    """
    if isinstance(shards, Mixture | ShardSet):
        _refuse_keep(keep)
        return shards if isinstance(shards, Mixture) else Mixture([shards])
    if isinstance(shards, Mapping):
        value = [{"shards": str(one), "weight": weight} for one, weight in shards.items()]
    elif isinstance(shards, str | Path):
        value = [{"shards": str(shards)}]
    elif isinstance(shards, Sequence) and not isinstance(shards, bytes):
        value = [{"shards": str(one) if isinstance(one, Path) else one} for one in shards]
    else:
        raise _no_shards(shards)
    if not value or value == [{"shards": ""}]:
        raise _no_shards(shards)
    lists = _lists_of(keep, [str(one["shards"]) for one in value])
    value = [one if file is None else {**one, "keep": file} for one, file in zip(value, lists, strict=True)]
    checked = parse_section(DataConfig, {**data.model_dump(exclude={"train"}), "train": value}, "data")
    sources = open_training(checked, world_size=world_size, node_size=ranks_per_node(world_size))
    return Mixture(sources.sets, sources.weights)


def _lists_of(keep: object, sets: Sequence[str]) -> list[object]:
    """Return the list of samples of each set, or None; raise ConfigError if lists cannot be told apart."""
    if isinstance(keep, Mapping):
        files = {str(name): file for name, file in keep.items()}
        unknown = [name for name in files if name not in sets]
        if unknown:
            raise ConfigError(f"keep: {unknown[0]!r} is none of the sets in shards", hint="write it as shards does")
        return [files.get(name) for name in sets]
    if keep is not None and len(sets) > 1:
        raise ConfigError(f"keep={keep!r}: there are {len(sets)} sets", hint='name the set: keep={"shards/a": FILE}')
    return [keep] * len(sets)


def _refuse_keep(keep: object) -> None:
    if keep is not None:
        raise ConfigError(f"keep={keep!r}: the set is open already", hint="pass keep to open_shards")


def open_set(shards: object, keep: str | Path | None, data: DataConfig) -> ShardSet:
    """Open one set.

    Args:
        shards: The set, or its folder or address.
        keep: A file with the samples to take.
        data: Options of loading.

    Raises:
        ConfigError: An argument is none of these, or the list of samples is wrong.
        ShardError: The set cannot be opened.
    """
    if isinstance(shards, ShardSet):
        _refuse_keep(keep)
        return shards
    if not isinstance(shards, str | Path) or shards == "":
        raise _no_shards(shards)
    return open_shards(shards, keep=keep, data=data)


def _no_shards(shards: object) -> ConfigError:
    return ConfigError(f"shards={shards!r} must be the folder or the address of a shard set")
