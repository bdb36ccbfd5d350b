"""What is measured on a GPU: the functions that benchmarks.gpu.run calls, in the order of their weight.

Each function takes a `Part`, stores numbers in `part.results` as soon as it has them, and says lines for the summary. A
line that begins with a word of `RATINGS` compares a number with its limit. No function changes a setting of the GPU.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.scale import Scale
from benchmarks.machine import facts_of_the_machine
from rhofast.analysis.bench import bench
from rhofast.config.load import load_config
from rhofast.config.schema import AugmentConfig, ClipConfig, Config, DataConfig
from rhofast.data.decode.capabilities import choose_decoder, detect
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.data.format.reader import Reader
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.types import Sample
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.environment import device_memory, resident_bytes
from rhofast.training.profiler import StepProfiler
from rhofast.training.setup import build_accelerator, build_loader, build_model, open_training_shards
from rhofast.training.step import no_garbage_collection, train_step

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "byol_slow_r50_8x8_rho2.toml"
PACKAGES = ("torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu13", "av", "numpy")
RATINGS = ("MET", "MISSED")
HEADSPACE, IDLE, LEVELS = 1.03, 0.01, 8.0  # the limits that the first run has to meet


@dataclass(kw_only=True)
class Part:
    """One part of the measurements.

    Attributes:
        sets: Folder of the shard sets.
        out: Folder for files other than the report.
        scale: Sizes of the measurements.
        device: Device of the loader and the network.
        results: The part's numbers.
        lines: The part's lines in the summary.
        failed: Whether something did not work, though the rest of the part was measured.
    """

    sets: Path
    out: Path
    scale: Scale
    device: torch.device
    results: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    failed: bool = False

    def shards(self, name: str) -> ShardSet:
        """Open one of the sets."""
        return open_folder(self.sets / name)

    def say(self, line: str) -> None:
        """Add a line to the summary and print it."""
        self.lines.append(line)
        print(line, flush=True)

    def rate(self, what: str, value: float, limit: float, shown: Callable[[float], str] = "{:.3f}".format) -> None:
        """Say whether a number is within its limit."""
        rating = RATINGS[value > limit]
        self.say(f"{rating}: {what} {shown(value)}, limit {shown(limit)}")

    def fail(self, label: str, error: Exception) -> None:
        """Record that one measurement failed; the others of the part go on."""
        traceback.print_exc()
        self.failed = True
        first = (str(error).splitlines() or [""])[0]
        self.results[label] = {"error": f"{type(error).__name__}: {error}"}
        self.say(f"{label}: FAILED: {type(error).__name__}: {first}")


def config_for(part: Part, name: str, *settings: str) -> Config:
    """Return the configuration of Slow-R50 8x8, rho = 2, BYOL on one set, at the scale of the part."""
    scale = part.scale
    return load_config(
        CONFIG,
        [
            f"data.train={part.sets / name}",
            f"data.threads={scale.threads}",
            f"data.decode_threads={scale.threads}",
            f"clips.num_frames={scale.frames}",
            f"augment.size={scale.size}",
            f"train.batch_size={scale.batch}",
            *(['train.precision="bf16"'] if part.device.type == "cuda" else []),
            *scale.model,
            *settings,
        ],
    )


def smoke(part: Part) -> None:
    """Check the libraries, then load one batch of each set and do one step; nothing else can work if this fails."""
    part.results["facts"] = facts_of_the_machine(PACKAGES)
    part.results["cores"] = len(os.sched_getaffinity(0))
    if part.device.type == "cuda":
        part.say(f"device: {torch.cuda.get_device_name(part.device)}, {part.results['cores']} cores")
        for library in ("libcuda.so.1", "libnvcuvid.so.1", "libnvidia-encode.so.1"):
            try:
                ctypes.CDLL(library)
            except OSError as error:
                part.say(f"{library}: MISSING ({error})")
            else:
                part.say(f"{library}: found")
    if (program := shutil.which("nvidia-smi")) is not None:
        fields = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.video"
        query = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
        part.say(f"nvidia-smi: {subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()}")
    found = detect(0 if part.device.type == "cuda" else None)
    part.results["capabilities"] = json.loads(json.dumps(asdict(found), default=str))
    part.say(f"capabilities: {found}")
    part.say(choose_decoder("h264", found)[1])
    for name in ("jpeg", "h264"):
        with loader_for(part, name, part.device, augment=AugmentConfig(size=part.scale.size), videos=8) as loader:
            pixels = next(loader).pixels
        if not bool(torch.isfinite(pixels).all()) or float(pixels.float().std()) < 0.1:
            raise RuntimeError(f"{name}: pixels are constant or not finite")
        part.say(f"{name}: {tuple(pixels.shape)}, {pixels.dtype}, on {pixels.device}, std {pixels.float().std():.2f}")


def headspace_jpeg(part: Part) -> None:
    """Measure steps fed by the loader and from memory, JPEG pictures."""
    headspace(part, "jpeg")


def headspace_h264(part: Part) -> None:
    """Measure steps fed by the loader and from memory, H.264 in groups of 16 frames."""
    headspace(part, "h264")


def headspace(part: Part, name: str) -> None:
    """Measure steps of the network fed by the loader and from memory, alternately."""
    scale = part.scale
    report = bench(config_for(part, name), "headspace", batches=scale.batches, rounds=scale.rounds)
    part.results[name] = report
    fed, memory_fed = report["summary"]["loader"], report["summary"]["memory"]
    spread = report["headspace"]
    part.say(
        f"step {fed['step_seconds']['median']:.3f} s, from memory {memory_fed['step_seconds']['median']:.3f} s; host "
        f"blocked {fed['host_blocked_share']['median']:.2%}; {fed['clips_per_second']['median']:,.0f} clips/s; "
        f"headspace {spread['lowest']:.3f} to {spread['highest']:.3f}; {report['advice']}"
    )
    part.rate(f"headspace of {name}", spread["median"], HEADSPACE)
    part.rate(f"idle share of the device, {name}", fed["data_wait_share"]["median"], IDLE, "{:.2%}".format)


def parity(part: Part) -> None:
    """Compare the same batches from the CPU's and the device's graph: differences in levels of 0..255."""
    size, worst = part.scale.size, 0.0
    variants = {"crop": AugmentConfig(size=size, color=0.0, gray=0.0, blur=0.0), "all": AugmentConfig(size=size)}
    for name, load in (("jpeg", 0.0), ("jpeg", 0.65), ("h264", 0.65)):
        for variant, augment in variants.items():
            label = f"{name}, hw_decoder_load {load}, {variant}" if name == "jpeg" else f"{name}, {variant}"
            try:
                found = differences(part, name, load, augment)
            except Exception as error:  # noqa: BLE001 - the other variants are measured
                part.fail(label, error)
                continue
            part.results[label] = found
            worst = max(worst, found["max"])
            part.say(
                f"{label}: max {found['max']:.2f}, mean {found['mean']:.4f} levels, {found['share_above_8']:.2%} above "
                f"8{'' if found['same_samples'] else ', OTHER SAMPLES'}"
            )
    part.rate("largest difference in levels", worst, LEVELS, "{:.2f}".format)


def differences(part: Part, name: str, load: float, augment: AugmentConfig) -> dict[str, Any]:
    """Return how much the device's first batch differs from the CPU's."""
    videos = min(part.scale.batch, 16)
    with (
        loader_for(part, name, torch.device("cpu"), augment=augment, videos=videos) as ours,
        loader_for(part, name, part.device, augment=augment, videos=videos, load=load) as theirs,
    ):
        one, other = next(ours), next(theirs)
        levels = (one.pixels - other.pixels.cpu().float()).abs() * 255 * augment.std[0]
        return {
            "same_samples": torch.equal(one.sample, other.sample.cpu()),
            "max": float(levels.max()),
            "mean": float(levels.mean()),
            "share_above_8": float((levels > 8).float().mean()),
            "max_of_each_clip": levels.flatten(2).amax(dim=2).flatten().tolist(),
        }


def loader(part: Part) -> None:
    """Measure the loader alone: JPEG with several shares on the hardware engines, and H.264."""
    for load in (0.0, 0.65, 1.0):
        measure(part, f"jpeg, hw_decoder_load {load}", "jpeg", f"data.hw_decoder_load={load}")
    measure(part, "h264", "h264")


def measure(part: Part, label: str, name: str, *settings: str) -> None:
    """Measure the loader alone on one set; an error is recorded as the result."""
    try:
        config = config_for(part, name, *settings)
        report = bench(config, "loader", batches=part.scale.batches, rounds=part.scale.rounds)
    except Exception as error:  # noqa: BLE001 - a setting that fails is a result too
        part.fail(label, error)
        return
    kept = ("summary", "stages", "advice", "warm_up", "config", "measurements")
    part.results[label] = {key: report[key] for key in kept if key in report}
    numbers = report["summary"]["loader"]
    speed = numbers["clips_per_second"]
    part.say(
        f"{label}: {speed['median']:,.0f} clips/s ({speed['lowest']:,.0f} to {speed['highest']:,.0f}), "
        f"{numbers['gigabytes_per_second']['median']:.2f} GB/s; {report['advice']}"
    )


def tests(part: Part) -> None:
    """Run the tests that need a GPU."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "needs_gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "needs_gpu", "-p", "no:cacheprovider", *map(str, marked)]
    required = {"RHOFAST_REQUIRE_GPU": "1"} if part.device.type == "cuda" else {}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **required}, capture_output=True, text=True)
    (part.out / "tests.log").write_text(done.stdout + done.stderr)
    part.results["exit_code"], part.failed = done.returncode, done.returncode != 0
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            part.say(line[:300])
    part.say((done.stdout.strip().splitlines() or ["no output"])[-1])


