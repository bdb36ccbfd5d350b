"""Measure the speed of the loader and of the training step, on the user's own shards, machine and configuration.

    loader     batches are taken as fast as the loader delivers them, and discarded
    step       the training step alone, repeated on one batch in memory
    both       training: real steps on batches of the real loader
    headspace  the same steps, alternately on batches of the loader and from memory: the most that a faster loader
               could gain

The report holds the median, the lowest and the highest value of several rounds. Batches that were prefetched between
measurements are used up before anything is timed, so that a slow loader does not profit from them. A measurement from
memory begins when the loader is idle. Under `accelerate launch` every rank runs: clips are added up, and the seconds of
the slowest rank count.

Nothing is saved, evaluated or learned. The learning rate is that of the first step of a run, and the schedules of the
methods stand at the middle of a run, where no update is held back.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rhofast.analysis.bench_report import Measurement, Source, summarize
from rhofast.config.load import dump_config
from rhofast.config.schema import Config
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import cores_of_rank
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.environment import versions
from rhofast.training.optim import learning_rate
from rhofast.training.setup import build_accelerator, build_loader, build_model, open_training_shards, run_length
from rhofast.training.step import no_garbage_collection, train_step

What = Literal["loader", "step", "both", "headspace"]

VERSION = 1
_IN_MEMORY = 4  # distinct batches that are kept in memory for "headspace"
_WARM_UP = 3  # batches after the first, in addition to those that the loader has prefetched
_IDLE_TIMEOUT_S, _IDLE_CORES = 30.0, 0.05  # how long to wait for idle threads, and the cores that count as idle


def bench(
    config: Config,
    what: What,
    *,
    batches: int = 20,
    rounds: int = 5,
    on_measurement: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure `rounds` rounds of `batches` batches. Call it in every process.

    Args:
        config: Configuration of the run.
        what: What to measure, see the module docstring.
        batches: Timed batches per measurement.
        rounds: Measurements per source of batches.
        on_measurement: Called with (measurements done, total measurements).

    Returns:
        The report as JSON values, the same on every rank.

    Raises:
        ConfigError: If data.train is not set or the configuration does not fit.
        ShardError: If shards cannot be opened.
        SampleError: If too many samples cannot be read.
    """
    accelerator = build_accelerator(config)
    shards = open_training_shards(config)
    with build_loader(config, accelerator, shards, None) as loader, no_garbage_collection():
        rig = _Rig(config, what, loader, accelerator)
        warm_up = rig.warm_up()
        measurements: list[Measurement] = []
        for number in range(rounds):
            for source in rig.sources if number % 2 == 0 else reversed(rig.sources):
                idle = rig.prepare(source)
                accelerator.wait_for_everyone()
                measurements.append(rig.measure(source, batches, loader_idle=idle))
                if on_measurement is not None:
                    on_measurement(len(measurements), rounds * len(rig.sources))
    report = {
        "version": VERSION,
        "what": what,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(accelerator.device),
        "config": dump_config(config),
        "data": {"samples": len(shards), "digest": shards.digest},
        "world_size": accelerator.num_processes,
        "rounds": rounds,
        "batches": batches,
        "warm_up": warm_up,
        **summarize(gather_objects(measurements)),
    }
    accelerator.end_training()
    return report


