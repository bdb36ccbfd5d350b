"""What the user of the capacity planner gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

GPU = Literal["a100", "h100", "h200"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannerOptions:
    """Options of `rhofast plan`. None means that an option was not given.

    Attributes:
        gpus: Number of GPUs.
        gpus_per_node: GPUs per node.
        gpu: Model of the GPUs.
        videos: Number of videos to store.
        test_videos: Number of held-out videos that kNN evaluates. None means that kNN is not planned.
        kept_share: Share of the stored videos that is trained on. None means all.
        mean_seconds: Mean duration of a video.
        codecs: Names of the codecs to compare. Empty means jpeg, h264 and hevc, or those of the dry run.
        codec_options: Options of the codecs, as `build_codecs` takes them.
        short_side: Pixels of the shorter side of stored frames.
        fps: Frames per second of stored video.
        source_bit_rate: Bits per second of the sources' video, which `remux` and `copy` keep.
        source_group: Frames per group of pictures of the sources, likewise.
        samples_per_shard: Videos per shard.
        remote: Whether shards are behind an address. None means what data.train says.
        utilization: Share of a GPU's peak that a step reaches.
        cores: CPU cores per node.
        network: Bytes per second from the storage to a node.
        fabric: Bytes per second from node to node.
        disk: Bytes per second of a node's own disk.
        storage: Bytes per second that the storage delivers to all nodes together.
        request_rate: Requests per second that the store answers per prefix.
        prefixes: Prefixes over which the shards are spread.
        request_cost: Cost of a million requests. None means that requests are not priced.
        node_mtbf: Mean seconds between two failures of one node.
        restart: Seconds from a failure to the next step.
        bench: Report of `rhofast bench --out`.
        dry_run: Report of `rhofast shard --dry-run --report`.
    """

    gpus: int
    gpus_per_node: int = 8
    gpu: GPU = "h100"
    videos: float | None = None
    test_videos: float | None = None
    kept_share: float | None = None
    mean_seconds: float | None = None
    codecs: Sequence[str] = ()
    codec_options: Mapping[str, Any]
    short_side: int | None = None
    fps: float | None = None
    source_bit_rate: float | None = None
    source_group: float | None = None
    samples_per_shard: int | None = None
    remote: bool | None = None
    utilization: float | None = None
    cores: int | None = None
    network: float | None = None
    fabric: float | None = None
    disk: float | None = None
    storage: float | None = None
    request_rate: float | None = None
    prefixes: int | None = None
    request_cost: float | None = None
    node_mtbf: float | None = None
    restart: float | None = None
    bench: Path | None = None
    dry_run: Path | None = None
