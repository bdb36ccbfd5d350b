"""Combine the measurements of `rhofast bench` over rounds and ranks into one report, and draw it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rhofast.data.loader.stats import FED, LoaderStats
from rhofast.storage.files import replacing

Source = Literal["loader", "memory"]

_CONTENTION = 1.05  # headspace above which a loader that is always ready still slows the steps
_BLUE, _ORANGE, _GRAY = "#2563a8", "#d97706", "#c9ccd2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The measurement of one rank in one round, with batches from one source.

    Attributes:
        source: Source of the batches.
        batches: Number of batches.
        clips: Number of clips.
        frames: Number of frames.
        seconds: Seconds of the whole measurement, including the work of the device.
        blocked_s: Seconds in which the host was blocked in `next(loader)`.
        device_idle_s: Seconds in which a CUDA device had nothing to do for lack of a batch. None on a CPU.
        stats: Statistics of the loader for this time. None where batches came from memory.
        advice: Advice of the loader for this time. None where batches came from memory.
        loader_idle: Whether the loader was idle at the beginning of a measurement from memory.
    """

    source: Source
    batches: int
    clips: int
    frames: int
    seconds: float
    blocked_s: float
    device_idle_s: float | None
    stats: LoaderStats | None
    advice: str | None
    loader_idle: bool

    @property
    def data_wait_share(self) -> float:
        """Share of the time in which the device had nothing to do for lack of a batch, as training logs it."""
        return (self.blocked_s if self.device_idle_s is None else self.device_idle_s) / self.seconds


