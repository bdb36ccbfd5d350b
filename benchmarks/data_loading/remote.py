"""Measure reading a remote set by range requests: bytes, rate, memory, time to the first batch, and equal batches.

    python -m benchmarks.data_loading.remote VIDEOS... [--out PATH] [--folder FOLDER] [--parts first,memory,...]

The videos are repeated to 35 seconds and stored as jpeg, h264 and hevc; sets of many shards are links to these. A web
server on this machine, in a process of its own, answers each request after an injected latency. Clips are two of eight
frames at stride 8 and 30 frames per second. Rates are measured in turns, on files and by ranges, by a process that has
all cores but one, which is the server's alone: what the server costs is no cost of the loader. The results are written
to PATH.json and PATH.md, after each part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data_loading.remote_parts import (
    BATCH,
    CODECS,
    LATENCY_S,
    compare_batches,
    measure_epoch,
    measure_first_batch,
    measure_gaps,
    measure_memory,
    measure_rates,
)
from benchmarks.gpu.sets import repeat
from benchmarks.machine import facts_line, facts_of_the_machine, find_videos
from rhofast.config.schema import DataConfig
from rhofast.data.types import VideoRecord
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.listing import Listing
from rhofast.ingest.transcode import TranscodeSettings, find_ffmpeg

PACKAGES = ("torch", "numpy", "obstore", "nvidia-dali-cuda130")
SECONDS = 35
MOST = {"jpeg": 1.3, "h264": 1.15, "hevc": 1.15}  # bytes fetched per byte used
LEAST_SAVING, LEAST_RATE, FIRST_BATCH_S, MOST_GROWTH = 5.0, 0.9, 5.0, 0.03

Bar = tuple[str, str, str, bool]  # what, its limit, what was measured, whether it is met


def make_sets(videos: list[Path], out: Path, samples: int) -> None:
    """Store the videos, repeated to 35 seconds, with each codec, and list their shards until there are `samples`."""
    for number, video in enumerate(videos):
        once, long = out / f"{number}_once.mp4", out / f"{number}.mp4"  # a source without times cannot be looped itself
        ffmpeg = [find_ffmpeg(), "-v", "error", "-y"]
        encode = ["-an", "-vf", "fps=30,scale=-2:256,setsar=1", "-crf", "16", "-preset", "veryfast", "-t", str(SECONDS)]
        subprocess.run([*ffmpeg, "-i", str(video), *encode, str(once)], check=True)
        loop = ["-stream_loop", "-1", "-i", str(once), "-t", str(SECONDS), "-c", "copy"]
        subprocess.run([*ffmpeg, *loop, str(long)], check=True)
    records = [VideoRecord(key=f"v{number}", path=out / f"{number}.mp4") for number in range(len(videos))]
    for name, codec in CODECS.items():
        settings = BuildSettings(
            name=name, split="train", codec=codec, transcode=TranscodeSettings(short_side=256), samples_per_shard=2
        )
        with Listing(records) as listing:
            build_shards(listing, out / f"{name}_once", settings, LocalProcesses(2))
        repeat(out / f"{name}_once", out / name, samples)


def page(result: dict[str, Any]) -> str:
    """Return the results as Markdown: the bars, then what they were taken from."""
    lines = ["# Reading remote shards by range requests", ""]
    lines += [
        f"{result['videos']} videos of {SECONDS} s, two clips of 8 frames at stride 8; batches of {BATCH}; a server on "
        f"the same machine answers {1000 * LATENCY_S:g} ms after each request, where nothing else is said.",
        "",
        "| bar | limit | measured | |",
        "|---|--:|--:|---|",
    ]
    lines += [
        f"| {what} | {limit} | {value} | {'met' if met else 'missed'} |" for what, limit, value, met in result["bars"]
    ]
    for part, table in (("gaps", _gaps), ("rates", _rates), ("memory", _memory), ("first", _first)):
        if part in result:
            lines += ["", *table(result[part])]
    return "\n".join([*lines, "", facts_line(result["facts"], result["load"]), ""])


def _gaps(gaps: dict[str, Any]) -> list[str]:
    lines = [
        "What travels, without decoding, and what `rhofast plan` says of it:",
        "",
        "| codec | gap in kB | requests per video | planned | kB per video | planned | bytes fetched per byte used "
        "| CPU ms per video | videos/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in gaps.items():
        lines += [
            f"| {name} | {row['gap_kb']} | {row['requests_per_video']:.2f} | {row['planned_requests']:.2f} | "
            f"{row['bytes_per_video'] / 1e3:.0f} | {row['planned_bytes'] / 1e3:.0f} | {row['fetched_per_used']:.3f} | "
            f"{row['cpu_ms_per_video']:.2f} | {row['rate']:.0f} |"
            for row in rows
        ]
    spreads = ", ".join(f"{rows[0]['spread']:.2f} ({name})" for name, rows in gaps.items())
    return [*lines, "", f"Standard deviation of the logarithm of bytes per frame, second by second: {spreads}."]


def _rates(rates: dict[str, Any]) -> list[str]:
    cores = next(iter(rates.values()))["cores"]
    lines = [
        f"Rates of the loader on {cores} core{'' if cores == 1 else 's'}, with another one for the server, and CPU "
        "time per video. Medians of turns, and quartiles of the share:",
        "",
        "| codec | files, videos/s | CPU in ms | by ranges, videos/s | CPU in ms | server's CPU in ms "
        "| share of the rate on files | quartiles | at 5 ms | at 200 ms |",
        "|---|--:|--:|--:|--:|--:|--:|:-:|--:|--:|",
    ]
    return lines + [
        f"| {name} | {row['files']:.1f} | {row['files_cpu_ms']:.1f} | {row['ranges']:.1f} | "
        f"{row['ranges_cpu_ms']:.1f} | {row['server_cpu_ms']:.1f} | {row['share']:.3f} | "
        f"{row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f} | {row['5 ms']:.2f} | {row['200 ms']:.2f} |"
        for name, row in rates.items()
    ]


def _memory(memory: dict[str, Any]) -> list[str]:
    lines = [
        "Memory over batches of two videos, with garbage collected as in training, every 200 steps, and looked at "
        "before that. The pages of mapped indices count as resident and belong to the page cache; a process maps at "
        "most 1,024 indices:",
        "",
        "| codec | batch | RSS in MB | anonymous memory in MB | mapped indices | open descriptors |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, found in memory.items():
        lines += [
            f"| {name} | {row['batch']:,} | {row['rss']:.0f} | {row['anonymous']:.0f} | {row['indices']:,} | "
            f"{row['descriptors']} |"
            for row in found["rows"][3::4]
        ]
    return lines


def _first(first: dict[str, Any]) -> list[str]:
    return [
        f"First batch of 64 videos of {first['samples']:,} samples in 2,000 shards: the set is open after "
        f"{first['open_s']:.2f} s, the batch is there after {first['first_batch_s']:.2f} s (from files: "
        f"{first['first_batch_files_s']:.2f} s). Importing took {first['imports_s']:.1f} s before.",
    ]


def bars(result: dict[str, Any], gap: float) -> list[Bar]:
    """Return the bars of the parts that were measured.

    Args:
        result: What was measured.
        gap: The default of data.range_gap_kb.
    """
    found: list[Bar] = []
    for name in CODECS:
        if "gaps" in result:
            value = next(row for row in result["gaps"][name] if row["gap_kb"] == gap)["fetched_per_used"]
            what = f"{name}: bytes fetched per byte used, with the default gap of {gap:g} kB"
            found.append((what, f"<= {MOST[name]}", f"{value:.3f}", value <= MOST[name]))
        if "epoch" in result:
            saving = result["epoch"][name]["whole"] / result["epoch"][name]["ranges"]
            what = f"{name}: bytes of the whole set per byte that an epoch makes the server send, with all indices"
            found.append((what, f">= {LEAST_SAVING:g}", f"{saving:.1f}", saving >= LEAST_SAVING))
        if "rates" in result:
            share = result["rates"][name]["share"]
            what = f"{name}: rate at {1000 * LATENCY_S:g} ms, of that on files"
            found.append((what, f">= {LEAST_RATE}", f"{share:.3f}", share >= LEAST_RATE))
        if "same" in result:
            same = result["same"][name]
            what = f"{name}: same batches as from files, resumed on two ranks, too"
            found.append((what, "equal", "equal" if same else "different", same))
    for name, watched in result.get("memory", {}).items():
        for key, what in (("rss", "resident"), ("anonymous", "anonymous")):
            growth = watched["growth"][key]
            what = f"{name}: growth of {what} memory, third to last quarter of {watched['batches']:,} batches"
            found.append((what, f"<= {MOST_GROWTH:.0%}", f"{growth:.1%}", growth <= MOST_GROWTH))
    if "first" in result:
        seconds = result["first"]["first_batch_s"]
        what = f"first batch of {result['first']['samples']:,} samples at {1000 * LATENCY_S:g} ms, with opening"
        found.append((what, f"< {FIRST_BATCH_S:g} s", f"{seconds:.2f} s", seconds < FIRST_BATCH_S))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--folder", type=Path, help="folder for the sets; an existing one is used as it is")
    parser.add_argument("--set-samples", type=int, default=2000, help="samples of the sets of 35-second videos")
    parser.add_argument("--most-videos", type=int, default=6, help="videos that are stored, at most")
    parser.add_argument("--gap-samples", type=int, default=512, help="samples that are fetched for each gap")
    parser.add_argument("--rate-batches", type=int, default=8, help="of jpeg per turn; half as many of streams")
    parser.add_argument("--rounds", type=int, default=3, help="of the first batch")
    parser.add_argument("--turns", type=int, default=15, help="of files and ranges")
    parser.add_argument("--batches", type=int, default=2000, help="batches over which memory is watched")
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the set with 2,000 shards")
    parser.add_argument(
        "--parts", default="first,gaps,epoch,rates,same,memory", help="what to measure; adds to what OUT has"
    )
    parser.add_argument("--out", type=Path, default=Path("remote"))
    options = parser.parse_args()
    out = options.out.with_suffix(".json")
    facts = facts_of_the_machine(PACKAGES)
    load = float(Path("/proc/loadavg").read_text().split()[0])
    with tempfile.TemporaryDirectory() as folder:
        root = options.folder or Path(folder)
        videos = find_videos(options.videos)[: options.most_videos]
        if not (root / "hevc").is_dir():
            root.mkdir(parents=True, exist_ok=True)
            make_sets(videos, root, options.set_samples)
        result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        result |= {"facts": facts, "load": load, "videos": len(videos)}
        half = max(1, options.rate_batches // 2)  # streams take four times as long
        batches = {name: options.rate_batches if name == "jpeg" else half for name in CODECS}
        parts: dict[str, Callable[[], Any]] = {
            "first": lambda: measure_first_batch(root, options.samples, options.rounds),
            "gaps": lambda: {name: measure_gaps(root, name, options.gap_samples) for name in CODECS},
            "epoch": lambda: {name: measure_epoch(root, name) for name in CODECS},
            "rates": lambda: {name: measure_rates(root, name, batches[name], options.turns) for name in CODECS},
            "same": lambda: {name: compare_batches(root, name) for name in CODECS},
            "memory": lambda: {name: measure_memory(root, name, options.batches) for name in ("jpeg", "h264")},
        }
        for part in options.parts.split(","):
            began = time.perf_counter()
            result[part] = parts[part]()
            print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
            result["bars"] = bars(result, DataConfig().range_gap_kb)
            out.write_text(json.dumps(result, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