def trace(part: Part) -> None:
    """Trace three steps beside the loader, for https://ui.perfetto.dev."""
    config, first = config_for(part, "jpeg"), 4
    accelerator = build_accelerator(config)
    path = part.out / "trace.json"
    with build_loader(config, accelerator, open_training_shards(config), None) as batches, no_garbage_collection():
        model, method, optimizer = build_model(config, accelerator)
        profiler = StepProfiler(first, first + 2, path)
        for step in range(1, first + 3):
            profiler.before(step)
            profiler.enter("data")
            pixels = next(batches).pixels
            progress = TrainingProgress(step=step, epoch=0.5, epochs=1.0)
            enter = profiler.enter
            train_step(accelerator, model, method, optimizer, pixels, progress, rate=0.1, enter=enter)
            profiler.after(step)
        profiler.close()
    accelerator.end_training()
    with path.open("rb") as source, gzip.open(path.with_suffix(".json.gz"), "wb", 6) as target:
        shutil.copyfileobj(source, target)
    path.unlink()
    part.results["bytes"] = path.with_suffix(".json.gz").stat().st_size
    part.say(f"trace.json.gz: steps {first} to {first + 2}, {part.results['bytes'] / 1e6:.1f} MB")


def step(part: Part) -> None:
    """Measure the step from memory: as configured, with cudnn.benchmark, with time folded into the batch, compiled."""
    for label, settings, search in (
        ("eager", (), False),
        ("cudnn.benchmark", (), True),
        ("compiled", ("train.compile=true",), False),
    ):
        if label == "compiled":
            folded_time(part)
        torch.backends.cudnn.benchmark = search
        try:
            report = bench(config_for(part, "jpeg", *settings), "step", batches=part.scale.batches, rounds=1)
        except Exception as error:  # noqa: BLE001 - a setting that fails is a result too
            part.fail(label, error)
            continue
        finally:
            torch.backends.cudnn.benchmark = False
        part.results[label] = {"summary": report["summary"], "warm_up": report["warm_up"]}
        seconds = report["summary"]["memory"]["step_seconds"]["median"]
        part.say(f"{label}: {seconds:.3f} s per step, {report['warm_up']['seconds']:.0f} s to begin")


