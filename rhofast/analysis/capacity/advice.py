"""The sentences of a capacity plan: what limits training, how to change that, and what the plan does not know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rhofast.analysis.capacity.quantities import Number, Origin, amount

CACHE_SPACE = "cache space of a node"

SHORTER_GROUPS = "use shorter groups (rhofast shard --gop), a lower --fps, a smaller --short-side, or --codec jpeg"
OWN_GROUPS = "encode the videos in groups of your own (--codec h264 --gop 16), or as pictures (--codec jpeg)"
FEWER_PICTURES = "use a smaller --short-side, fewer clips per video, or GPUs with more JPEG engines"
SMALLER_PICTURES = "use a smaller --short-side or a coarser --quality (rhofast shard)"
LARGER_BATCH = "increase train.batch_size, so that gradients are exchanged less often"
FEWER_BYTES = "use a smaller --short-side, shorter groups (rhofast shard --gop), or a smaller data.range_gap_kb"
FEWER_REQUESTS = "spread the shards over more prefixes (--prefixes), raise data.range_gap_kb, or store h264 or hevc"
INDEX_CACHE = "increase data.cache_gb, which is to hold the indices"
LARGER_CACHE = "decrease data.block_shards or increase data.cache_gb"
MORE_CORES = "use nodes with more cores per GPU"
LESS_HOST_DECODING = (
    "decode on the GPU (data.decoder), use shorter groups (rhofast shard --gop), --codec jpeg, or more cores per GPU"
)
FASTER_LOADER = "follow the advice of `rhofast bench loader`"
_MOUNT = "read only the needed bytes (data.remote=ranges, or mount the shards as files); store h264 or hevc; or cache "
_WHOLE_SET, _FIXED_LANES = "the whole set", "the lanes of each node permanently (data.fixed_lanes, data.cache_gb)"
_LANES = "set data.lanes to the number of nodes, so that each node downloads its own part of the set"
_RELIABILITY = "use fewer nodes (--gpus), a shorter restart, or a smaller train.checkpoint_steps"

_MIN_VIDEOS_PER_GPU = 4  # below, a step does not keep a GPU busy
_NEAR_LIMIT = 0.8  # utilization from which on a resource is mentioned


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The utilization of a resource.

    Attributes:
        name: The resource.
        share: Demand at full GPU speed divided by capacity; above 1 the resource slows training down.
        origin: The weakest origin of the inputs.
        basis: Names of the inputs.
        remedy: How to lower the utilization, in the imperative.
    """

    name: str
    share: float
    origin: Origin
    basis: tuple[str, ...]
    remedy: str


def bottlenecks(
    limits: Sequence[Limit], wall_s: float, better_checkpoints: tuple[int, float] | None
) -> tuple[str, ...]:
    """Describe what prevents or slows training, in the order of importance.

    Args:
        limits: The utilization of all resources, the highest first.
        wall_s: Total training time in seconds; inf where training never ends.
        better_checkpoints: (train.checkpoint_steps, share of the time that it saves). None if nothing is to be saved.

    Returns:
        One or two sentences per problem.
    """
    sentences = []
    flows = [limit for limit in limits if limit.name != CACHE_SPACE]
    for limit in limits:
        if limit.name == CACHE_SPACE and limit.share > 1:
            sentences.append(
                f"Training would refuse to start: the cache needs {_times(limit.share)} its allowed size. "
                f"Remedy: {limit.remedy}."
            )
    total = f"total training time {amount(wall_s, 's')}"
    if not math.isfinite(wall_s):
        total = f"training never finishes, because nodes fail before a restarted run saves (remedy: {_RELIABILITY})"
    slow = [limit for limit in flows if limit.share > 1]
    if slow:
        sentences.append(f"Bottleneck: {_utilization(slow[0])}; {total}. Remedy: {slow[0].remedy}.")
        sentences += [f"Next bottleneck: {_utilization(limit)}. Remedy: {limit.remedy}." for limit in slow[1:]]
    else:
        sentences.append(f"Bottleneck: the GPUs; {total}. Next: {_utilization(flows[0])}.")
    sentences += [f"Near the limit: {_utilization(limit)}." for limit in flows[1:] if _NEAR_LIMIT < limit.share <= 1]
    if better_checkpoints is not None:
        steps, saved = better_checkpoints
        sentences.append(f"Checkpoints: --set train.checkpoint_steps={steps} would save {saved:.0%} of the time.")
    return tuple(sentences)


def first_epoch(network: Number, disk: Number) -> str:
    """Describe the epoch that fills the caches, which the utilization of later epochs leaves out.

    Args:
        network: Utilization of the network of a node in that epoch.
        disk: Utilization of the cache disk of a node in that epoch.

    Returns:
        The sentences.
    """
    needed = f"{amount(network.value, 'share')} of each node's network and {amount(disk.value, 'share')} of its disk"
    slowdown = max(network.value, disk.value)
    return f"The first epoch fills the caches. It needs {needed}" + (
        f", so it takes {_times(slowdown)} as long." if slowdown > 1 else "."
    )


def fewer_downloads(part: float, *, nodes: float) -> str:
    """Return the remedy for too many downloads of remote shards.

    Args:
        part: Share of the set that a node downloads per epoch.
        nodes: Number of nodes.

    Returns:
        The remedy, in the imperative.
    """
    mount = _MOUNT + (_WHOLE_SET if part == 1 else _FIXED_LANES)
    return mount if part <= 1 / nodes else f"{_LANES}; {mount}"


def speed_notes(utilization: float, *, videos_per_gpu: float) -> Iterator[str]:
    """Describe the limits of a GPU speed that was not measured.

    Args:
        utilization: Assumed share of the peak of a GPU.
        videos_per_gpu: Videos per GPU and step.

    Yields:
        The sentences.
    """
    yield (
        f"The GPU speed is assumed to be {amount(utilization, 'share')} of the peak. Measure it with "
        "`rhofast bench step` on one GPU and pass the report with --bench."
    )
    yield "GPU time for decoding and augmentation is not included; `rhofast bench both` measures it."
    if videos_per_gpu < _MIN_VIDEOS_PER_GPU:
        yield (
            f"A step of {amount(videos_per_gpu, 'videos')} per GPU does not fill a GPU and will be slower. "
            "Increase train.batch_size or use fewer GPUs."
        )


def kept_note(share: float, *, remote: bool) -> str:
    """Return what a list of samples (`keep`) changes and what it does not.

    Args:
        share: Share of the stored videos that is trained on.
        remote: Whether whole shards are downloaded.
    """
    note = (
        f"An epoch has {amount(share, 'share')} of the stored videos (--kept-share). Storage is planned for all of them"
    )
    return f"{note}, and so are downloads, since most shards have a video that is kept." if remote else f"{note}."


def download_note(part: float, *, fixed: bool) -> str:
    """Describe what nodes download in each epoch.

    Args:
        part: Share of the set that a node downloads per epoch.
        fixed: Whether it is the same part in every epoch.

    Returns:
        The sentence.
    """
    shards = "every shard" if part == 1 else f"{amount(part, 'share')} of the shards"
    same = " (always the same ones)" if fixed else ""
    return f"With whole shards, every node downloads {shards}{same} in every epoch, except what its cache still holds."


def _utilization(limit: Limit) -> str:
    return f"{limit.name} at {amount(limit.share, 'share')} utilization"


def _times(share: float) -> str:
    return f"{share:,.3g} times" if share < 100 else f"{share:,.0f} times"
