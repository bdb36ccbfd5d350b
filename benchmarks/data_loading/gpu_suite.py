"""Measure the data path on a GPU and compare it with the CPU: the parts of gpu_suite.sh.

    python -m benchmarks.data_loading.gpu_suite PART VIDEOS --out FOLDER [--cpu]

Each part writes FOLDER/PART.json: whether it succeeded, its numbers, and lines for the summary. `shards` comes first
because it makes the sets that the others use. --cpu runs the same code at a small scale without a GPU, to check that it
runs; its numbers are meaningless. No part changes a setting of the GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import shutil
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import facts_of_the_machine, find_videos
from rhofast.analysis.bench import bench
from rhofast.config.load import load_config
from rhofast.config.schema import AugmentConfig, ClipConfig, Config, DataConfig
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec, HevcCodec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.codecs.stream_copy import CopyCodec
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.reader import Reader
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.types import Sample, VideoRecord
from rhofast.ingest.build import BuildSettings, build_shards
from rhofast.ingest.executors import LocalProcesses
from rhofast.ingest.listing import Listing
from rhofast.ingest.transcode import TranscodeSettings, find_ffmpeg

PACKAGES = ("torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu13", "av", "numpy")
CONFIG = Path(__file__).parents[2] / "configs" / "byol_slow_r50_8x8_rho2.toml"
SETS: dict[str, Codec] = {
    "jpeg": JpegCodec(),
    "h264_gop8": H264Codec(gop=8),
    "h264_gop16": H264Codec(gop=16),
    "h264_gop32": H264Codec(gop=32),
    "hevc_gop16": HevcCodec(gop=16),
    "copy": CopyCodec(),
}
WIDTHS = (340, 352)  # at 256 lines; H.264 codes whole blocks of 16 pixels, so both are coded as 352


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the measurements: on a GPU, or in the dry run."""

    videos: int
    seconds: float
    short_side: int
    size: int
    frames: int
    batch: int
    samples: int
    rounds: int
    batches: int
    threads: int
    soak_batches: int
    soak_seconds: float


FULL = Scale(
    videos=12,
    seconds=10.0,
    short_side=256,
    size=224,
    frames=8,
    batch=32,
    samples=256,
    rounds=5,
    batches=8,
    threads=8,
    soak_batches=1000,
    soak_seconds=25.0,
)
TINY = Scale(
    videos=3,
    seconds=3.0,
    short_side=64,
    size=32,
    frames=2,
    batch=2,
    samples=8,
    rounds=2,
    batches=2,
    threads=2,
    soak_batches=40,
    soak_seconds=10.0,
)


@dataclass(kw_only=True)
class Part:
    """One part of the suite.

    Attributes:
        videos: The source videos.
        work: Folder of the shard sets.
        scale: Sizes of the measurements.
        device: Device of the loader.
        results: The part's numbers.
        lines: The part's lines in the summary.
    """

    videos: list[Path]
    work: Path
    scale: Scale
    device: torch.device
    results: dict[str, Any]
    lines: list[str]

    def shards(self, name: str) -> ShardSet:
        """Open one of the sets."""
        return open_folder(self.work / name)

    def say(self, line: str) -> None:
        """Add a line to the summary and print it."""
        self.lines.append(line)
        print(line, flush=True)


def config_for(part: Part, name: str, *settings: str) -> Config:
    """Return a config for measurements of the loader alone."""
    scale = part.scale
    return load_config(
        None,
        [
            f"data.train={part.work / name}",
            f"data.threads={scale.threads}",
            f"data.decode_threads={scale.threads}",
            f"clips.num_frames={scale.frames}",
            f"augment.size={scale.size}",
            f"train.batch_size={scale.batch}",
            "train.epochs=200",
            *(['train.precision="bf16"'] if part.device.type == "cuda" else []),
            *settings,
        ],
    )