def folded_time(part: Part) -> None:
    """Compare a 1x3x3 convolution with batch norm on [B, C, T, H, W] with the same on [B*T, C, H, W]."""
    batch, frames, side = part.scale.batch * 2, part.scale.frames, part.scale.size // 4
    dtype = torch.bfloat16 if part.device.type == "cuda" else torch.float32
    pixels = torch.randn(batch, 64, frames, side, side, device=part.device, dtype=dtype)
    deep = nn.Sequential(nn.Conv3d(64, 64, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(64), nn.ReLU())
    flat = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    variants = {
        "5 dimensions": (deep, pixels.contiguous(memory_format=torch.channels_last_3d), torch.channels_last_3d),
        "time folded": (
            flat,
            pixels.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last),
            torch.channels_last,
        ),
    }
    found = {}
    for label, (layers, inputs, layout) in variants.items():
        layers = layers.to(part.device, dtype).to(memory_format=layout)
        found[label] = median_seconds(layers, inputs.requires_grad_())
    part.results["folded_time"] = found
    part.say(
        "1x3x3 convolution, batch norm and ReLU, forward and backward: "
        + ", ".join(f"{label} {seconds * 1000:.2f} ms" for label, seconds in found.items())
    )


def median_seconds(layers: nn.Module, inputs: Tensor, rounds: int = 10) -> float:
    """Return the median time of a forward and a backward pass, in seconds."""
    times = []
    for _ in range(rounds + 3):
        synchronize(inputs.device)
        began = time.perf_counter()
        layers(inputs).sum().backward()
        synchronize(inputs.device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def synchronize(device: torch.device) -> None:
    """Wait for the device, if it is a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sessions(part: Part) -> None:
    """Measure H.264 with several numbers of decoders; DALI opens one per thread."""
    for threads in (1, 2, 4, 7, 10, 14):
        measure(part, f"{threads} sessions", "h264", f"data.decode_threads={threads}")


def sets(part: Part) -> None:
    """Measure the loader alone on every further set that is there."""
    for folder in sorted(part.sets.iterdir()):
        if folder.name not in ("jpeg", "h264"):
            measure(part, folder.name, folder.name)


def loader_for(
    part: Part, name: str, device: torch.device, *, augment: AugmentConfig, videos: int, load: float = 0.65
) -> TrainLoader:
    """Return a loader that emits float32 and replaces any number of bad samples."""
    threads = part.scale.threads
    return TrainLoader(
        part.shards(name),
        clips=ClipConfig(num_frames=part.scale.frames),
        augment=augment,
        data=DataConfig(threads=threads, decode_threads=threads, hw_decoder_load=load, max_bad=1.0),
        batch_size=min(videos, len(part.shards(name))),
        seed=1,
        device=device,
    )


def memory(part: Part) -> None:
    """Measure resident and device memory over many batches."""
    for name in ("jpeg", "h264"):
        augment, scale = AugmentConfig(size=part.scale.size), part.scale
        with loader_for(part, name, part.device, augment=augment, videos=scale.batch) as loader:
            points, began = [], time.perf_counter()
            while len(points) < scale.more_batches and time.perf_counter() - began < 25:
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
            f"{name}: {len(points)} of {scale.more_batches} batches, after a fifth of them: {'; '.join(sentences)}"
        )


def device_bytes(device: torch.device) -> int:
    """Return the bytes in use on the device, by all processes."""
    if device.type != "cuda":
        return 0
    return device_memory(device)["device_memory_bytes"]


def recovery(part: Part) -> None:
    """Check that samples with a correct checksum that cannot be decoded are replaced, and all others are unchanged."""
    augment, count = AugmentConfig(size=part.scale.size), 4 * part.scale.batches
    for name in ("jpeg", "h264"):
        with loader_for(part, name, part.device, augment=augment, videos=min(part.scale.batch, 32)) as loader:
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
            with loader_for(part, name, part.device, augment=augment, videos=min(part.scale.batch, 32)) as loader:
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
        part.failed |= "error" in outcome
        part.rate(f"videos of {name} that differ beside a refused one", differing, 0, "{:.0f}".format)


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
