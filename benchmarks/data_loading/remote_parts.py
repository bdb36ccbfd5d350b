"""The parts of the benchmark of remote sets: what each measures, and how."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from benchmarks.data_loading.million_samples import make_set
from benchmarks.data_loading.range_server import serving_elsewhere
from benchmarks.data_loading.soak import COLLECT
from rhofast.analysis.capacity.codec_costs import range_cost, units_of
from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.codecs.codec import Codec
from rhofast.data.codecs.h26x import H264Codec, HevcCodec
from rhofast.data.codecs.jpeg import JpegCodec
from rhofast.data.format.dataset import choose_samples
from rhofast.data.format.read_request import ReadRequest
from rhofast.data.format.reader import Reader
from rhofast.data.format.remote import RemoteShardSet, shard_bytes
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.sampling.batch_plan import training_clips
from rhofast.data.sampling.clip_cost import frame_sizes
from rhofast.data.sampling.mixture import Mixture
from rhofast.data.sources import open_training
from rhofast.training.step import no_garbage_collection

CODECS: dict[str, Codec] = {"jpeg": JpegCodec(), "h264": H264Codec(gop=16), "hevc": HevcCodec(gop=16)}
CLIPS = ClipConfig(num_clips=2, num_frames=8, frame_stride=8, fps=30)
GAPS_KB = (0, 8, 16, 32, 64, 128)
BATCH = 16
LATENCY_S = 0.05
_WARM = 16  # batches until a new loader has its pace
_UNDER_WAY = 48  # samples whose bytes are asked for ahead, as by a loader with two batches in a queue


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
def remote(root: Path, latency_s: float = LATENCY_S, cores: list[int] | None = None) -> Iterator[tuple[str, Path]]:
    """Serve a folder; yield its address and an empty folder for a cache."""
    with serving_elsewhere(root, latency_s, cores) as url, tempfile.TemporaryDirectory() as cache:
        yield url, Path(cache)


def open_ranges(url: str, cache: Path, gap_kb: float) -> RemoteShardSet:
    config = DataConfig(train=url, cache=cache, remote="ranges", range_gap_kb=gap_kb)
    (shards,) = open_training(config, clips=CLIPS).sets
    assert isinstance(shards, RemoteShardSet)
    return shards


def counts(url: str) -> dict[str, Any]:
    """Return what the server was asked for and sent, by file, and the CPU seconds that it took."""
    with urlopen(f"{url}/_counts") as answer:
        return dict(json.load(answer))


def of_tars(counted: dict[str, int]) -> int:
    return sum(count for name, count in counted.items() if name.endswith(".tar"))


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# ---- bytes and requests, without decoding ----


def fetch(shards: RemoteShardSet, samples: int) -> int:
    """Fetch what the clips of the first samples need, and return how many bytes these pieces have without gaps."""
    reader, under_way, wanted = Reader(shards), deque[ReadRequest](), 0

    def finish() -> None:
        request = under_way.popleft()
        assert request.fetch is not None
        request.fetch.contents(request.row.key)
        request.fetch.release()

    for begin in range(0, samples, BATCH):
        numbers = np.arange(begin, min(samples, begin + BATCH))
        shards.load_indices(dict.fromkeys(shards.locate(number)[0] for number in numbers.tolist()))
        rows = [reader.locate(number) for number in numbers.tolist()]
        plan = training_clips(rows, numbers, CLIPS, seed=0, epoch=0).frames
        for number, frames, row in zip(numbers.tolist(), plan, rows, strict=True):
            under_way.append(reader.request(number, frames, row))
            wanted += sum(size for _, size in under_way[-1].spans)
            if len(under_way) > _UNDER_WAY:
                finish()
    while under_way:
        finish()
    return wanted


def measure_gaps(root: Path, name: str, samples: int) -> list[dict[str, float]]:
    """Return requests and bytes per video and per byte used, for each gap, and what `rhofast plan` says of them."""
    rows = []
    for gap in GAPS_KB:
        with remote(root / name) as (url, cache):
            shards = open_ranges(url, cache, gap)
            shards.load_indices(shards.locate(number)[0] for number in range(samples))
            cpu, began = cpu_s(), time.perf_counter()
            wanted = fetch(shards, samples)
            cpu, seconds = cpu_s() - cpu, time.perf_counter() - began
            answered = counts(url)
            rows_of_a_dry_run = [shards.row(number) for number in choose_samples(shards, 64)]
        sizes = frame_sizes(rows_of_a_dry_run)
        info, sent = shards.info, of_tars(answered["sent"])
        units = units_of(CODECS[name], info.num_frames // info.num_samples)
        fps = info.num_frames / info.seconds
        requests, fetched = range_cost(CLIPS, CODECS[name], units, fps, gap=1000 * gap, sizes=sizes)
        rows.append(
            {
                "gap_kb": gap,
                "requests_per_video": of_tars(answered["requests"]) / samples,
                "bytes_per_video": sent / samples,
                "fetched_per_used": sent / wanted,
                "cpu_ms_per_video": 1e3 * cpu / samples,
                "rate": samples / seconds,
                "planned_requests": requests,
                "planned_bytes": fetched,
                "spread": statistics.pstdev(map(math.log, sizes)),
            }
        )
        print(name, rows[-1], flush=True)
    return rows


def measure_epoch(root: Path, name: str) -> dict[str, float]:
    """Return the bytes of everything that one epoch by ranges makes the server send, and of the whole set."""
    with remote(root / name, 0.0) as (url, cache):
        shards = open_ranges(url, cache, DataConfig().range_gap_kb)
        fetch(shards, len(shards))
        sent = sum(counts(url)["sent"].values())
    whole = sum(shard_bytes(shard) for shard in shards.info.shards)
    print(name, f"one epoch: {sent / 1e9:.3f} GB of {whole / 1e9:.3f} GB", flush=True)
    return {"ranges": sent, "whole": whole, "samples": len(shards)}


# ---- rate ----


_TURNS = """
import os, sys
where, cache, remote, *cores = sys.argv[1:]
os.sched_setaffinity(0, map(int, cores))
from benchmarks.data_loading.remote_parts import take_turns
take_turns(where, cache, remote)
"""


def take_turns(where: str, cache: str, remote: str) -> None:
    """Load as many batches as each line of the input says; print the seconds and the CPU seconds that they took."""
    with open_loader(where, Path(cache), remote=remote) as loader:
        for shards in loader.shards.sets:
            for number in range(len(shards.info.shards)):  # as after the first passes over a set
                shards.index(number)
        for line in sys.stdin:
            cpu, began = cpu_s(), time.perf_counter()
            for _ in range(int(line)):
                next(loader)
            print(time.perf_counter() - began, cpu_s() - cpu, flush=True)


class Contender:
    """A loader that is measured in turns with others: a process that is stopped between its turns.

    What stands in its queues when it is stopped stands there when it goes on, so that a turn begins and ends at the
    pace that is measured. A loader that only rested would fill its queues meanwhile, for up to twelve batches.

    Attributes:
        found: Videos per second, and CPU milliseconds per video of the loader and of the server, of each turn.
    """

    def __init__(self, where: str, cache: Path, cores: list[int], url: str = "") -> None:
        self.found: list[tuple[float, float, float]] = []
        self._url = url
        command = [sys.executable, "-c", _TURNS, where, str(cache), "ranges" if url else "auto", *map(str, cores)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._load(_WARM)

    def take_turn(self, batches: int) -> None:
        """Measure some batches."""
        server = self._server_s()
        seconds, cpu = self._load(batches)
        server = self._server_s() - server
        videos = batches * BATCH
        self.found.append((videos / seconds, 1e3 * cpu / videos, 1e3 * server / videos))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _load(self, batches: int) -> list[float]:
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{batches}\n")
        self._process.stdin.flush()
        taken = self._process.stdout.readline()
        self._process.send_signal(signal.SIGSTOP)
        return [float(number) for number in taken.split()]

    def _server_s(self) -> float:
        return float(counts(self._url)["cpu_s"]) if self._url else 0.0


def measure_rates(root: Path, name: str, batches: int, rounds: int) -> dict[str, Any]:
    """Return rates on files and at each latency, in short turns: the speed of a core may change within seconds.

    The loaders have all cores but one, which is the servers'.

    Args:
        root: Folder of the sets.
        name: Which one.
        batches: Batches per turn.
        rounds: Turns on files and at the latency of the bar; a third of them at the others.
    """
    cores = sorted(os.sched_getaffinity(0))
    mine, served = (cores[:-1], cores[-1:]) if len(cores) > 1 else (cores, cores)
    with ExitStack() as stack:

        def contend(where: str, url: str = "") -> Contender:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            return stack.enter_context(closing(Contender(where, cache, mine, url)))

        contenders = {"files": contend(str(root / name))}
        for latency in (LATENCY_S, 0.005, 0.2):
            url = stack.enter_context(serving_elsewhere(root / name, latency, served))
            contenders[f"{1000 * latency:g} ms"] = contend(url, url)
        for number in range(rounds):
            turns = list(contenders)[: 4 if number % 3 == 0 else 2]
            for contender in turns[:: 1 if number % 2 else -1]:
                contenders[contender].take_turn(batches)
            print(name, number, {turn: contenders[turn].found[-1] for turn in turns}, file=sys.stderr, flush=True)
    rates = {contender: np.array(measured.found) for contender, measured in contenders.items()}
    files, ranges = rates["files"], rates[f"{1000 * LATENCY_S:g} ms"]
    shares = ranges[:, 0] / files[:, 0]
    columns = ("files", "files_cpu_ms", "none", "ranges", "ranges_cpu_ms", "server_cpu_ms")
    result: dict[str, Any] = dict(zip(columns, np.median(np.hstack([files, ranges]), axis=0).tolist(), strict=True))
    result |= {"share": float(np.median(shares)), "quartiles": np.percentile(shares, [25, 75]).tolist()}
    for turn in ("5 ms", "200 ms"):
        result[turn] = float(np.median(rates[turn][:, 0] / files[::3, 0]))
    return result | {"cores": len(mine), "all": {turn: found.tolist() for turn, found in rates.items()}}


# ---- memory ----


def memory() -> dict[str, float]:
    """Return the resident memory of this process in MB, open descriptors and mapped indices."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = {key: int(lines[name].split()[0]) / 1024 for key, name in (("rss", "VmRSS"), ("anonymous", "RssAnon"))}
    maps = Path("/proc/self/maps").read_text()
    return {**held, "descriptors": len(list(Path("/proc/self/fd").iterdir())), "indices": maps.count(".arrow\n")}


