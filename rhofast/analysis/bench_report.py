"""What `rhofast bench` measured, turn by turn and rank by rank, as one report: numbers and a picture.

What it is not: it measures nothing (bench.py) and prints nothing (console.py).
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rhofast.data.loader.stats import FED, LoaderStats

Source = Literal["loader", "memory"]

_CROWDED = 1.05  # headspace from which on a loader that is always ready is worth a word, too
_BLUE, _ORANGE, _GRAY = "#2563a8", "#d97706", "#c9ccd2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one rank did in one round with batches from one source.

    seconds        of the whole turn, the device's work included
    wait_s         of those, the host was blocked in `next(loader)`: what training logs as data-wait
    device_wait_s  seconds in which the device's stream was done with a step and had no next batch yet; None on the CPU
    stats, advice  of the loader, in this time; None where batches came from memory
    rested         what was not to be measured had come to rest when the turn began
    """

    source: Source
    batches: int
    clips: int
    frames: int
    seconds: float
    wait_s: float
    device_wait_s: float | None
    stats: LoaderStats | None
    advice: str | None
    rested: bool


def summarize(ranks: list[list[Turn]]) -> dict[str, Any]:
    """The turns of all ranks as one: `turns`, for each source the `summary` of its rounds (median, lowest, highest),
    the `headspace` where there are two sources, and where there was a loader the median shares of its `stages` and the
    `advice` of the turn with the median wait."""
    turns = [_merge(same) for same in zip(*ranks, strict=True)]
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for source in sorted({turn["source"] for turn in turns}):
        every = [turn["numbers"] for turn in turns if turn["source"] == source]
        summary[source] = {
            name: _spread([numbers[name] for numbers in every])
            for name in every[0]
            if all(numbers[name] is not None for numbers in every)
        }
    out: dict[str, Any] = {"turns": turns, "summary": summary}
    if len(summary) == 2:
        fed, memory = (
            [turn["numbers"]["step_seconds"] for turn in turns if turn["source"] == source]
            for source in ("loader", "memory")
        )
        out["headspace"] = _spread([a / b for a, b in zip(fed, memory, strict=True)])
    rounds = [turn["stages"] for turn in turns if "stages" in turn]
    if rounds:
        out["stages"] = {
            stage: {name: statistics.median(one[stage][name] for one in rounds) for name in shares}
            for stage, shares in rounds[0].items()
        }
    loaded = [turn for rank in ranks for turn in rank if turn.stats is not None]
    if loaded:
        loaded.sort(key=lambda turn: turn.wait_s / turn.seconds)
        out["advice"] = loaded[len(loaded) // 2].advice
        readiness = summary["loader"]["readiness"]["median"]
        if "headspace" in out and readiness >= FED and out["headspace"]["median"] > _CROWDED:
            out["advice"] += (
                f"; and yet a step takes {out['headspace']['median']:.2f} times as long with the loader at work: the "
                "two share what they run on"
            )
    return out


def _merge(same: tuple[Turn, ...]) -> dict[str, Any]:
    """One round of all ranks: sums of what was done, the slowest one's seconds, the worst of the shares."""
    seconds = max(turn.seconds for turn in same)
    numbers: dict[str, float | None] = {
        "clips_per_second": sum(turn.clips for turn in same) / seconds,
        "frames_per_second": sum(turn.frames for turn in same) / seconds,
        "step_seconds": seconds / same[0].batches,
        "data_wait_share": max(turn.wait_s / turn.seconds for turn in same),
        "device_wait_share": max(
            (turn.device_wait_s / turn.seconds for turn in same if turn.device_wait_s is not None), default=None
        ),
    }
    merged: dict[str, Any] = {"source": same[0].source, "rested": all(turn.rested for turn in same), "numbers": numbers}
    stats = [turn.stats for turn in same if turn.stats is not None]
    if stats:
        used, frames = sum(one.bytes_used for one in stats), sum(one.frames for one in stats)
        read, decoded = sum(one.bytes_read for one in stats), sum(one.frames_decoded for one in stats)
        numbers |= {
            "readiness": min(one.readiness for one in stats),
            "gigabytes_per_second": read / seconds / 1e9,
            "read_amplification": read / used if used else None,
            "decode_amplification": decoded / frames if decoded else None,
            "bad_samples": sum(one.bad for one in stats),
        }
        shares = [one.shares for one in stats]
        merged["stages"] = {
            stage: {
                name: statistics.fmean(asdict(each[stage])[name] for each in shares)
                for name in ("busy", "starved", "blocked")
            }
            for stage in shares[0]
        }
    return {**merged, "ranks": [asdict(turn) for turn in same]}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def draw(report: dict[str, Any], target: Path) -> None:
    """A PNG of a report: the speed of each round, and how the loader's stages spent their time."""
    shares = report.get("stages", {})
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9.6 if shares else 5.4, 3.4), layout="constrained")
        axes = figure.subplots(1, 2 if shares else 1, squeeze=False)[0]
        for source, color in (("loader", _BLUE), ("memory", _ORANGE)):
            speeds = [turn["numbers"]["clips_per_second"] for turn in report["turns"] if turn["source"] == source]
            if speeds:
                rounds = range(1, len(speeds) + 1)
                axes[0].plot(rounds, speeds, "o", color=color, label=f"batches from {source}")
                axes[0].axhline(statistics.median(speeds), color=color, linewidth=1, linestyle="--")
                axes[0].set_xticks(rounds)
        axes[0].set_ylim(0, 1.1 * max(turn["numbers"]["clips_per_second"] for turn in report["turns"]))
        axes[0].set_xlabel("round (dashed: median)")
        axes[0].set_ylabel("clips a second")
        axes[0].set_title(f"bench {report['what']}: speed", loc="left", fontweight="bold")
        axes[0].legend(frameon=False, loc="lower right")
        if shares:
            names = list(shares)[::-1]  # the first stage on top
            left = [0.0] * len(names)
            for state, color in (("busy", _BLUE), ("starved", _ORANGE), ("blocked", _GRAY)):
                widths = [shares[name][state] for name in names]
                axes[1].barh(names, widths, left=left, color=color, label=state, height=0.6)
                left = [at + width for at, width in zip(left, widths, strict=True)]
            axes[1].set_xlim(0, 1)
            axes[1].xaxis.set_major_formatter(PercentFormatter(1.0))
            axes[1].set_title("time of the loader's stages", loc="left", fontweight="bold")
            axes[1].legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
        figure.savefig(target, dpi=150)
