"""Measurements for the capacity planner, from the reports of `rhofast shard --dry-run` and `rhofast bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rhofast.analysis.capacity.options import PlannerOptions
from rhofast.analysis.capacity.quantities import Input, given, measured
from rhofast.config.load import parse_config
from rhofast.config.schema import Config
from rhofast.data.codecs import build_codec
from rhofast.data.codecs.codec import Codec
from rhofast.errors import ConfigError
from rhofast.storage.strict_json import MAX_BYTES, parse_record, read_bounded

_Positive = Annotated[float, Field(gt=0, le=1e15)]
_Count = Annotated[int, Field(ge=1, lt=1 << 53)]


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


class _Settings(_Report):
    short_side: Annotated[int, Field(ge=1, le=1 << 16)]


class _CodecMetrics(_Report):
    total_hours: _Positive
    bytes_per_video: _Positive
    bytes_per_frame: _Positive
    group_frames: _Positive | None = None
    frame_sizes: Annotated[list[_Positive], Field(min_length=1, max_length=1000)] | None = None


class _CodecName(_Report):
    name: str


class _CodecResult(_Report):
    codec: _CodecName
    refused: dict[str, Annotated[int, Field(ge=0, lt=1 << 53)]]
    metrics: _CodecMetrics | None
    cpu_seconds: Annotated[float, Field(ge=0, le=1e15)]


class _DryRunReport(_Report):
    settings: _Settings
    tried: _Count
    videos: _Count
    codecs: list[_CodecResult]

    @model_validator(mode="after")
    def _check_refused(self) -> _DryRunReport:
        for result in self.codecs:
            if result.metrics is not None and sum(result.refused.values()) >= self.tried:
                raise ValueError(f"codec {result.codec.name!r} has metrics, but refused all {self.tried} videos")
        return self


class _Median(_Report):
    median: _Positive


class _Rate(_Report):
    clips_per_second: _Median


class _Summary(_Report):
    memory: _Rate | None = None
    loader: _Rate | None = None

    @model_validator(mode="after")
    def _check_measured(self) -> _Summary:
        if self.memory is None and self.loader is None:
            raise ValueError("has neither memory nor loader")
        return self


class _Machine(_Report):
    device: str


class _BenchReport(_Report):
    what: Literal["loader", "step", "both", "headspace"]
    config: dict[str, Any]
    machine: _Machine
    world_size: Annotated[int, Field(ge=1, le=1 << 20)]
    summary: _Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """A report of `rhofast shard --dry-run --report`.

    Attributes:
        path: The file.
        report: Its contents.
    """

    path: Path
    report: dict[str, Any]

    @property
    def short_side(self) -> int:
        """Return the pixels of the shorter side of stored frames."""
        return int(self.report["settings"]["short_side"])

    def codecs(self, names: Sequence[str]) -> list[Codec]:
        """Return the named codecs as the dry run used them, or all of its codecs if no name is given.

        Raises:
            ConfigError: If the dry run did not try a codec, or could not store any video with it.
        """
        tried = self._tried()
        absent = [name for name in names if name not in tried]
        if absent or not tried:
            raise ConfigError(f"{self.path}: codec {', '.join(absent) or 'none'} was not tried, or took no video")
        return [build_codec(tried[name]["codec"]) for name in names or tried]

    def videos(self, first: Codec, options: PlannerOptions) -> dict[str, Input]:
        """Return number, duration, frame rate and stored share of the videos.

        Args:
            first: The codec whose results are read.
            options: What the user gave instead of measured values.

        Returns:
            The inputs by name.
        """
        result, path = self._tried()[first.name], f"{self.path}"
        metrics, stored = result["metrics"], 1 - sum(result["refused"].values()) / self.report["tried"]
        seconds = 3600 * metrics["total_hours"] / self.report["videos"] / stored
        fps = metrics["bytes_per_video"] / metrics["bytes_per_frame"] / seconds

        def given_or_measured(value: float | None, option: str, unit: str, found: float) -> Input:
            return given(value, unit, option) if value is not None else measured(found, unit, path)

        return {
            "videos": given_or_measured(options.videos, "--videos", "videos", self.report["videos"]),
            "mean_seconds": given_or_measured(options.mean_seconds, "--mean-seconds", "s", seconds),
            "fps": measured(fps, "frames/s", path),
            "stored_share": measured(stored, "share", path),
        }

    def costs(self, codec: Codec, *, seconds: float, fps: float) -> tuple[Input, Input]:
        """Return what a codec makes of the videos.

        Args:
            codec: The codec.
            seconds: Mean duration of a video.
            fps: Frames per second of stored video.

        Returns:
            (bytes per frame, CPU seconds per video).
        """
        result = next(tried for tried in self.report["codecs"] if tried["codec"]["name"] == codec.name)
        metrics = result["metrics"]
        tried_seconds = metrics["bytes_per_video"] / metrics["bytes_per_frame"] / fps
        return (
            measured(metrics["bytes_per_frame"], "B", f"{self.path}"),
            measured(result["cpu_seconds"] * seconds / tried_seconds, "s", f"{self.path}"),
        )

    def group_frames(self, codec: Codec) -> float | None:
        """Return the mean number of frames in the unit in which a random frame lies; None if it was not measured."""
        found: float | None = self._tried()[codec.name]["metrics"].get("group_frames")
        return found

    def frame_sizes(self, codec: Codec) -> list[float] | None:
        """Return quantiles of the bytes per frame, second by second; None if they were not measured."""
        found: list[float] | None = self._tried()[codec.name]["metrics"].get("frame_sizes")
        return found

    def _tried(self) -> dict[str, Any]:
        return {result["codec"]["name"]: result for result in self.report["codecs"] if result["metrics"] is not None}


def read_dry_run(path: Path) -> DryRun:
    """Read a report of `rhofast shard --dry-run --report`; raise ConfigError if the file is no such report."""
    return DryRun(path=path, report=_read_report(path, "codecs", _DryRunReport, "shard --dry-run --report"))


def bench_rates(config: Config, path: Path, codecs: Sequence[str]) -> dict[str, Input]:
    """Read the speed of a GPU, or of the loader, from a report of `rhofast bench --out`.

    Args:
        config: Configuration of the run.
        path: The report.
        codecs: Names of the codecs of the plan.

    Returns:
        `gpu_clips`, or `CODEC.loader_clips`, in clips per second and GPU.

    Raises:
        ConfigError: If the file is no such report, or measured another configuration or a CPU.
    """
    report = _read_report(path, "summary", _BenchReport, "bench --out")
    planned: dict[str, Any] = config.model_dump(mode="json")
    measured_with: dict[str, Any] = parse_config(report["config"], where=f"{path}: config").model_dump(mode="json")
    same: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("clips.num_clips", lambda values: values["clips"]["num_clips"]),
        ("clips.num_frames", lambda values: values["clips"]["num_frames"]),
        ("augment.size", lambda values: values["augment"]["size"]),
    ]
    if report["what"] != "loader":
        same += [
            ("backbone", lambda values: values["backbone"]),
            ("method", lambda values: values["method"]),
            ("train.precision", lambda values: values["train"]["precision"]),
        ]
    for key, look_up in same:
        if look_up(measured_with) != look_up(planned):
            raise ConfigError(
                f"--bench {path}: measured with {key}={look_up(measured_with)!r}, but the plan has "
                f"{look_up(planned)!r}",
                hint="measure with the configuration of the plan",
            )
    if report["machine"]["device"] == "cpu":
        raise ConfigError(f"--bench {path}: measured on a CPU", hint="measure on a GPU, or omit --bench")
    source = f"{path}, on {report['machine']['device']}"

    def rate(batches_from: str) -> Input:
        found = report["summary"].get(batches_from)
        if found is None:
            raise ConfigError(f"--bench {path}: has no summary.{batches_from}", hint="measure again: rhofast bench")
        total = found["clips_per_second"]["median"]
        return measured(total / report["world_size"], "clips/s", source)

    if report["summary"].get("memory") is not None:
        return {"gpu_clips": rate("memory")}
    if report["what"] == "both":
        return {"gpu_clips": rate("loader")}
    if len(codecs) != 1:
        raise ConfigError(
            f"--bench {path}: it measured the loader with one codec, but the plan has {len(codecs)}",
            hint="name the measured codec with --codec",
        )
    return {f"{codecs[0]}.loader_clips": rate("loader")}


def _read_report(path: Path, key: str, kind: type[_Report], command: str) -> dict[str, Any]:
    """Read a report.

    Args:
        path: The file.
        key: A key that tells such a report from other JSON files.
        kind: The model of the report.
        command: The command that writes it, for messages.

    Raises:
        ConfigError: The file is no such report.
    """
    hint = f"give a report of `rhofast {command}`"
    content = read_bounded(path, raises=ConfigError, max_bytes=MAX_BYTES, hint=hint)
    values = parse_record(content, dict[str, Any], where=path, raises=ConfigError, hint=hint)
    if key not in values:
        raise ConfigError(f"{path}: not a report of `rhofast {command}`")
    parse_record(content, kind, where=path, raises=ConfigError, hint=hint)
    return values