def watch_memory(root: Path, name: str, batches: int) -> list[dict[str, float]]:
    """Return the resident memory of this process over many small batches by ranges.

    Garbage is collected as in the training loop, which is rarely.
    """
    with (
        remote(root / name) as (url, cache),
        open_loader(url, cache, remote="ranges", batch_size=2) as loader,
        no_garbage_collection(),
    ):
        rows = []
        for number in range(batches + 1):
            next(loader)
            if number % COLLECT == 0:
                gc.collect()
            if number % max(1, batches // 40) == max(1, batches // 40) - 1:  # before a collection, not behind it
                rows.append({"batch": number + 1, **memory()})
                print(name, rows[-1], file=sys.stderr, flush=True)
    return rows


def measure_memory(root: Path, name: str, batches: int) -> dict[str, Any]:
    """Return the resident memory of a process of its own, and how it grows in the second half, from mean to mean."""
    code = "import json, sys; from pathlib import Path\n"
    code += "from benchmarks.data_loading.remote_parts import watch_memory\n"
    code += f"print(json.dumps(watch_memory(Path(sys.argv[1]), {name!r}, {batches})))"
    done = subprocess.run([sys.executable, "-c", code, str(root)], check=True, stdout=subprocess.PIPE, text=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    third, last = rows[len(rows) // 2 : 3 * len(rows) // 4], rows[3 * len(rows) // 4 :]
    growth = {
        key: statistics.mean(row[key] for row in last) / statistics.mean(row[key] for row in third) - 1
        for key in ("rss", "anonymous")
    }
    return {"batches": batches, "rows": rows, "growth": growth}


# ---- first batch ----

_FIRST = """
import sys, time
from pathlib import Path
began = time.perf_counter()
from benchmarks.data_loading.remote_parts import open_loader
imported = time.perf_counter()
options = {"remote": "ranges"} if sys.argv[1].startswith("http") else {}
loader = open_loader(sys.argv[1], Path(sys.argv[2]), batch_size=64, **options)
opened = time.perf_counter()
views = next(loader)
print(imported - began, opened - imported, time.perf_counter() - imported, flush=True)
loader.close()
"""


def measure_first_batch(root: Path, samples: int, rounds: int) -> dict[str, Any]:
    """Return the seconds from before the set is opened to the first batch of 64 videos, in fresh processes."""
    made = root / "large"
    if not made.is_dir():
        make_set(made, samples=samples, shards=min(2000, samples), frames=300)
    taken: dict[str, list[list[float]]] = {"files": [], "ranges": []}
    for _ in range(rounds):
        for way, times in taken.items():
            with remote(made) as (url, cache):
                where = url if way == "ranges" else str(made)
                command = [sys.executable, "-c", _FIRST, where, str(cache)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            times.append([float(number) for number in done.stdout.split()])
            print("first batch", way, times[-1], flush=True)
    shutil.rmtree(made)
    middle = {way: [statistics.median(column) for column in zip(*times, strict=True)] for way, times in taken.items()}
    imports, opened, first = middle["ranges"]
    return {
        "samples": samples,
        "imports_s": imports,
        "open_s": opened,
        "first_batch_s": first,
        "first_batch_files_s": middle["files"][2],
        "all": taken,
    }


# ---- equal batches ----


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
    few = {"batch_size": 8}
    with remote(root / name, 0.005) as (url, cache):
        local = digests(open_loader(str(root / name), cache, **few), 6)
        if local != digests(open_loader(url, cache, remote="ranges", **few), 6):
            return False
        with open_loader(url, cache, remote="ranges", **few) as begun:
            for _ in range(3):
                next(begun)
            state = begun.state_dict()
        for rank in (0, 1):
            there = digests(open_loader(url, cache, rank, 2, remote="ranges", **few), 3, state)
            here = digests(open_loader(str(root / name), cache, rank, 2, **few), 3, state)
            if there != here:
                return False
    return True
