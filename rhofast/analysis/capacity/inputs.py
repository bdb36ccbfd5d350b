"""Collect the inputs of a capacity plan from the command line, the configuration, reports, and defaults.

Every input has one of three origins:

    given     what the user typed, and what follows from the configuration alone: the operations of the network, the
              frames of the clips
    measured  by `rhofast shard --dry-run --report` on the user's videos, by `rhofast bench --out` on the user's machine
    default   published numbers, our own measurements on other videos and machines, and, where there is neither,
              guesses that are marked as such
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rhofast.analysis.capacity.codec_costs import (
    PIXELS,
    clip_frames,
    range_cost,
    spread_sizes,
    stored_frame,
    units_of,
)
from rhofast.analysis.capacity.flops import count_workload
from rhofast.analysis.capacity.hardware import decode_rate, machine_inputs
from rhofast.analysis.capacity.options import PlannerOptions
from rhofast.analysis.capacity.quantities import Input, given, given_or_default, weakest
from rhofast.analysis.capacity.reports import DryRun, bench_rates, read_dry_run
from rhofast.config.schema import Config
from rhofast.data.codecs import build_codecs
from rhofast.data.codecs.codec import Codec
from rhofast.errors import ConfigError
from rhofast.ingest.cost_estimate import samples_per_shard
from rhofast.storage.address import is_remote

_OWN = "rhofast, two H.264 clips of 340x256 on 2 cores of an Intel Xeon, benchmarks/results/capacity_*.md"
_DALI = "DALI 2.4 on 2 cores of an Intel Xeon, 3,900 images/s of 340x256"
_COUNTED = "counted on the network of the configuration"
_PLANNED = "the clips of the configuration, planned for videos of mean duration"

_MAX_FRAMES = 4_000_000  # per video, because each frame is planned


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannerInputs:
    """The arguments of `plan_capacity`.

    Attributes:
        inputs: Inputs by name.
        codecs: Names of the codecs.
        remote: Whether shards are behind an address.
        ranges: Whether only needed bytes are fetched then, and not whole shards; None for what is better (`auto`).
        fixed_lanes: Whether a node uses the same lanes in every epoch.
    """

    inputs: dict[str, Input]
    codecs: tuple[str, ...]
    remote: bool
    ranges: bool | None
    fixed_lanes: bool


def collect_inputs(config: Config, options: PlannerOptions) -> PlannerInputs:
    """Collect all inputs of a plan.

    Args:
        config: Configuration of the run.
        options: What the user gave.

    Returns:
        The inputs.

    Raises:
        ConfigError: If a report cannot be used, an input is neither given nor measured, or the batch cannot be divided.
        OSError: If a report cannot be read.
    """
    gpus, nodes = options.gpus, options.gpus / options.gpus_per_node
    dry_run = None if options.dry_run is None else read_dry_run(options.dry_run)
    if gpus % options.gpus_per_node and nodes > 1:
        raise ConfigError(f"--gpus {gpus}: must be a multiple of --gpus-per-node {options.gpus_per_node}")
    if config.train.batch_size % gpus:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size}: must be a multiple of --gpus {gpus}",
            hint=f"--set train.batch_size={gpus * max(1, round(config.train.batch_size / gpus))}",
        )
    inputs = machine_inputs(config, options) | _run_inputs(config)
    codecs, videos = _videos(options, dry_run)
    inputs |= videos
    if options.kept_share is not None:
        inputs["kept_share"] = given(options.kept_share, "share", "--kept-share")
    count = inputs["videos"].value * (options.kept_share or 1)
    if count * inputs["stored_share"].value < config.train.batch_size:
        raise ConfigError(
            f"--videos {count:,.0f}: must be at least train.batch_size={config.train.batch_size}",
            hint="decrease train.batch_size",
        )
    clips = 0
    for codec in codecs:
        clips, codec_inputs = _codec_inputs(config, options, codec, dry_run, inputs)
        inputs |= {f"{codec.name}.{name}": quantity for name, quantity in codec_inputs.items()}
    try:
        work = count_workload(config, clips)
    except ValueError as error:
        raise ConfigError(f"method: {error}") from None
    inputs["clips"] = given(clips, "clips", "the configuration")
    inputs["flops"] = given(work.flops, "FLOP", _COUNTED)
    if options.test_videos is not None:
        inputs["test_videos"] = given(options.test_videos, "videos", "--test-videos")
        inputs["views"] = given(config.eval.views, "clips", "eval.views")
        inputs["features"] = given(work.num_features, "numbers", _COUNTED)
        inputs["forward_flops"] = given(work.forward_flops, "FLOP", _COUNTED)
    inputs["gradient_bytes"] = given(work.gradient_bytes, "B", _COUNTED)
    inputs["checkpoint_bytes"] = given(work.checkpoint_bytes, "B", _COUNTED)
    if options.bench is not None:
        inputs |= bench_rates(config, options.bench, [codec.name for codec in codecs])
    remote = any(is_remote(source.shards) for source in config.data.train)
    return PlannerInputs(
        inputs=inputs,
        codecs=tuple(codec.name for codec in codecs),
        remote=remote if options.remote is None else options.remote,
        ranges={"ranges": True, "cache": False, "auto": None}[config.data.remote],
        fixed_lanes=config.data.fixed_lanes,
    )


def _run_inputs(config: Config) -> dict[str, Input]:
    train, data = config.train, config.data
    inputs = {
        "batch": given(train.batch_size, "videos", "train.batch_size"),
        "checkpoint_steps": given(train.checkpoint_steps, "steps", "train.checkpoint_steps"),
        "keep": given(train.keep_checkpoints, "checkpoints", "train.keep_checkpoints"),
        "cache": given(data.cache_gb * 1e9, "B", "data.cache_gb"),
    }
    if train.steps is not None:
        inputs["steps"] = given(train.steps, "steps", "train.steps")
    if train.epochs is not None:
        inputs["epochs"] = given(train.epochs, "epochs", "train.epochs")
    if data.block_shards is not None:
        inputs["block_shards"] = given(data.block_shards, "shards", "data.block_shards")
    if data.lanes > 1:
        inputs["lanes"] = given(data.lanes, "lanes", "data.lanes")
    return inputs


def _videos(options: PlannerOptions, dry_run: DryRun | None) -> tuple[list[Codec], dict[str, Input]]:
    """Return the codecs to compare, and the inputs about the videos before they are stored."""
    names = list(dict.fromkeys(options.codecs))
    if dry_run is not None:
        fixed = [
            *options.codec_options,
            *(["short-side"] if options.short_side else []),
            *(["fps"] if options.fps else []),
        ]
        if fixed:
            raise ConfigError(
                f"--{fixed[0]}: the dry run of {dry_run.path} has already chosen it",
                hint=f"run `rhofast shard --dry-run` with --{fixed[0]}",
            )
        codecs = dry_run.codecs(names)
        return codecs, dry_run.videos(codecs[0], options)
    codecs = build_codecs(names or ["jpeg", "h264", "hevc"], options.codec_options)
    if options.videos is None or options.mean_seconds is None:
        raise ConfigError("--videos and --mean-seconds are required", hint="or pass --dry-run REPORT, which has both")
    return codecs, {
        "videos": given(options.videos, "videos", "--videos"),
        "mean_seconds": given(options.mean_seconds, "s", "--mean-seconds"),
        "fps": given_or_default(options.fps, "--fps", "frames/s", 30.0, "most video of the web has 25 or 30"),
        "stored_share": given(1.0, "share", "--videos: none of them refused"),
    }


def _codec_inputs(
    config: Config, options: PlannerOptions, codec: Codec, dry_run: DryRun | None, inputs: Mapping[str, Input]
) -> tuple[int, dict[str, Input]]:
    """Return (clips per video, inputs of one codec)."""
    seconds, fps = inputs["mean_seconds"].value, inputs["fps"].value
    side = options.short_side or (dry_run.short_side if dry_run is not None else 256)
    pixels = PIXELS * (side / 256) ** 2
    if seconds * fps > _MAX_FRAMES:
        raise ConfigError(
            f"a video of {seconds:,.0f} s at {fps:g} frames/s has {seconds * fps:,.0f} frames: "
            f"more than {_MAX_FRAMES:,}",
            hint="plan for shorter segments of the videos",
        )
    group = options.source_group
    if group is None and dry_run is not None:
        group = dry_run.group_frames(codec)
    units = units_of(codec, max(1, round(seconds * fps)), group)
    planned_from = weakest([inputs["mean_seconds"].origin, inputs["fps"].origin])

    def planned(value: float, unit: str, source: str) -> Input:
        return Input(value=value, unit=unit, origin=planned_from, source=source)

    def by_ranges(value: float, unit: str) -> Input:
        origin = weakest([planned_from, frame_bytes.origin])
        return Input(value=value, unit=unit, origin=origin, source=f"{_PLANNED}, with data.range_gap_kb and {spread}")

    clips, frames_read, frames_decoded = clip_frames(config.clips, codec, units, fps)
    if dry_run is not None:
        frame_bytes, ingest = dry_run.costs(codec, seconds=seconds, fps=fps)
    else:
        size, cpu_seconds = stored_frame(codec, pixels=pixels, fps=fps, bit_rate=options.source_bit_rate)
        frame_bytes = Input(value=size, unit="B", origin="default", source=_OWN)
        if codec.untouched:
            frame_bytes = given(size, "B", "--source-bit-rate")
        ingest = Input(value=cpu_seconds * seconds, unit="s", origin="default", source=_OWN)
    sizes = None if dry_run is None else dry_run.frame_sizes(codec)
    spread = "measured sizes of frames" if sizes else "a usual spread of the sizes of frames"
    requests, fetched = range_cost(
        config.clips,
        codec,
        units,
        fps,
        gap=1000 * config.data.range_gap_kb,
        sizes=sizes or spread_sizes(frame_bytes.value),
    )
    per_shard = samples_per_shard(frame_bytes.value * seconds * fps)
    codec_inputs = {
        "frame_bytes": frame_bytes,
        "ingest_seconds": ingest,
        "samples_per_shard": given_or_default(
            options.samples_per_shard, "--samples-per-shard", "videos", per_shard, "for shards of about 1 GB"
        ),
        "units_per_frame": planned(len(units.frame) / (seconds * fps), "units", "the shard format"),
        "frames_read": planned(frames_read, "frames", _PLANNED),
        "frames_fetched": by_ranges(fetched / frame_bytes.value, "frames"),
        "requests": by_ranges(requests, "requests"),
        "frames_decoded": planned(frames_decoded, "frames", _PLANNED),
        "host_seconds": Input(value=4e-4, unit="s", origin="default", source=f"{_OWN}: planning and reading a video"),
        "host_decode": Input(
            value=(0.5e-3 if codec.pictures else 0.65e-3) * pixels / PIXELS,
            unit="s",
            origin="default",
            source=f"{_DALI}: one image" if codec.pictures else f"{_OWN}: decoding one frame",
        ),
    }
    if codec.pictures or config.data.decoder != "host":
        codec_inputs["decode_rate"] = decode_rate(options.gpu, codec, pixels)
    return clips, codec_inputs
