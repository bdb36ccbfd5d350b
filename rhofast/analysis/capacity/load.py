"""What one codec demands of a cluster at full GPU speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rhofast.analysis.capacity.quantities import Number
from rhofast.analysis.capacity.remote_costs import RangeLoad


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """The demand of one codec at full GPU speed.

    Attributes:
        codec_inputs: Inputs of the codec.
        stored: Bytes of all shards.
        index: Bytes of all indices.
        shards: Number of shards.
        read: Bytes read per video.
        decoded: Frames per second and GPU.
        host: Cores per node, without decoding.
        host_and_decode: Cores per node, if they also decode.
        fetched: Bytes per second that each node downloads where shards are remote.
        blocks: Bytes that the cache of a node must hold where shards are remote.
        kept: Whether the cache holds everything that the node ever needs, so that only the first epoch downloads.
        ranges: The demand if only needed pieces are fetched; None if it is not known.
        by_ranges: Whether only needed pieces are fetched.
    """

    codec_inputs: Mapping[str, Number]
    stored: Number
    index: Number
    shards: Number
    read: Number
    decoded: Number
    host: Number
    host_and_decode: Number
    fetched: Number
    blocks: Number
    kept: bool
    ranges: RangeLoad | None
    by_ranges: bool
