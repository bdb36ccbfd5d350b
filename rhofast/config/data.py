"""The options of the data path: shard sets, loading and temporal sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from rhofast.config.section import (
    Count,
    Finite,
    NonNegative,
    PathField,
    Positive,
    Probability,
    Range,
    Section,
    Workers,
)
from rhofast.storage.address import check_address


class ShardsConfig(Section):
    """One shard set, or a part of one."""

    shards: str = Field(min_length=1)
    """Folder of the shard set, or its address (`https://...`, `s3://...`, `file:///...`)."""

    keep: PathField | None = None
    """File with the keys of the samples to use: .parquet or .csv with a column `key`, or .txt with one key per line.
    In training, numbers in a column `weight` say how often a sample is visited, relative to the others. None: all
    samples."""

    _option: ClassVar[str] = "data.test"

    @field_validator("shards")
    @classmethod
    def _check_address(cls, value: str) -> str:
        return check_address(value, cls._option)

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        return {"shards": str(value)} if isinstance(value, str | Path) else value


class SourceConfig(ShardsConfig):
    """One shard set to train on, or a part of one."""

    weight: Annotated[Finite, Field(gt=0)] = 1.0
    """Weight in the training mixture: the set's share of the training samples is weight / sum of all weights."""

    _option: ClassVar[str] = "data.train"