def summarize(ranks: list[list[Measurement]]) -> dict[str, Any]:
    """Combine the measurements of all ranks.

    Args:
        ranks: Per rank, its measurements in order.

    Returns:
        `measurements`, each of all ranks; `summary`, per source the median, lowest and highest value over its rounds;
        `headspace`, where there are two sources; and, where a loader was measured, the median shares of its `stages`
        and the `advice` of the measurement with the median wait.
    """
    measurements = [_merge(same) for same in zip(*ranks, strict=True)]
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for source in sorted({measurement["source"] for measurement in measurements}):
        rounds_of_source = [measurement["numbers"] for measurement in measurements if measurement["source"] == source]
        summary[source] = {
            name: _spread([numbers[name] for numbers in rounds_of_source])
            for name in rounds_of_source[0]
            if all(numbers[name] is not None for numbers in rounds_of_source)
        }
    out: dict[str, Any] = {"measurements": measurements, "summary": summary}
    if len(summary) == 2:
        from_loader, from_memory = (
            [measurement["numbers"]["step_seconds"] for measurement in measurements if measurement["source"] == source]
            for source in ("loader", "memory")
        )
        out["headspace"] = _spread([a / b for a, b in zip(from_loader, from_memory, strict=True)])
    rounds = [measurement["stages"] for measurement in measurements if "stages" in measurement]
    if rounds:
        out["stages"] = {
            stage: {name: statistics.median(stages[stage][name] for stages in rounds) for name in shares}
            for stage, shares in rounds[0].items()
        }
    loaded = [measurement for rank in ranks for measurement in rank if measurement.stats is not None]
    if loaded:
        loaded.sort(key=lambda measurement: measurement.data_wait_share)
        out["advice"] = loaded[len(loaded) // 2].advice
        if loaded[0].device_idle_s is None:
            fed = summary["loader"]["readiness"]["median"] >= FED
        else:  # The host runs ahead: that it finds the queue empty says nothing.
            fed = (waited := summary["loader"]["data_wait_share"]["median"]) <= 1 - FED
            if fed:
                out["advice"] = f"the device is the limit: it waits for data {waited:.1%} of the time"
        if "headspace" in out and fed and out["headspace"]["median"] > _CONTENTION:
            out["advice"] += (
                f"; a step still takes {out['headspace']['median']:.2f} times as long while the loader works, because "
                "both use the same cores or GPU"
            )
    return out


def _merge(same: tuple[Measurement, ...]) -> dict[str, Any]:
    """Merge one measurement of all ranks: sums of clips, the seconds of the slowest rank, the worst share."""
    seconds = max(measurement.seconds for measurement in same)
    numbers: dict[str, float | None] = {
        "clips_per_second": sum(measurement.clips for measurement in same) / seconds,
        "frames_per_second": sum(measurement.frames for measurement in same) / seconds,
        "step_seconds": seconds / same[0].batches,
        "data_wait_share": max(measurement.data_wait_share for measurement in same),
        "host_blocked_share": max(measurement.blocked_s / measurement.seconds for measurement in same),
    }
    merged: dict[str, Any] = {
        "source": same[0].source,
        "loader_idle": all(rank.loader_idle for rank in same),
        "numbers": numbers,
    }
    stats = [measurement.stats for measurement in same if measurement.stats is not None]
    if stats:
        used, frames = sum(rank.bytes_used for rank in stats), sum(rank.frames for rank in stats)
        read, decoded = sum(rank.bytes_read for rank in stats), sum(rank.frames_decoded for rank in stats)
        numbers |= {
            "readiness": min(rank.readiness for rank in stats),
            "gigabytes_per_second": read / seconds / 1e9,
            "read_amplification": read / used if used else None,
            "decode_amplification": decoded / frames if decoded else None,
            "bad_samples": sum(rank.bad for rank in stats),
        }
        shares = [rank.shares for rank in stats]
        merged["stages"] = {
            stage: {
                name: statistics.fmean(asdict(each[stage])[name] for each in shares)
                for name in ("busy", "starved", "blocked")
            }
            for stage in shares[0]
        }
    return {**merged, "ranks": [asdict(measurement) for measurement in same]}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def draw(report: dict[str, Any], target: Path) -> None:
    """Write a PNG of a report: the speed of each round, and the time shares of the loader's stages.

    Args:
        report: Report of `bench`.
        target: The PNG file.
    """
    shares = report.get("stages", {})
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9.6 if shares else 5.4, 3.4), layout="constrained")
        axes = figure.subplots(1, 2 if shares else 1, squeeze=False)[0]
        for source, color in (("loader", _BLUE), ("memory", _ORANGE)):
            speeds = [
                measurement["numbers"]["clips_per_second"]
                for measurement in report["measurements"]
                if measurement["source"] == source
            ]
            if speeds:
                rounds = range(1, len(speeds) + 1)
                axes[0].plot(rounds, speeds, "o", color=color, label=f"batches from {source}")
                axes[0].axhline(statistics.median(speeds), color=color, linewidth=1, linestyle="--")
                axes[0].set_xticks(rounds)
        axes[0].set_ylim(
            0, 1.1 * max(measurement["numbers"]["clips_per_second"] for measurement in report["measurements"])
        )
        axes[0].set_xlabel("round (dashed: median)")
        axes[0].set_ylabel("clips per second")
        axes[0].set_title(f"bench {report['what']}: speed", loc="left", fontweight="bold")
        axes[0].legend(frameon=False, loc="lower right")
        if shares:
            names = list(shares)[::-1]  # the first stage on top
            left = [0.0] * len(names)
            for state, color in (("busy", _BLUE), ("starved", _ORANGE), ("blocked", _GRAY)):
                widths = [shares[name][state] for name in names]
                axes[1].barh(names, widths, left=left, color=color, label=state, height=0.6)
                left = [start + width for start, width in zip(left, widths, strict=True)]
            axes[1].set_xlim(0, 1)
            axes[1].xaxis.set_major_formatter(PercentFormatter(1.0))
            axes[1].set_title("time of the loader's stages", loc="left", fontweight="bold")
            axes[1].legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
        with replacing(target) as aside:
            figure.savefig(aside, format="png", dpi=150)
