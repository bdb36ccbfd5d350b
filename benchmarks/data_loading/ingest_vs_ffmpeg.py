"""`rhofast shard` against bare ffmpeg processes that do the same transcode, as many as cores, in one go.

    python -m benchmarks.data_loading.ingest_vs_ffmpeg VIDEO_OR_FOLDER... [--out benchmarks/results]

The bare processes run the very commands that rhofast runs, and leave nothing but files; rhofast also lists, probes,
measures, checksums, indexes, writes tars and flushes them to the disk. Contenders take turns, for several rounds, and
only the ratios within a round mean something. benchmarks/README.md says what is measured and what is not.
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

RHOFAST, BARE, TYPED = "rhofast shard", "bare ffmpeg, the same commands", "bare ffmpeg, its own choice of threads"
COLUMNS = ("codec", "contender", "videos/s, median", "lowest to highest", "rhofast is at")
SETTINGS = TranscodeSettings()

console = Console(width=120)


def run_rhofast(codec: Codec, videos: list[Path], folder: Path, workers: int) -> None:
    """The whole job, from an empty folder to a complete set."""
    records = [VideoRecord(key=f"v{number:05d}", path=path) for number, path in enumerate(videos)]
    settings = BuildSettings(name="bench", split="train", codec=codec, transcode=SETTINGS, samples_per_shard=4)
    with Listing(records) as listing:
        build_shards(listing, folder / "set", settings, LocalProcesses(workers))


def run_bare(codec: Codec, videos: list[Path], folder: Path, workers: int) -> None:
    run_commands(commands(codec, videos, folder), workers)


def run_typed(codec: Codec, videos: list[Path], folder: Path, workers: int) -> None:
    run_commands([without_threads(command) for command in commands(codec, videos, folder)], workers)


def commands(codec: Codec, videos: list[Path], folder: Path) -> list[list[str]]:
    return [
        ffmpeg_command(path, probe(path), codec, SETTINGS, folder / f"{number}.mp4")
        for number, path in enumerate(videos)
    ]


def without_threads(command: list[str]) -> list[str]:
    """The command without its limits to one thread."""
    kept: list[str] = []
    parts = iter(command)
    for part in parts:
        if part in ("-threads", "-filter_threads", "-filter_complex_threads"):
            next(parts)
        else:
            kept.append(part)
    return kept


def run_commands(todo: list[list[str]], workers: int) -> None:
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
    """Videos a second of each contender in each round."""
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            with (
                console.status(f"{codec.name}: round {turn + 1} of {rounds}, {name}"),
                tempfile.TemporaryDirectory() as folder,
            ):
                began = time.perf_counter()
                CONTENDERS[name](codec, videos, Path(folder), workers)
                speeds[name].append(len(videos) / (time.perf_counter() - began))
    return speeds


def rows(codec: str, speeds: dict[str, list[float]]) -> list[tuple[str, ...]]:
    made = []
    for name, each in speeds.items():
        shares = [mine / theirs for mine, theirs in zip(speeds[RHOFAST], each, strict=True)]
        share = "" if name == RHOFAST else f"{statistics.median(shares):.2f} of it"
        made.append((codec, name, f"{statistics.median(each):.2f}", f"{min(each):.2f} to {max(each):.2f}", share))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--codec", action="append", choices=("jpeg", "h264", "hevc"), help="default: jpeg and h264")
    parser.add_argument("--entries", type=int, default=88, help="the files are repeated to so many videos")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of each contender")
    parser.add_argument("--rounds", type=int, default=3)
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
    foot = f"{options.entries} videos from {', '.join(path.name for path in found)}; {options.workers} at once."
    text = "\n".join([*lines, "", foot, "", facts_line(facts, load), ""])
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "ingest_vs_ffmpeg.json").write_text(json.dumps(report, indent=1))
        (options.out / "ingest_vs_ffmpeg.md").write_text(text)


if __name__ == "__main__":
    main()