class DataConfig(Section):
    """Where the shards are and how they are loaded."""

    train: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    """Training shards: one folder or address, or a list of `{shards = ..., weight = ..., keep = ...}`. An empty list:
    none. `keep` is a file that lists the samples to train on, by keys and perhaps weights."""

    test: ShardsConfig | None = None
    """Held-out shards of the kNN evaluation during training: a folder or an address, or `{shards = ..., keep = ...}`.
    Its neighbors come from the first training set. None: no held-out shards."""

    block_shards: Count | None = None
    """Number of shards per shuffle block: the shards are shuffled and cut into blocks, and samples are shuffled within
    a block, so that only about two blocks are needed at a time. Use it for remote sets that do not fit into the cache.
    None: shuffle over the whole set."""

    lanes: Count = 1
    """Number of lanes. In each epoch every lane has shards of its own and fills an equal part of every batch, so that
    a node downloads only the shards of its lanes. Use the number of nodes, or a multiple, for remote sets. It must
    divide `train.batch_size`. 1: every sample may stand anywhere in a batch."""

    fixed_lanes: bool = False
    """Whether lanes keep their shards in every epoch. A node whose cache holds its lanes then downloads each shard
    once per run instead of once per epoch. Requires `lanes` > 1."""

    threads: Workers = 4
    """Number of reading threads per process."""

    decode_threads: Workers = 2
    """Number of decoding threads per process."""

    prefetch: Workers = 2
    """Number of batches that may wait in each queue of the loader."""

    max_bad: Probability = 0.01
    """Share of unreadable samples, in [0, 1], above which the run stops."""

    timeout_s: Positive = 600.0
    """Seconds that reading or decoding one batch may take before the run ends with an error."""

    decoder: Literal["auto", "host", "nvdec"] = "auto"
    """Decoder of video streams: "nvdec" (the GPU's video engine), "host" (CPU), or "auto" (NVDEC where there is one,
    else CPU)."""

    hw_decoder_load: Probability = 0.65
    """Share of the JPEG files, in [0, 1], that the GPU's JPEG engines decode, on GPUs that have such engines. Between 0
    and 1, low bits of a picture may depend on its place in the batch."""

    remote: Literal["auto", "ranges", "cache"] = "auto"
    """How the tars of remote sets are read: "ranges" (only the needed bytes, by range requests, nothing is kept),
    "cache" (whole tars, through the cache), or "auto": "cache" if the cache holds the sets and the run reads each tar
    about once or more, else "ranges". The first line of metrics says which and why."""

    range_gap_kb: NonNegative = 16.0
    """Gap in kB between two wanted pieces of a tar up to which one range request fetches both, and what is between
    them."""

    range_requests: Workers = 256
    """Number of range requests that one process has under way at the same time, per set."""

    cache: PathField | None = None
    """Folder for copies of remote files, preferably on a local disk of the node. They lie in its `rhofast-cache-UID`,
    so users can share it. None: the folder for temporary files ($TMPDIR, else /tmp)."""

    cache_gb: Positive = 50.0
    """Maximum size of the cache in GB."""

    downloads: Workers = 4
    """Number of shards of a set that one process downloads at the same time, ahead of their use."""

    @field_validator("train", mode="before")
    @classmethod
    def _accept_one_set(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path | Mapping) else value

    @field_validator("train")
    @classmethod
    def _check_duplicates(cls, value: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        names = [source.shards for source in value]
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise ValueError(f"data.train lists {twice[0]!r} twice. List it once, with a larger weight.")
        return value

    @model_validator(mode="after")
    def _check_lanes(self) -> Self:
        if self.fixed_lanes and self.lanes == 1:
            raise ValueError("data.fixed_lanes=true requires data.lanes > 1 (got 1).")
        return self

    @field_serializer("train")
    def _train_as_typed(self, value: tuple[SourceConfig, ...]) -> str | list[dict[str, Any]]:
        """Return a single set without weight and keep as its text."""
        if len(value) == 1 and value[0].weight == 1 and value[0].keep is None:
            return value[0].shards
        return [source.model_dump(mode="json", exclude_none=True) for source in value]

    @field_serializer("test")
    def _test_as_typed(self, value: ShardsConfig | None) -> str | dict[str, Any] | None:
        """Return a whole set as its text."""
        if value is None or value.keep is None:
            return None if value is None else value.shards
        return value.model_dump(mode="json")


class ClipConfig(Section):
    """Temporal sampling: `num_clips` (rho) clips of `num_frames` (T) frames, `frame_stride` (tau) apart at `fps`."""

    num_clips: Annotated[int, Field(ge=1, le=1024)] = 2
    """Number of clips per video (rho). 1: two augmentations of the same frames."""

    num_frames: Annotated[int, Field(ge=1, le=4096)] = 8
    """Number of frames per clip (T)."""

    frame_stride: Annotated[int, Field(ge=1, le=1_000_000)] = 8
    """Distance between two frames of a clip, in frames at `fps` (tau)."""

    fps: Positive = 30.0
    """Frame rate, in frames per second, at which clips are sampled. Videos of other rates are resampled to it."""

    fps_jitter: Range = (1.0, 1.0)
    """Interval [low, high] of the factor by which `fps` is multiplied, drawn per video, in training only. The paper
    uses [0.5, 1.5]; [1, 1 + J / fps] is the released code's jitter J. [1, 1]: no jitter."""

    rule: Literal["window", "stride", "segments"] = "window"
    """How long a clip is: "window" is tau * T frames (released code), "stride" is the ceiling of tau * (T - 1)
    (released code of April 2022). "segments" takes one frame from each of T equal parts of the whole video and ignores
    `frame_stride` and `fps`."""

    parts: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of equal parts of a video, of each of which one clip begins: of every `parts` clips that follow each other
    each lies in a part of its own. It must divide `num_clips`. 1: clips lie anywhere (released code)."""

    max_span: Annotated[Finite, Field(ge=0)] | None = None
    """Maximum time in seconds from the start of a video's first clip to the start of its last clip. 0: all clips show
    the same frames. None: no limit (released code)."""

    min_gap: Finite | None = None
    """Minimum time from the last frame of a clip to the first frame of the next one, in `gap_unit`. None: clips may
    overlap (released code)."""

    max_gap: Finite | None = None
    """Maximum time from the last frame of a clip to the first frame of the next one, in `gap_unit`. None: no limit."""

    gap_unit: Literal["seconds", "frames"] = "seconds"
    """Unit of `min_gap` and `max_gap`: "seconds", or "frames" of the stored video (released code)."""

    short: Literal["repeat", "loop", "spread"] = "repeat"
    """What happens to a video that is shorter than a clip: "repeat" its last frame (released code), "loop" back to its
    first frame, or "spread" the T frames over the video."""

    shuffle: bool = True
    """Whether the clips of a video come in random order. False: in the order of time."""

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        low, high = self.fps_jitter
        if not 0 < low <= high < math.inf:
            raise ValueError(f"clips.fps_jitter=[{low}, {high}] must satisfy 0 < low <= high < infinity.")
        if self.min_gap is not None and self.max_gap is not None and self.min_gap > self.max_gap:
            raise ValueError(f"clips.min_gap={self.min_gap:g} must not exceed clips.max_gap={self.max_gap:g}.")
        if self.num_clips % self.parts:
            raise ValueError(f"clips.parts={self.parts} must divide clips.num_clips={self.num_clips}.")
        if self.parts > 1 and (self.rule == "segments" or not self.unlimited):
            raise ValueError(
                f"clips.parts={self.parts} places the clips. Remove clips.max_span, clips.min_gap, clips.max_gap and "
                'clips.rule="segments", or clips.parts.'
            )
        if self.rule == "segments" and not self.unlimited:
            raise ValueError(
                'clips.rule="segments" covers the whole video. Remove clips.max_span, clips.min_gap and clips.max_gap.'
            )
        return self

    @property
    def unlimited(self) -> bool:
        """Whether nothing limits the time between clips."""
        return self.max_span is self.min_gap is self.max_gap is None