class _Rig:
    """The loader, the training step and the batches in memory, as far as they are measured."""

    def __init__(self, config: Config, what: What, loader: TrainLoader, accelerator: Any) -> None:
        self.sources: list[Source] = ["loader", "memory"] if what == "headspace" else ["loader"]
        if what == "step":
            self.sources = ["memory"]
        self._config, self._what, self._loader, self._accelerator = config, what, loader, accelerator
        self._model_parts = None if what == "loader" else build_model(config, accelerator)
        self._steps = 0
        self._prefetched = 0
        self._memory = cycle(list[Tensor]())

    def warm_up(self) -> dict[str, float]:
        """Take the first batches and steps; return their number and seconds."""
        began = time.perf_counter()
        first = next(self._loader).pixels
        _synchronize(self._accelerator.device)
        first_s = time.perf_counter() - began
        # Batches that wait behind each stage, and the one that each stage works on.
        self._prefetched = (self._config.data.prefetch + 1) * len(self._loader.stats.stages)
        kept = {"step": 1, "headspace": _IN_MEMORY}.get(self._what, 0)
        if kept:
            more = [next(self._loader).pixels.clone() for _ in range(kept - 1)]
            self._memory = cycle([first.clone(), *more])
        if self._what == "step":
            self._loader.close()  # The threads of the loader would take cores from the step.
        steps = _WARM_UP + (self._prefetched if "loader" in self.sources else 0)
        for _ in range(steps):
            self._step(self._next(self.sources[0]))
        _synchronize(self._accelerator.device)
        return {
            "batches": max(1, kept) + steps,
            "first_batch_seconds": first_s,
            "seconds": time.perf_counter() - began,
        }

    def prepare(self, source: Source) -> bool:
        """Get ready to measure another source. Return whether everything that is not measured is idle."""
        if len(self.sources) == 1:
            return True
        if source == "loader":  # It has fetched batches ahead during the other measurement.
            for _ in range(self._prefetched):
                self._step(self._next(source))
            return True
        idle = _wait_until_idle()
        self._step(self._next(source))
        return idle

    def measure(self, source: Source, batches: int, *, loader_idle: bool) -> Measurement:
        """Time one round.

        Args:
            source: Source of the batches.
            batches: Number of batches.
            loader_idle: What `prepare` returned.

        Returns:
            The measurement of this rank.
        """
        device, data = self._accelerator.device, self._config.data
        before = self._loader.stats if source == "loader" else None
        clips = frames = 0
        blocked_s, gaps = 0.0, []
        _synchronize(device)
        began = time.perf_counter()
        for _ in range(batches):
            done = _mark(device)
            requested = time.perf_counter()
            pixels = self._next(source)
            blocked_s += time.perf_counter() - requested
            gaps.append((done, _mark(device)))
            clips += pixels.shape[0] * pixels.shape[1]
            frames += pixels.shape[0] * pixels.shape[1] * pixels.shape[3]
            self._step(pixels)
        _synchronize(device)
        seconds = time.perf_counter() - began
        stats = None if before is None else self._loader.stats.since(before)
        resources = {"threads": data.threads, "decode_threads": data.decode_threads, "cores": cores_of_rank()}
        return Measurement(
            source=source,
            batches=batches,
            clips=clips,
            frames=frames,
            seconds=seconds,
            blocked_s=blocked_s,
            device_idle_s=_gap_seconds(gaps) if device.type == "cuda" else None,
            stats=stats,
            advice=None if stats is None else stats.advise(**resources),
            loader_idle=loader_idle,
        )

    def _next(self, source: Source) -> Tensor:
        return next(self._loader).pixels if source == "loader" else next(self._memory)

    def _step(self, pixels: Tensor) -> None:
        """Do one step as the trainer does, and read metrics as often; do nothing if only the loader is measured."""
        if self._model_parts is None:
            return
        config, (model, method, optimizer) = self._config, self._model_parts
        _, epochs = run_length(config, self._loader.steps_per_epoch)
        self._steps += 1
        log = self._steps % config.train.log_steps == 0
        logs = train_step(
            self._accelerator,
            model,
            method,
            optimizer,
            pixels,
            TrainingProgress(step=self._steps, epoch=epochs / 2, epochs=epochs),
            rate=learning_rate(config.optim, config.train.batch_size, 0.0, epochs),
            accumulate=config.train.accumulate,
            clip=config.optim.clip,
            log=log,
        )
        if log:
            for value in logs.values():
                value.item()  # waits for the device, as logging in a run does


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mark(device: torch.device) -> Any:
    """Record an event in the device's stream, whose time can be read later. Return None on the CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _gap_seconds(gaps: list[tuple[Any, Any]]) -> float:
    return float(sum(done.elapsed_time(fed) for done, fed in gaps)) / 1000


def _wait_until_idle() -> bool:
    """Wait until the threads of this process are nearly idle. Return False if they are not within the timeout."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while time.monotonic() < deadline:
        began, cpu = time.perf_counter(), time.process_time()
        time.sleep(0.2)
        if time.process_time() - cpu < _IDLE_CORES * (time.perf_counter() - began):
            return True
    return False


def _machine(device: torch.device) -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    return {
        "cpu": next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()),
        "cores": cores_of_rank(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
    }