def measure(part: Part, label: str, name: str, *settings: str, rounds: int | None = None) -> None:
    """Measure the loader alone on one set; an error is recorded as the result."""
    try:
        report = bench(
            config_for(part, name, *settings),
            "loader",
            batches=part.scale.batches,
            rounds=rounds or part.scale.rounds,
        )
    except Exception as error:  # noqa: BLE001 - a setting that fails is a result too
        traceback.print_exc()
        part.results[label] = {"error": f"{type(error).__name__}: {error}"}
        part.say(f"{label}: FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    part.results[label] = {
        key: report[key]
        for key in ("summary", "stages", "advice", "warm_up", "config", "measurements")
        if key in report
    }
    numbers = report["summary"]["loader"]
    speed = numbers["clips_per_second"]
    more = "".join(
        f", {text} {numbers[key]['median']:.2f}"
        for key, text in (("decode_amplification", "decoded/used"), ("read_amplification", "read/used"))
        if key in numbers
    )
    part.say(
        f"{label}: {speed['median']:,.0f} clips/s ({speed['lowest']:,.0f} to {speed['highest']:,.0f}), "
        f"{numbers['gigabytes_per_second']['median']:.2f} GB/s{more}; {report['advice']}"
    )


def machine(part: Part) -> None:
    """Report GPU, driver, decoder libraries, and the capabilities that rhofast detects."""
    part.results["facts"] = facts_of_the_machine(PACKAGES)
    part.results["cores"] = len(os.sched_getaffinity(0))
    for library in ("libcuda.so.1", "libnvcuvid.so.1", "libnvidia-encode.so.1"):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            part.results[library] = str(error)
            part.say(f"{library}: MISSING ({error})")
        else:
            part.results[library] = True
            part.say(f"{library}: found")
    if (program := shutil.which("nvidia-smi")) is not None:
        fields = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.video"
        query = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
        part.results["nvidia-smi"] = answer
        part.say(f"nvidia-smi: {answer}")
    from rhofast.data.decode.capabilities import choose_decoder, detect

    found = detect(0 if part.device.type == "cuda" else None)
    part.results["capabilities"] = json.loads(json.dumps(asdict(found), default=str))
    part.say(f"capabilities: {found}")
    for codec in ("h264", "hevc", "copy"):
        part.say(choose_decoder(codec, found)[1])


def shards(part: Part) -> None:
    """Make the sets: each video once in each codec; the finished shards are then listed several times."""
    sources = part.videos[: part.scale.videos]
    for name, codec in SETS.items():
        build_set(part, name, codec, sources)
    for width in WIDTHS:
        folder = part.work / f"videos_{width}"
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
            targets = [folder / f"{path.stem}.mp4" for path in sources]
            list(pool.map(encode_at, sources, targets, itertools.repeat(width), itertools.repeat(part.scale)))
        build_set(part, f"h264_{width}x{part.scale.short_side}", CopyCodec(), find_videos([folder]))


