"""Where the numbers of a capacity plan come from: the command line, the page, reports of measurements, or defaults.

    given     what the user typed, and what follows from the page alone: the network's operations, the clips' frames
    measured  by `rhofast shard --dry-run --report` on the user's videos, by `rhofast bench --out` on the user's machine
    default   published figures, our own measurements on other videos and machines, and, where there is neither, guesses
              that call themselves so

What it is not: it measures nothing by itself, and does none of the plan's arithmetic (capacity.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rhofast.analysis.capacity.codec_costs import PIXELS, clip_frames, stored_frame, units_of
from rhofast.analysis.capacity.flops import count_workload
from rhofast.analysis.capacity.quantities import Input, weakest
from rhofast.config.schema import Config
from rhofast.data.codecs import build_codec, build_codecs
from rhofast.data.codecs.codec import Codec
from rhofast.data.format.remote import is_remote
from rhofast.errors import ConfigError
from rhofast.ingest.cost_estimate import samples_per_shard

GPU = Literal["a100", "h100", "h200"]

_HD = 1920 * 1080

_OURS = "rhofast, two H.264 clips of 340x256 on 2 cores of an Intel Xeon, benchmarks/results/capacity_*.md"
_DALI = "DALI 2.4 on 2 cores of an Intel Xeon, 3,900 pictures/s of 340x256"
_SHEET = "NVIDIA's data sheet, dense"
_NVDEC = "NVDEC application note 13.0: an engine at 1920x1080; at best 4 times as many small ones (a guess)"
_NVJPEG = "7,000 pictures/s on an A100's 5 engines (NVIDIA's blog on nvJPEG); as many an engine on others (a guess)"
_COUNTED = "counted on the page's network"
_PLAN = "the page's clips, planned for videos of mean length"


@dataclass(frozen=True, slots=True)
class _Accelerator:
    """peak: FLOP/s of tensor cores at 16 bits; half of it with TF32. link: B/s to other nodes. Engines for video and
    JPEG."""

    peak: float
    link: float
    nvdec: int
    nvjpeg: int


_GPUS: dict[str, _Accelerator] = {
    "a100": _Accelerator(312e12, 25e9, 5, 5),
    "h100": _Accelerator(989e12, 50e9, 7, 7),
    "h200": _Accelerator(989e12, 50e9, 7, 7),
}
_NVDEC_FPS = {"h264": 771.0, "hevc": 1316.0, "copy": 771.0}
_FRAMES = 4_000_000  # of a video: their plan is made one by one
_SMALL_PICTURES = 4.0  # NVDEC: at best so many times the pictures of 1920x1080
_JPEG_FPS = 1400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What the user gives. None: not given. Rates in bytes a second, times in seconds; codec_options as `build_codecs`
    takes them; bench, dry_run: reports of those commands."""

    gpus: int
    gpus_per_node: int = 8
    gpu: GPU = "h100"
    videos: float | None = None
    mean_seconds: float | None = None
    codecs: Sequence[str] = ()
    codec_options: Mapping[str, Any]
    short_side: int | None = None
    fps: float | None = None
    samples_per_shard: int | None = None
    remote: bool | None = None
    utilization: float | None = None
    cores: int | None = None
    network: float | None = None
    fabric: float | None = None
    disk: float | None = None
    storage: float | None = None
    node_mtbf: float | None = None
    restart: float | None = None
    bench: Path | None = None
    dry_run: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What `capacity.plan_capacity` takes."""

    inputs: dict[str, Input]
    codecs: tuple[str, ...]
    remote: bool
    fixed_lanes: bool


def gather(config: Config, question: Question) -> Evidence:
    """All inputs of a plan. Raises ConfigError for a report that is none or of something else, for what is neither
    given nor measured, and for a batch that does not divide; OSError."""
    dry = None if question.dry_run is None else _read_report(question.dry_run, "codecs", "shard --dry-run --report")
    bench = None if question.bench is None else _read_report(question.bench, "summary", "bench --out")
    gpus, nodes = question.gpus, question.gpus / question.gpus_per_node
    if gpus % question.gpus_per_node and nodes > 1:
        raise ConfigError(f"--gpus {gpus} is not a multiple of --gpus-per-node {question.gpus_per_node}")
    if config.train.batch_size % gpus:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} cannot be split over {gpus} GPUs",
            hint=f"--set train.batch_size={gpus * max(1, round(config.train.batch_size / gpus))}",
        )
    inputs = _machine(config, question) | _run(config)
    codecs, data = _videos(question, dry)
    inputs |= data
    videos = inputs["videos"].value
    if videos * inputs["stored_share"].value < config.train.batch_size:
        raise ConfigError(f"{videos:,.0f} videos are fewer than a batch of {config.train.batch_size}")
    clips = 0
    for codec in codecs:
        clips, own = _codec(config, question, codec, dry, inputs)
        inputs |= {f"{codec.name}.{name}": one for name, one in own.items()}
    try:
        work = count_workload(config, clips)
    except ValueError as error:
        raise ConfigError(f"method: {error}") from None
    inputs["clips"] = _given(clips, "clips", "the page")
    inputs["flops"] = _given(work.flops, "FLOP", _COUNTED)
    inputs["gradient_bytes"] = _given(work.gradient_bytes, "B", _COUNTED)
    inputs["checkpoint_bytes"] = _given(work.checkpoint_bytes, "B", _COUNTED)
    if bench is not None:
        inputs |= _rates(config, bench, str(question.bench), [codec.name for codec in codecs])
    remote = any(is_remote(source.shards) for source in config.data.train)
    return Evidence(
        inputs=inputs,
        codecs=tuple(codec.name for codec in codecs),
        remote=remote if question.remote is None else question.remote,
        fixed_lanes=config.data.fixed_lanes,
    )


def _given(value: float, unit: str, source: str) -> Input:
    return Input(value=float(value), unit=unit, origin="given", source=source)


def _either(value: float | None, option: str, unit: str, default: float, source: str) -> Input:
    if value is not None:
        return _given(value, unit, option)
    return Input(value=default, unit=unit, origin="default", source=source)


def _machine(config: Config, question: Question) -> dict[str, Input]:
    gpu, nodes = _GPUS[question.gpu], question.gpus_per_node
    full = config.train.precision == "fp32"
    peak = Input(
        value=gpu.peak / 2 if full else gpu.peak,
        unit="FLOP/s",
        origin="default",
        source=f"{question.gpu}, {'TF32' if full else '16 bits'}, {_SHEET}",
    )
    llama = 16384 / nodes * 54 * 86400 / 419
    inputs = {
        "gpus": _given(question.gpus, "GPUs", "--gpus"),
        "gpus_per_node": _given(min(nodes, question.gpus), "GPUs", "--gpus-per-node"),
        "peak": peak,
        "utilization": _either(
            question.utilization, "--utilization", "share", 0.25, "a guess, and a high one asks more of all else"
        ),
        "cores": _either(question.cores, "--cores-per-node", "cores", 14 * nodes, "112 for 8 GPUs, as in a DGX H100"),
        "network": _either(
            question.network, "--network", "B/s", 12.5e9, "a guess: 100 Gbit/s from each node to the storage"
        ),
        "fabric": _either(
            question.fabric, "--fabric", "B/s", gpu.link * nodes, "an adapter for each GPU, as in a DGX of that kind"
        ),
        "disk": _either(question.disk, "--disk", "B/s", 5e9, "a guess: one NVMe drive a node"),
        "node_mtbf": _either(
            question.node_mtbf,
            "--mtbf-hours",
            "s",
            llama,
            "419 interruptions of 16,384 GPUs in 54 days, arXiv 2407.21783",
        ),
        "restart": _either(question.restart, "--restart-minutes", "s", 600.0, "a guess: noticed, queued, begun again"),
        "stall": Input(value=0.1, unit="s", origin="default", source="a guess: the training thread's share of a save"),
        "checkpoint_rate": Input(
            value=1e9, unit="B/s", origin="default", source="a guess: one writer on shared storage"
        ),
    }
    if question.storage is not None:
        inputs["storage"] = _given(question.storage, "B/s", "--storage")
    return inputs


def _run(config: Config) -> dict[str, Input]:
    train, data = config.train, config.data
    inputs = {
        "batch": _given(train.batch_size, "videos", "train.batch_size"),
        "checkpoint_steps": _given(train.checkpoint_steps, "steps", "train.checkpoint_steps"),
        "keep": _given(train.keep_checkpoints, "checkpoints", "train.keep_checkpoints"),
        "cache": _given(data.cache_gb * 1e9, "B", "data.cache_gb"),
    }
    if train.steps is not None:
        inputs["steps"] = _given(train.steps, "steps", "train.steps")
    if train.epochs is not None:
        inputs["epochs"] = _given(train.epochs, "epochs", "train.epochs")
    if data.block_shards is not None:
        inputs["block_shards"] = _given(data.block_shards, "shards", "data.block_shards")
    if data.lanes > 1:
        inputs["lanes"] = _given(data.lanes, "lanes", "data.lanes")
    return inputs


def _videos(question: Question, dry: dict[str, Any] | None) -> tuple[list[Codec], dict[str, Input]]:
    """The codecs, and what there is of video before it is stored."""
    names, path = list(dict.fromkeys(question.codecs)), f"{question.dry_run}"
    if dry is None:
        codecs = build_codecs(names or ["jpeg", "h264", "hevc"], question.codec_options)
        if question.videos is None or question.mean_seconds is None:
            raise ConfigError("--videos and --mean-seconds are not given", hint="or give --dry-run REPORT, which knows")
        return codecs, {
            "videos": _given(question.videos, "videos", "--videos"),
            "mean_seconds": _given(question.mean_seconds, "s", "--mean-seconds"),
            "fps": _either(question.fps, "--fps", "frames/s", 30.0, "most video of the web has 25 or 30"),
            "stored_share": _given(1.0, "share", "--videos: none of them refused"),
        }
    fixed = [
        *question.codec_options,
        *(["short-side"] if question.short_side else []),
        *(["fps"] if question.fps else []),
    ]
    if fixed:
        raise ConfigError(f"--{fixed[0]}: {path} was made with one", hint="give the option to the dry run")
    tried = {one["codec"]["name"]: one for one in dry["codecs"] if one["metrics"] is not None}
    absent = [name for name in names if name not in tried]
    if absent or not tried:
        raise ConfigError(f"{path}: codec {', '.join(absent) or 'none'} was not tried, or took no video")
    chosen = names or list(tried)
    first = tried[chosen[0]]
    metrics, taken = first["metrics"], 1 - sum(first["refused"].values()) / dry["tried"]
    seconds = 3600 * metrics["total_hours"] / dry["videos"] / taken
    fps = metrics["bytes_per_video"] / metrics["bytes_per_frame"] / seconds

    def measured(value: float | None, option: str, unit: str, found: float) -> Input:
        return _given(value, unit, option) if value is not None else _measured(found, unit, path)

    return [build_codec(tried[name]["codec"]) for name in chosen], {
        "videos": measured(question.videos, "--videos", "videos", dry["videos"]),
        "mean_seconds": measured(question.mean_seconds, "--mean-seconds", "s", seconds),
        "fps": _measured(fps, "frames/s", path),
        "stored_share": _measured(taken, "share", path),
    }


def _measured(value: float, unit: str, path: str) -> Input:
    return Input(value=float(value), unit=unit, origin="measured", source=path)


def _codec(
    config: Config, question: Question, codec: Codec, dry: dict[str, Any] | None, inputs: Mapping[str, Input]
) -> tuple[int, dict[str, Input]]:
    """(clips of a video, what holds for one codec)."""
    seconds, fps = inputs["mean_seconds"].value, inputs["fps"].value
    side = question.short_side or (dry["settings"]["short_side"] if dry is not None else 256)
    pixels = PIXELS * (side / 256) ** 2
    if seconds * fps > _FRAMES:
        raise ConfigError(
            f"a video of {seconds:,.0f} s at {fps:g} frames/s has {seconds * fps:,.0f} frames: more than {_FRAMES:,}",
            hint="plan for shorter pieces of it",
        )
    units = units_of(codec, max(1, round(seconds * fps)))
    planned_on = weakest([inputs["mean_seconds"].origin, inputs["fps"].origin])

    def planned(value: float, unit: str, source: str) -> Input:
        return Input(value=value, unit=unit, origin=planned_on, source=source)

    clips, frames_read, frames_decoded = clip_frames(config.clips, codec, units, fps)
    if dry is not None:
        found = next(one for one in dry["codecs"] if one["codec"]["name"] == codec.name)
        before = found["metrics"]["bytes_per_video"] / found["metrics"]["bytes_per_frame"] / fps
        frame_bytes = _measured(found["metrics"]["bytes_per_frame"], "B", f"{question.dry_run}")
        ingest = _measured(found["cpu_seconds"] * seconds / before, "s", f"{question.dry_run}")
    else:
        size, spent = stored_frame(codec, pixels=pixels, fps=fps)
        frame_bytes = Input(value=size, unit="B", origin="default", source=_OURS)
        ingest = Input(value=spent * seconds, unit="s", origin="default", source=_OURS)
    member = frame_bytes.value * seconds * fps
    per_shard = samples_per_shard(member)
    on_gpu = codec.pictures or config.data.decoder != "host"
    gpu = _GPUS[question.gpu]
    small = min(_HD / pixels, _SMALL_PICTURES)
    own = {
        "frame_bytes": frame_bytes,
        "ingest_seconds": ingest,
        "samples_per_shard": _either(
            question.samples_per_shard, "--samples-per-shard", "videos", per_shard, "for shards of about 1 GB"
        ),
        "units_per_frame": planned(len(units.frame) / (seconds * fps), "units", "the shard format"),
        "frames_read": planned(frames_read, "frames", _PLAN),
        "frames_decoded": planned(frames_decoded, "frames", _PLAN),
        "host_seconds": Input(value=4e-4, unit="s", origin="default", source=f"{_OURS}: planning and reading a video"),
        "host_decode": Input(
            value=(0.5e-3 if codec.pictures else 0.65e-3) * pixels / PIXELS,
            unit="s",
            origin="default",
            source=f"{_DALI}: a picture" if codec.pictures else f"{_OURS}: decoding a frame",
        ),
    }
    if on_gpu:
        rate = gpu.nvjpeg * _JPEG_FPS if codec.pictures else gpu.nvdec * _NVDEC_FPS[codec.name] * small
        source = _NVJPEG if codec.pictures else _NVDEC
        own["decode_rate"] = Input(value=rate, unit="frames/s", origin="default", source=source)
    return clips, own


def _rates(config: Config, report: dict[str, Any], path: str, codecs: list[str]) -> dict[str, Input]:
    """The pace of a GPU, and that of a loader, as `rhofast bench` measured them with the same step."""
    page: dict[str, Any] = config.model_dump(mode="json")
    same: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("clips.num_clips", lambda one: one["clips"]["num_clips"]),
        ("clips.num_frames", lambda one: one["clips"]["num_frames"]),
        ("augment.size", lambda one: one["augment"]["size"]),
    ]
    if report["what"] != "loader":
        same += [
            ("backbone", lambda one: one["backbone"]),
            ("method", lambda one: one["method"]),
            ("train.precision", lambda one: one["train"]["precision"]),
        ]
    for key, look in same:
        if look(report["config"]) != look(page):
            raise ConfigError(f"{path} measured another step: {key} is {look(report['config'])!r} there")
    if report["machine"]["device"] == "cpu":
        raise ConfigError(f"{path} was measured on a CPU", hint="measure where the GPUs are, or leave --bench out")
    device = f"{path}, on {report['machine']['device']}"

    def rate(source: str) -> Input:
        total = report["summary"][source]["clips_per_second"]["median"]
        return _measured(total / report["world_size"], "clips/s", device)

    rates: dict[str, Input] = {}
    if "memory" in report["summary"]:
        rates["gpu_clips"] = rate("memory")
    elif report["what"] == "both":
        rates["gpu_clips"] = rate("loader")
    else:
        if len(codecs) != 1:
            raise ConfigError(f"{path} measured the loader on one codec", hint="say on which: --codec ...")
        rates[f"{codecs[0]}.loader_clips"] = rate("loader")
    return rates


def _read_report(path: Path, key: str, command: str) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON: {error}") from None
    if not isinstance(report, dict) or key not in report:
        raise ConfigError(f"{path}: no report of `rhofast {command}`")
    return report
