"""Measure reading a remote set by range requests: bytes, rate, memory, time to the first batch, and equal batches.

    python -m benchmarks.data_loading.remote VIDEOS... [--batches 2000] [--samples 1000000] [--out PATH]

The videos are repeated to 35 seconds and stored as jpeg, h264 and hevc; sets of many shards are links to these. A web
server on this machine, in a process of its own, answers each request after an injected latency; it shares the cores
with the loader. Clips are two of eight frames at stride 8 and 30 frames per second. The results are written to
PATH.json and PATH.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from benchmarks.data_loading.million_samples import make_set
from benchmarks.data_loading.range_server import serving_elsewhere
from benchmarks.gpu.sets import repeat
from benchmarks.machine import facts_line, facts_of_the_machine, find_videos
from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec, HevcCodec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.format.dataset import open_folder
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sources import open_training
from rhofast.data.types import VideoRecord
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.listing import Listing
from rhofast.ingest.transcode import TranscodeSettings, find_ffmpeg

PACKAGES = ("torch", "numpy", "obstore", "nvidia-dali-cuda130")
SECONDS = 35
CODECS: dict[str, Codec] = {"jpeg": JpegCodec(), "h264": H264Codec(gop=16), "hevc": HevcCodec(gop=16)}
CLIPS = ClipConfig(num_clips=2, num_frames=8, frame_stride=8, fps=30)
GAPS_KB = (0, 8, 16, 32, 64, 128)
BATCH = 16
MOST = {"jpeg": 1.3, "h264": 1.15, "hevc": 1.15}  # bytes fetched per byte used
LEAST_SAVING, LEAST_RATE, FIRST_BATCH_S = 5.0, 0.9, 5.0


def make_sets(videos: list[Path], out: Path, samples: int) -> None:
    """Store the videos, repeated to 35 seconds, with each codec, and list their shards until there are `samples`."""
    for number, video in enumerate(videos):
        command = [find_ffmpeg(), "-v", "error", "-stream_loop", "-1", "-i", str(video), "-t", str(SECONDS), "-an"]
        command += ["-vf", "fps=30,scale=-2:256", "-crf", "16", "-preset", "veryfast", str(out / f"{number}.mp4")]
        subprocess.run(command, check=True)
    records = [VideoRecord(key=f"v{number}", path=out / f"{number}.mp4") for number in range(len(videos))]
    for name, codec in CODECS.items():
        settings = BuildSettings(
            name=name, split="train", codec=codec, transcode=TranscodeSettings(short_side=256), samples_per_shard=2
        )
        with Listing(records) as listing:
            build_shards(listing, out / f"{name}_once", settings, LocalProcesses(2))
        repeat(out / f"{name}_once", out / name, samples)


def open_loader(where: str, cache: Path, rank: int = 0, ranks: int = 1, **options: Any) -> TrainLoader:
    batch_size = options.pop("batch_size", BATCH)
    data = DataConfig(train=where, cache=cache, threads=2, decode_threads=2, **options)
    sources = open_training(data, clips=CLIPS)
    return TrainLoader(
        Mixture(sources.sets, sources.weights),
        clips=CLIPS,
        augment=AugmentConfig(size=112),
        data=data,
        batch_size=batch_size,
        seed=0,
        rank=rank,
        world_size=ranks,
    )


@contextmanager
def remote(root: Path, latency_s: float) -> Iterator[tuple[str, Path]]:
    """Serve a folder; yield its address and an empty folder for a cache."""
    with serving_elsewhere(root, latency_s) as url, tempfile.TemporaryDirectory() as cache:
        yield url, Path(cache)


def counts(url: str) -> tuple[int, int]:
    """Return how many requests for tars the server has had, and the bytes that it sent for them."""
    with urlopen(f"{url}/_counts") as answer:
        found = json.load(answer)
    requests, sent = (
        sum(count for name, count in found[key].items() if name.endswith(".tar")) for key in ("requests", "sent")
    )
    return requests, sent


def rate(where: str, cache: Path, batches: int, **options: Any) -> dict[str, float]:
    """Return videos per second of a loader after its first batches, and what its statistics count."""
    with open_loader(where, cache, **options) as loader:
        for _ in range(3):
            next(loader)
        began, before = time.perf_counter(), loader.stats
        for _ in range(batches):
            next(loader)
        seconds, stats = time.perf_counter() - began, loader.stats.since(before)
    return {"rate": batches * BATCH / seconds, "read": stats.bytes_read, "used": stats.bytes_used}


def measure_gaps(root: Path, name: str, batches: int) -> list[dict[str, float]]:
    """Return requests per video, bytes fetched per byte used, and the rate, for each gap, at 50 ms."""
    rows = []
    for gap in GAPS_KB:
        with remote(root / name, 0.05) as (url, cache):
            result = rate(url, cache, batches, remote="ranges", range_gap_kb=gap)
            requests, sent = counts(url)
        videos = sent / (result["read"] / (batches * BATCH))
        rows.append(
            {
                "gap_kb": gap,
                "requests_per_video": requests / videos,
                "bytes_per_video": result["read"] / (batches * BATCH),
                "rate": result["rate"],
            }
        )
        # Without a gap, what is fetched is what a local set is read for: whole units, and nothing between them.
        rows[-1]["fetched_per_used"] = rows[-1]["bytes_per_video"] / rows[0]["bytes_per_video"]
        print(name, rows[-1], flush=True)
    return rows


def measure_rates(root: Path, name: str, batches: int, rounds: int) -> dict[str, float]:
    """Return the median rates on files and at 50 ms, in alternating rounds, and one rate at other latencies."""
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            rates.setdefault("files", []).append(rate(str(root / name), Path(cache), batches)["rate"])
        for latency in (0.05,) if number else (0.005, 0.05, 0.2):
            with remote(root / name, latency) as (url, cache):
                rates.setdefault(f"{1000 * latency:g} ms", []).append(
                    rate(url, cache, batches, remote="ranges")["rate"]
                )
    print(name, rates, flush=True)
    return {key: statistics.median(values) for key, values in rates.items()}


def rss_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def measure_memory(root: Path, batches: int) -> dict[str, Any]:
    """Return the resident memory over many small batches by ranges, at 50 ms."""
    with remote(root / "jpeg", 0.05) as (url, cache), open_loader(url, cache, remote="ranges", batch_size=2) as loader:
        memory = []
        for number in range(batches):
            next(loader)
            if number % max(1, batches // 20) == 0:
                memory.append(rss_mb())
                print(f"batch {number}: {memory[-1]:.0f} MB", flush=True)
        memory.append(rss_mb())
    half = memory[len(memory) // 2 :]
    return {"batches": batches, "mb": memory, "growth_of_second_half": max(half) / half[0] - 1}


FIRST = """
import sys, time
from pathlib import Path
began = time.perf_counter()
from benchmarks.data_loading.remote import open_loader
imported = time.perf_counter()
loader = open_loader(sys.argv[1], Path(sys.argv[2]), remote="ranges", batch_size=64)
opened = time.perf_counter()
views = next(loader)
print(imported - began, opened - imported, time.perf_counter() - imported, flush=True)
loader.close()
"""


def measure_first_batch(root: Path, samples: int, rounds: int) -> dict[str, Any]:
    """Return the seconds from before the set is opened to the first batch of 64 videos, in fresh processes."""
    make_set(root / "large", samples=samples, shards=min(2000, samples), frames=300)
    taken = []
    for _ in range(rounds):
        with remote(root / "large", 0.05) as (url, cache):
            done = subprocess.run(
                [sys.executable, "-c", FIRST, url, str(cache)], check=True, capture_output=True, text=True
            )
            taken.append([float(number) for number in done.stdout.split()])
            print("first batch", taken[-1], flush=True)
    shutil.rmtree(root / "large")
    _, opened, first = (statistics.median(column) for column in zip(*taken, strict=True))
    return {"samples": samples, "open_s": opened, "first_batch_s": first}


def digests(loader: TrainLoader, steps: int, state: dict[str, Any] | None = None) -> list[str]:
    with loader:
        if state is not None:
            loader.load_state_dict(state)
        found = []
        for _ in range(steps):
            found.append(hashlib.sha256(np.ascontiguousarray(next(loader).pixels.numpy()).data).hexdigest())
    return found


def compare_batches(root: Path, name: str) -> bool:
    """Return whether batches by ranges are those of the files: from the start, and resumed on two ranks."""
    with remote(root / name, 0.005) as (url, cache):
        local = digests(open_loader(str(root / name), cache), 6)
        if local != digests(open_loader(url, cache, remote="ranges"), 6):
            return False
        with open_loader(url, cache, remote="ranges") as begun:
            for _ in range(3):
                next(begun)
            state = begun.state_dict()
        for rank in (0, 1):
            there = digests(open_loader(url, cache, rank, 2, remote="ranges"), 3, state)
            here = digests(open_loader(str(root / name), cache, rank, 2), 3, state)
            if there != here:
                return False
    return True


def page(result: dict[str, Any]) -> str:
    lines = ["# Reading remote shards by range requests", ""]
    lines += [
        f"{result['videos']} videos of {SECONDS} s, two clips of 8 frames at stride 8; batches of {BATCH}; the server "
        "is on the same machine and answers after the latency.",
        "",
        "| codec | gap in kB | requests per video | kB per video | bytes fetched per byte used | videos/s at 50 ms |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, rows in result["gaps"].items():
        lines += [
            f"| {name} | {row['gap_kb']} | {row['requests_per_video']:.1f} | {row['bytes_per_video'] / 1e3:.0f} | "
            f"{row['fetched_per_used']:.3f} | {row['rate']:.1f} |"
            for row in rows
        ]
    lines += ["", "| codec | files, videos/s | 5 ms | 50 ms | 200 ms | 50 ms / files |", "|---|--:|--:|--:|--:|--:|"]
    for name, rates in result["rates"].items():
        cells = " | ".join(f"{rates[key]:.1f}" for key in ("files", "5 ms", "50 ms", "200 ms"))
        lines.append(f"| {name} | {cells} | {rates['50 ms'] / rates['files']:.2f} |")
    lines += ["", "| bar | limit | measured | |", "|---|--:|--:|---|"]
    lines += [
        f"| {what} | {limit} | {value} | {'met' if met else 'missed'} |" for what, limit, value, met in result["bars"]
    ]
    return "\n".join([*lines, "", facts_line(result["facts"]), ""])


def bars(result: dict[str, Any], gap: float) -> list[tuple[str, str, str, bool]]:
    """Return each bar: what, its limit, what was measured, whether it is met."""
    found = []
    for name, rows in result["gaps"].items():
        row = next(row for row in rows if row["gap_kb"] == gap)
        value, saving = row["fetched_per_used"], result["whole"][name] / row["bytes_per_video"]
        found.append((f"{name}: bytes fetched per byte used", f"<= {MOST[name]}", f"{value:.3f}", value <= MOST[name]))
        found.append(
            (f"{name}: bytes of whole shards per byte fetched, one epoch", f">= {LEAST_SAVING:g}", f"{saving:.1f}",
             saving >= LEAST_SAVING)
        )  # fmt: skip
        share = result["rates"][name]["50 ms"] / result["rates"][name]["files"]
        found.append(
            (f"{name}: rate at 50 ms, of that on files", f">= {LEAST_RATE}", f"{share:.2f}", share >= LEAST_RATE)
        )
        found.append((f"{name}: same batches, resumed on two ranks, too", "equal", *_equal(result["same"][name])))
    memory, first = result["memory"], result["first"]
    growth = memory["growth_of_second_half"]
    found.append(
        (
            f"growth of memory in the second half of {memory['batches']:,} batches",
            "<= 3 %",
            f"{growth:.1%}",
            growth <= 0.03,
        )
    )
    seconds = first["first_batch_s"]
    found.append(
        (f"first batch of {first['samples']:,} samples at 50 ms", f"< {FIRST_BATCH_S:g} s", f"{seconds:.1f} s",
         seconds < FIRST_BATCH_S)
    )  # fmt: skip
    return found


def _equal(same: bool) -> tuple[str, bool]:
    return "equal" if same else "different", same


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--folder", type=Path, help="folder for the sets; an existing one is used as it is")
    parser.add_argument("--set-samples", type=int, default=2000, help="samples of the sets of 35-second videos")
    parser.add_argument("--gap-batches", type=int, default=12)
    parser.add_argument("--rate-batches", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=2000, help="batches over which memory is watched")
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the set with 2,000 shards")
    parser.add_argument("--parts", default="first,memory,same,gaps,rates", help="what to measure; adds to an old OUT")
    parser.add_argument("--out", type=Path, default=Path("remote"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.folder or Path(folder)
        videos = find_videos(options.videos)
        if not (root / "hevc").is_dir():
            root.mkdir(parents=True, exist_ok=True)
            make_sets(videos, root, options.set_samples)
        whole = {}
        for name in CODECS:
            info = open_folder(root / name).info
            whole[name] = sum(shard.bytes for shard in info.shards) / info.num_samples
        whole_page = options.out.with_suffix(".json")
        result: dict[str, Any] = json.loads(whole_page.read_text()) if whole_page.exists() else {}
        result |= {"facts": facts_of_the_machine(PACKAGES), "videos": len(videos), "whole": whole}
        parts: dict[str, Callable[[], Any]] = {
            "first": lambda: measure_first_batch(root, options.samples, options.rounds),
            "memory": lambda: measure_memory(root, options.batches),
            "same": lambda: {name: compare_batches(root, name) for name in CODECS},
            "gaps": lambda: {name: measure_gaps(root, name, options.gap_batches) for name in CODECS},
            "rates": lambda: {name: measure_rates(root, name, options.rate_batches, options.rounds) for name in CODECS},
        }
        for part in options.parts.split(","):
            result[part] = parts[part]()
            whole_page.write_text(json.dumps(result, indent=1) + "\n")
    if not result.keys() >= parts.keys():
        return
    result["bars"] = bars(result, DataConfig().range_gap_kb)
    whole_page.write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