def build_set(part: Part, name: str, codec: Codec, sources: list[Path]) -> None:
    """Make one set; an error is recorded in the summary."""
    root, began = part.work / name, time.perf_counter()
    shutil.rmtree(root, ignore_errors=True)
    records = [VideoRecord(key=f"v{number:04d}", path=path.resolve()) for number, path in enumerate(sources)]
    untouched = isinstance(codec, CopyCodec)
    transcode = TranscodeSettings(
        short_side=256 if untouched else part.scale.short_side,
        max_seconds=None if untouched else part.scale.seconds,
        timeout=60,
    )
    settings = BuildSettings(name=name, split="train", codec=codec, transcode=transcode, samples_per_shard=64)
    try:
        with Listing(records) as listing:
            build_shards(listing, root, settings, LocalProcesses(os.cpu_count() or 1))
        made = open_folder(root)
    except Exception as error:  # noqa: BLE001 - the other sets can be made
        traceback.print_exc()
        part.say(f"{name}: FAILED: {error}")
        return
    repeat(root, -(-part.scale.samples // len(made)))
    part.results[name] = {"distinct": len(made), "samples": len(open_folder(root)), "bytes": made.info.num_bytes}
    part.say(f"{name}: {len(made)} of {len(sources)} videos, {time.perf_counter() - began:.1f} s")


def repeat(root: Path, times: int) -> None:
    """List the shards of a set `times` times, under other names, as hard links to the same files."""
    path = root / "dataset.json"
    values = json.loads(path.read_text())
    once, values["shards"] = values["shards"], []
    for number in range(times):
        for shard in once:
            again = {**shard, "name": shard["name"] if number == 0 else f"{shard['name']}-{number:04d}"}
            for suffix in (".tar", ".arrow") if number else ():
                os.link(root / f"{shard['name']}{suffix}", root / f"{again['name']}{suffix}")
            values["shards"].append(again)
    path.write_text(json.dumps(values))


def encode_at(source: Path, target: Path, width: int, scale: Scale) -> None:
    """Encode H.264 at a width, with the same encoder settings for all; a source that fails is left out."""
    command = [find_ffmpeg(), "-nostdin", "-v", "error", "-y", "-t", f"{scale.seconds}", "-i", f"file:{source}"]
    command += ["-vf", f"fps=30,scale={width}:{scale.short_side},setsar=1,format=yuv420p", "-an", "-c:v", "libx264"]
    command += ["-crf", "23", "-g", "16", "-keyint_min", "16", "-sc_threshold", "0", "-bf", "0", f"file:{target}"]
    if subprocess.run(command, timeout=60).returncode:
        target.unlink(missing_ok=True)


def codecs(part: Part) -> None:
    """Measure the loader alone by codec, and with streams decoded on the host for comparison."""
    for name in SETS:
        measure(part, name, name)
    measure(part, "h264_gop16 on the host", "h264_gop16", 'data.decoder="host"', rounds=2)


def hw_load(part: Part) -> None:
    """Measure the loader with several shares of the JPEG pictures on nvJPEG's hardware engines."""
    for load in (0.0, 0.65, 0.9):
        measure(part, f"hw_decoder_load {load}", "jpeg", f"data.hw_decoder_load={load}")


def sessions(part: Part) -> None:
    """Measure H.264 with several numbers of decoders (DALI opens one per thread)."""
    for threads in (1, 2, 4, 7, 10, 14):
        measure(part, f"{threads} sessions", "h264_gop16", f"data.decode_threads={threads}", rounds=2)


def widths(part: Part) -> None:
    """Compare widths that are a multiple of 16 with others, for which DALI may open a new decoder per video."""
    for width in WIDTHS:
        name = f"h264_{width}x{part.scale.short_side}"
        measure(part, name, name)


def loader_for(
    part: Part, name: str, device: torch.device, *, augment: AugmentConfig, dtype: torch.dtype = torch.float32
) -> TrainLoader:
    return TrainLoader(
        part.shards(name),
        clips=ClipConfig(num_frames=part.scale.frames),
        augment=augment,
        data=DataConfig(threads=part.scale.threads, decode_threads=part.scale.threads, max_bad=1.0),
        batch_size=part.scale.batch,
        seed=1,
        device=device,
        dtype=dtype,
    )


def parity(part: Part) -> None:
    """Compare the same batches from the CPU's and the device's graph: differences in levels of 0..255."""
    size = part.scale.size
    variants = {
        "crop": AugmentConfig(size=size, color=0.0, gray=0.0, blur=0.0),
        "crop, color": AugmentConfig(size=size, blur=0.0),
        "crop, blur": AugmentConfig(size=size, color=0.0, gray=0.0, blur=1.0),
        "all": AugmentConfig(size=size),
    }
    for name in ("jpeg", "h264_gop16", "hevc_gop16"):
        for half in (False, True) if part.device.type == "cuda" else (False,):
            for variant, augment in variants.items():
                if half and variant != "all":
                    continue
                dtype = torch.float16 if half else torch.float32
                with (
                    loader_for(part, name, torch.device("cpu"), augment=augment) as ours,
                    loader_for(part, name, part.device, augment=augment, dtype=dtype) as theirs,
                ):
                    a, b = next(ours), next(theirs)
                    same = torch.equal(a.sample, b.sample.cpu())
                    levels = (a.pixels - b.pixels.cpu().float()).abs() * 255 * augment.std[0]
                    worst = levels.flatten(2).amax(dim=2)
                label = f"{name}, {variant}" + (", half" if half else "")
                part.results[label] = {
                    "same_samples": same,
                    "max": float(levels.max()),
                    "mean": float(levels.mean()),
                    "share_above_8": float((levels > 8).float().mean()),
                    "max_of_each_clip": worst.flatten().tolist(),
                }
                part.say(
                    f"{label}: max {levels.max():.2f}, mean {levels.mean():.4f} levels, "
                    f"{(levels > 8).float().mean():.2%} above 8{'' if same else ', OTHER SAMPLES'}"
                )


def memory(part: Part) -> None:
    """Measure resident and device memory over many batches."""
    for name in ("jpeg", "h264_gop16"):
        augment, scale = AugmentConfig(size=part.scale.size), part.scale
        with loader_for(
            part,
            name,
            part.device,
            augment=augment,
            dtype=torch.float16 if part.device.type == "cuda" else torch.float32,
        ) as loader:
            points, began = [], time.perf_counter()
            while len(points) < scale.soak_batches and time.perf_counter() - began < scale.soak_seconds:
                next(loader)
                points.append((resident_bytes(), device_bytes(part.device)))
        edge = max(1, len(points) // 10)
        first, last = points[2 * edge : 3 * edge] or points[:1], points[-edge:]
        sentences = []
        for number, what in enumerate(("resident", "device")):
            a, b = (statistics.median(point[number] for point in part_of) for part_of in (first, last))
            if a:
                sentences.append(f"{what} {a / 2**20:,.0f} to {b / 2**20:,.0f} MiB ({b / a - 1:+.2%})")
        part.results[name] = {"batches": len(points), "resident_and_device_bytes": points}
        part.say(
            f"{name}: {len(points)} of {scale.soak_batches} batches, after a fifth of them: {'; '.join(sentences)}"
        )


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_bytes(device: torch.device) -> int:
    """Return the bytes in use on the device, by all processes."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def recovery(part: Part) -> None:
    """Check that samples with a correct checksum that cannot be decoded are replaced, and all others are unchanged."""
    augment, count = AugmentConfig(size=part.scale.size), 4 * part.scale.batches
    for name in ("jpeg", "h264_gop16"):
        with loader_for(part, name, part.device, augment=augment) as loader:
            clean = [snapshot(next(loader)) for _ in range(count)]
        spoiled_once: set[int] = set()
        read = Reader.read
        total = len(part.shards(name))
        victims = set(range(0, total, max(2, total // 8)))

        def spoiled(
            self: Reader,
            sample: int,
            *arguments: Any,
            _read: Any = read,
            _once: set[int] = spoiled_once,
            _victims: set[int] = victims,
        ) -> Sample:
            found = _read(self, sample, *arguments)
            if sample not in _victims:
                return found
            _once.add(sample)
            return spoil(found)

        Reader.read = spoiled  # type: ignore[method-assign]
        outcome: dict[str, Any] = {"victims": len(victims), "batches": 0}
        others, differing = 0, 0
        try:
            with loader_for(part, name, part.device, augment=augment) as loader:
                for samples, pixels in clean:
                    now, got = snapshot(next(loader))
                    outcome["batches"] += 1
                    for place, sample in enumerate(samples):
                        if sample not in victims:
                            others += 1
                            differing += not (now[place] == sample and torch.equal(got[place], pixels[place]))
                outcome["replaced"] = loader.stats.bad
        except Exception as error:  # noqa: BLE001 - the exception is the result
            traceback.print_exc()
            outcome["error"] = f"{type(error).__name__}: {error}"
        finally:
            Reader.read = read  # type: ignore[method-assign]
        outcome |= {"spoiled": len(spoiled_once), "others": others, "others_that_differ": differing}
        part.results[name] = outcome
        part.say(f"{name}: {outcome}")


def snapshot(views: Any) -> tuple[list[int], torch.Tensor]:
    """Return the samples of a batch, and every 97th of their pixel values to save memory."""
    return views.sample.tolist(), views.pixels.float().flatten(1)[:, ::97].cpu().clone()


def spoil(sample: Sample) -> Sample:
    """Return a sample with damage behind its checksum: pictures cut in half, or a stream with a hole."""
    if sample.stream is not None:
        content = sample.stream.content.copy()
        content[len(content) // 3 : 2 * len(content) // 3] = 0
        return replace(sample, stream=replace(sample.stream, content=content))
    if next(iter(sample.pictures.values())).ndim == 1:
        return replace(
            sample, pictures={frame: picture[: len(picture) // 2] for frame, picture in sample.pictures.items()}
        )
    return sample  # already decoded on the host


def data_wait(part: Part) -> None:
    """Measure steps of Slow-R50 8x8, rho = 2, BYOL, bf16, fed by the loader and from memory."""
    scale = part.scale
    for name in ("jpeg", "h264_gop16"):
        small = [
            f"clips.num_frames={scale.frames}",
            f"augment.size={scale.size}",
            "backbone.width=8",
            "method.hidden=64",
            "train.batch_size=4",
        ]
        config = load_config(
            CONFIG,
            [
                f"data.train={part.work / name}",
                f"data.threads={scale.threads}",
                f"data.decode_threads={scale.threads}",
                'train.precision="bf16"',
                *(["train.batch_size=64"] if part.device.type == "cuda" else small),
            ],
        )
        began = time.perf_counter()
        report = bench(config, "headspace", batches=scale.batches, rounds=scale.rounds)
        part.results[name] = report
        fed, memory_fed = report["summary"]["loader"], report["summary"]["memory"]
        part.say(
            f"{name}: step {fed['step_seconds']['median']:.3f} s, from memory "
            f"{memory_fed['step_seconds']['median']:.3f} s; data wait {fed['data_wait_share']['median']:.2%}, "
            f"host blocked {fed['host_blocked_share']['median']:.2%}; headspace {report['headspace']['median']:.3f} "
            f"({report['headspace']['lowest']:.3f} to {report['headspace']['highest']:.3f}); "
            f"{fed['clips_per_second']['median']:,.0f} clips/s; {report['advice']}; "
            f"{time.perf_counter() - began:.0f} s"
        )


# The most important parts first, in case time runs out; with the time limit of each in seconds.
PARTS: dict[str, tuple[Callable[[Part], None], int]] = {
    "machine": (machine, 40),
    "shards": (shards, 120),
    "codecs": (codecs, 110),
    "data_wait": (data_wait, 150),
    "parity": (parity, 90),
    "recovery": (recovery, 60),
    "hw_load": (hw_load, 50),
    "sessions": (sessions, 70),
    "widths": (widths, 45),
    "memory": (memory, 80),
}


def run_part(name: str, options: argparse.Namespace) -> None:
    """Run one part, write its report, and exit with code 1 if it failed."""
    began = time.perf_counter()
    part = Part(
        videos=find_videos(options.videos),
        work=options.out / "work",
        scale=TINY if options.cpu else FULL,
        device=torch.device("cpu" if options.cpu else "cuda"),
        results={},
        lines=[],
    )
    error = None
    try:
        if not options.cpu and not torch.cuda.is_available():
            raise RuntimeError("no CUDA device found; use --cpu for a dry run")
        PARTS[name][0](part)
    except Exception as raised:  # noqa: BLE001 - it is recorded, and the other parts run
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
    failed = error is not None or any("FAILED" in line for line in part.lines)
    report = {
        "part": name,
        "ok": not failed,
        "error": error,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - began,
        "scale": asdict(part.scale),
        "lines": part.lines,
        "results": part.results,
    }
    (options.out / f"{name}.json").write_text(json.dumps(report, default=str) + "\n")
    raise SystemExit(1 if failed else 0)


def summary(options: argparse.Namespace) -> None:
    """Write and print the lines of all parts."""
    text = "\n".join(summary_lines(options)) + "\n"
    (options.out / "summary.md").write_text(text)
    shutil.rmtree(options.out / "work", ignore_errors=True)
    print(text)


def summary_lines(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the summary."""
    yield "# GPU suite" + (": a dry run without a GPU; its numbers are meaningless" if options.cpu else "")
    for name in PARTS:
        path = options.out / f"{name}.json"
        if not path.is_file():
            yield f"\n## {name}: not run"
            continue
        report = json.loads(path.read_text())
        took = f", {report['seconds']:.0f} s" if "seconds" in report else ""
        yield f"\n## {name}: {'ok' if report['ok'] else 'NOT OK'}{took}\n"
        yield from (f"- {line}" for line in report["lines"])
        if report["error"]:
            yield f"- error: {report['error']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=(*PARTS, "summary"), help="part to run")
    parser.add_argument("videos", type=Path, nargs="*", help="video files, or folders of them")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_results"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--cpu", action="store_true", help="dry run at a small scale, without a GPU")
    parser.add_argument("--list", action="store_true", help="print the parts and their time limits in seconds")
    options = parser.parse_args()
    if options.list:
        print(*(f"{name}:{seconds}" for name, (_, seconds) in PARTS.items()), sep="\n")
        return
    if options.part is None:
        parser.error("a part is required; --list prints them")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.part == "summary":
        summary(options)
    else:
        run_part(options.part, options)


if __name__ == "__main__":
    main()
