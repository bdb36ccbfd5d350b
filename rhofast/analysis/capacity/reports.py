"""Measurements for the capacity planner, from the reports of `rhofast shard --dry-run` and `rhofast bench`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhofast.analysis.capacity.options import PlannerOptions
from rhofast.analysis.capacity.quantities import Input, given, measured
from rhofast.config.schema import Config
from rhofast.data.codecs import build_codec
from rhofast.data.codecs.codec import Codec
from rhofast.errors import ConfigError


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

    def _tried(self) -> dict[str, Any]:
        return {result["codec"]["name"]: result for result in self.report["codecs"] if result["metrics"] is not None}


def read_dry_run(path: Path) -> DryRun:
    """Read a report of `rhofast shard --dry-run --report`; raise ConfigError if the file is no such report."""
    return DryRun(path=path, report=_read_report(path, "codecs", "shard --dry-run --report"))


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
    report = _read_report(path, "summary", "bench --out")
    planned: dict[str, Any] = config.model_dump(mode="json")
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
        if look_up(report["config"]) != look_up(planned):
            raise ConfigError(
                f"--bench {path}: measured with {key}={look_up(report['config'])!r}, but the plan has "
                f"{look_up(planned)!r}",
                hint="measure with the configuration of the plan",
            )
    if report["machine"]["device"] == "cpu":
        raise ConfigError(f"--bench {path}: measured on a CPU", hint="measure on a GPU, or omit --bench")
    source = f"{path}, on {report['machine']['device']}"

    def rate(batches_from: str) -> Input:
        total = report["summary"][batches_from]["clips_per_second"]["median"]
        return measured(total / report["world_size"], "clips/s", source)

    if "memory" in report["summary"]:
        return {"gpu_clips": rate("memory")}
    if report["what"] == "both":
        return {"gpu_clips": rate("loader")}
    if len(codecs) != 1:
        raise ConfigError(
            f"--bench {path}: it measured the loader with one codec, but the plan has {len(codecs)}",
            hint="name the measured codec with --codec",
        )
    return {f"{codecs[0]}.loader_clips": rate("loader")}


def _read_report(path: Path, key: str, command: str) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(report, dict) or key not in report:
        raise ConfigError(f"{path}: not a report of `rhofast {command}`")
    return report
