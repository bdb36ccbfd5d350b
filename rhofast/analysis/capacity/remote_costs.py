"""What remote shards cost, whole or piece by piece: bytes, requests, money, and which resource is the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rhofast.analysis.capacity.advice import Limit
from rhofast.analysis.capacity.quantities import Number, amount


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeLoad:
    """The demand of one codec at full GPU speed, if only the needed pieces of shards are fetched.

    Attributes:
        bytes_per_video: Bytes that travel per video.
        requests_per_video: Range requests per video.
        requests_per_second: Requests of all nodes together.
        used: Share of what the store answers.
        cost: Cost of the requests of the whole run; None if they have no price.
    """

    bytes_per_video: Number
    requests_per_video: Number
    requests_per_second: Number
    used: Number
    cost: Number | None


def range_load(
    numbers: Mapping[str, Number], codec_inputs: Mapping[str, Number], *, rate: Number, videos: Number
) -> RangeLoad | None:
    """Return the demand by ranges.

    Args:
        numbers: Inputs of the plan.
        codec_inputs: Inputs of the codec.
        rate: Videos per second of all GPUs together.
        videos: Videos that the whole run sees.

    Returns:
        The demand; None if the inputs do not say what a video costs by ranges.
    """
    if "requests" not in codec_inputs:
        return None
    requests = codec_inputs["requests"]
    per_second = rate * requests
    price = numbers.get("request_cost")
    return RangeLoad(
        bytes_per_video=codec_inputs["frames_fetched"] * codec_inputs["frame_bytes"],
        requests_per_video=requests,
        requests_per_second=per_second,
        used=per_second / (numbers["request_rate"] * numbers["prefixes"]),
        cost=None if price is None else videos * requests * price,
    )


def compare(ranges: Sequence[Limit], whole: Sequence[Limit], *, chosen: bool) -> str:
    """Say which resource is used most by ranges and with whole shards, and which way the plan takes.

    Args:
        ranges: Utilization of what reading by ranges needs.
        whole: Utilization of what fetching whole shards needs.
        chosen: Whether the plan reads by ranges.
    """

    def highest(limits: Sequence[Limit]) -> str:
        most = max(limits, key=lambda limit: limit.share)
        return f"{most.name} at {amount(most.share, 'share')}"

    way = "by range requests" if chosen else "as whole shards, through the cache"
    return (
        f"Highest utilization by range requests: {highest(ranges)}; as whole shards: {highest(whole)}. "
        f"Planned: {way} (data.remote)."
    )


def lanes_of_node(lanes: Number | None, nodes: Number) -> tuple[Number, Number]:
    """Return the lanes of a node, and the share of the set that it downloads per epoch.

    Without lanes, the samples of a node's part of a batch may come from any shard.

    Args:
        lanes: data.lanes. None means no lanes.
        nodes: Number of nodes.

    Returns:
        (lanes of which a node caches blocks, share of the set).
    """
    if lanes is None:
        return Number(1.0), Number(1.0)
    mine = Number(math.ceil(lanes.value / nodes.value), lanes.basis | nodes.basis)
    return mine, mine / lanes
