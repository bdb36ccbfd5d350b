"""Compare `rhofast shard` with bare ffmpeg processes that do the same transcoding, one per core.

    python -m benchmarks.data_loading.ingest_vs_ffmpeg VIDEO_OR_FOLDER... [--out benchmarks/results]

The bare processes run the same commands as rhofast and only leave files; rhofast also lists, probes, measures,
checksums, indexes, writes tars and flushes them to the disk. The contenders alternate for several rounds, and only
ratios within a round are meaningful. benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import facts_line, facts_of_the_machine, find_videos
from rhofast.data.codecs import build_codec
from rhofast.data.codecs.codec import Codec
from rhofast.data.types import VideoRecord
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.listing import Listing
from rhofast.ingest.probe import probe
from rhofast.ingest.transcode import TranscodeSettings, encoder_version, ffmpeg_command

RHOFAST, BARE, TYPED = "rhofast shard", "bare ffmpeg, same commands", "bare ffmpeg, default threads"
COLUMNS = ("codec", "contender", "videos/s, median", "lowest to highest", "rhofast's speed relative to it")
SETTINGS = TranscodeSettings()

console = Console(width=120)


def run_rhofast(codec: Codec, videos: list[Path], folder: Path, workers: int) -> None:
    """Build a complete set from an empty folder."""
    records = [VideoRecord(key=f"v{number:05d}", path=path) for number, path in enumerate(videos)]
    settings = BuildSettings(name="bench", split="train", codec=codec, transcode=SETTINGS, samples_per_shard=4)
    with Listing(records) as listing:
        build_shards(listing, folder / "set", settings, LocalProcesses(workers))


def run_bare(codec: Codec, videos: list[Path], folder: Path, workers: int) -> None:
    """Run rhofast's commands."""
    run_commands(commands(codec, videos, folder), workers)


def run_typed(codec: Codec, videos: list[Path], folder: Path, workers: int) -> None:
    """Run rhofast's commands without their limits on threads."""
    run_commands([without_threads(command) for command in commands(codec, videos, folder)], workers)


def commands(codec: Codec, videos: list[Path], folder: Path) -> list[list[str]]:
    """Return rhofast's ffmpeg command for each video."""
    return [
        ffmpeg_command(path, probe(path), codec, SETTINGS, folder / f"{number}.mp4")
        for number, path in enumerate(videos)
    ]


def without_threads(command: list[str]) -> list[str]:
    """Return the command without its limits to one thread."""
    kept: list[str] = []
    arguments = iter(command)
    for argument in arguments:
        if argument in ("-threads", "-filter_threads", "-filter_complex_threads"):
            next(arguments)
        else:
            kept.append(argument)
    return kept


def run_commands(todo: list[list[str]], workers: int) -> None:
    """Run commands, `workers` at a time."""

    def run(command: list[str]) -> None:
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, todo))


CONTENDERS: dict[str, Callable[[Codec, list[Path], Path, int], None]] = {
    RHOFAST: run_rhofast,
    BARE: run_bare,
    TYPED: run_typed,
}


def measure(codec: Codec, videos: list[Path], workers: int, rounds: int) -> dict[str, list[float]]:
    """Return videos per second by contender and round."""
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            with (
                console.status(f"{codec.name}: round {number + 1} of {rounds}, {name}"),
                tempfile.TemporaryDirectory() as folder,
            ):
                began = time.perf_counter()
                CONTENDERS[name](codec, videos, Path(folder), workers)
                speeds[name].append(len(videos) / (time.perf_counter() - began))
    return speeds


def rows(codec: str, speeds: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """Return the rows of the table for one codec."""
    made = []
    for name, each in speeds.items():
        shares = [mine / theirs for mine, theirs in zip(speeds[RHOFAST], each, strict=True)]
        share = "" if name == RHOFAST else f"{statistics.median(shares):.2f}"
        made.append((codec, name, f"{statistics.median(each):.2f}", f"{min(each):.2f} to {max(each):.2f}", share))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument(
        "--codec",
        action="append",
        choices=("jpeg", "h264", "hevc"),
        help="codec; may be repeated (default: jpeg and h264)",
    )
    parser.add_argument(
        "--entries", type=int, default=88, help="number of videos; the files are repeated (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes per contender (default: one per core)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for ingest_vs_ffmpeg.json and ingest_vs_ffmpeg.md")
    options = parser.parse_args()

    found, load = find_videos(options.videos), os.getloadavg()[0]
    videos = [path.resolve() for path in itertools.islice(itertools.cycle(found), options.entries)]
    facts = facts_of_the_machine(("av", "pillow", "numpy", "pyarrow", "webdataset"))
    facts["versions"]["ffmpeg"] = encoder_version()
    report: dict[str, Any] = {"machine": facts, "entries": options.entries, "workers": options.workers, "speeds": {}}
    table = Table(*COLUMNS)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|--:|--:|--:|"]
    for name in options.codec or ["jpeg", "h264"]:
        speeds = measure(build_codec({"name": name}), videos, options.workers, options.rounds)
        report["speeds"][name] = speeds
        for row in rows(name, speeds):
            table.add_row(*row)
            lines.append(f"| {' | '.join(row)} |")
    console.print(table)
    foot = f"{options.entries} videos from {', '.join(path.name for path in found)}; {options.workers} at a time."
    text = "\n".join([*lines, "", foot, "", facts_line(facts, load), ""])
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "ingest_vs_ffmpeg.json").write_text(json.dumps(report, indent=1))
        (options.out / "ingest_vs_ffmpeg.md").write_text(text)


if __name__ == "__main__":
    main()
