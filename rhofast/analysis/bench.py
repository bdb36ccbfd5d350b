"""How fast loader and training step are, on the user's own shards, machine and configuration.

    loader     batches taken as fast as they come, and thrown away
    step       the training step alone, again and again on one batch in memory
    both       training: real steps fed by the real loader
    headspace  the same steps fed in turn by the loader and from memory: the most that a faster loader could gain

Several rounds follow one another, and their medians are told with the lowest and the highest. What was fetched ahead in
untimed seconds is used up before anything is timed, so that a loader cannot live on its stock; a turn from memory
begins when the loader has nothing left to do. Under `accelerate launch` every rank runs: clips add up, and the slowest
rank's seconds count. What it is not: a run. Nothing is saved, evaluated or learned: the rate is that of a run's first
step, and the methods' schedules stand where they do in the middle of one, where no update is held back.
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

from rhofast.analysis.bench_report import Source, Turn, summarize
from rhofast.config.load import dump_config
from rhofast.config.schema import Config
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.distributed.collectives import gather_objects
from rhofast.distributed.process_group import cores_of_rank
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.environment import versions
from rhofast.training.optim import learning_rate
from rhofast.training.setup import build_accelerator, build_loader, build_model, open_training_shards, run_length
from rhofast.training.step import collected_by_hand, train_step

What = Literal["loader", "step", "both", "headspace"]

VERSION = 1
_IN_MEMORY = 4  # distinct batches that are kept for "headspace"
_WARM_UP = 3  # batches after the first, beyond the loader's stock
_REST_S, _REST = 30.0, 0.05  # how long to wait until the process rests, and the share of a core that counts as rest


def bench(
    config: Config,
    what: What,
    *,
    batches: int = 20,
    rounds: int = 5,
    on_turn: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure `rounds` rounds of `batches` batches; call it in every process. The report, as JSON values, on each.

    on_turn: called with the number of turns done and of all. Raises ConfigError, ShardError, SampleError.
    """
    accelerator = build_accelerator(config)
    shards = open_training_shards(config)
    with build_loader(config, accelerator, shards, None) as loader, collected_by_hand():
        rig = _Rig(config, what, loader, accelerator)
        warm_up = rig.warm_up()
        turns: list[Turn] = []
        for number in range(rounds):
            for source in rig.sources if number % 2 == 0 else reversed(rig.sources):
                rested = rig.change_over(source)
                accelerator.wait_for_everyone()
                turns.append(rig.take_turn(source, batches, rested=rested))
                if on_turn is not None:
                    on_turn(len(turns), rounds * len(rig.sources))
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
        **summarize(gather_objects(turns)),
    }
    accelerator.end_training()
    return report


class _Rig:
    """Loader, step and batches in memory, as far as they are asked for."""

    def __init__(self, config: Config, what: What, loader: TrainLoader, accelerator: Any) -> None:
        self.sources: list[Source] = ["loader", "memory"] if what == "headspace" else ["loader"]
        if what == "step":
            self.sources = ["memory"]
        self._config, self._what, self._loader, self._accelerator = config, what, loader, accelerator
        self._parts = None if what == "loader" else build_model(config, accelerator)
        self._steps = 0
        self._stock = 0
        self._memory = cycle(list[Tensor]())

    def warm_up(self) -> dict[str, float]:
        """Take the first batches and steps: how many, and in how many seconds."""
        began = time.perf_counter()
        first = next(self._loader).pixels
        _synchronize(self._accelerator.device)
        first_s = time.perf_counter() - began
        # What waits behind each stage, and what each has in hand.
        self._stock = (self._config.data.prefetch + 1) * len(self._loader.stats.stages)
        kept = {"step": 1, "headspace": _IN_MEMORY}.get(self._what, 0)
        if kept:
            more = [next(self._loader).pixels.clone() for _ in range(kept - 1)]
            self._memory = cycle([first.clone(), *more])
        if self._what == "step":
            self._loader.close()  # its threads would take cores from the step
        steps = _WARM_UP + (self._stock if "loader" in self.sources else 0)
        for _ in range(steps):
            self._step(self._next(self.sources[0]))
        _synchronize(self._accelerator.device)
        return {
            "batches": max(1, kept) + steps,
            "first_batch_seconds": first_s,
            "seconds": time.perf_counter() - began,
        }

    def change_over(self, source: Source) -> bool:
        """Make ready for a turn with another source; whether what is not to be measured rests."""
        if len(self.sources) == 1:
            return True
        if source == "loader":  # it fetched ahead while it was not asked
            for _ in range(self._stock):
                self._step(self._next(source))
            return True
        rested = _come_to_rest()
        self._step(self._next(source))
        return rested

    def take_turn(self, source: Source, batches: int, *, rested: bool) -> Turn:
        device, data = self._accelerator.device, self._config.data
        before = self._loader.stats if source == "loader" else None
        clips = frames = 0
        wait_s, gaps = 0.0, []
        _synchronize(device)
        began = time.perf_counter()
        for _ in range(batches):
            done = _mark(device)
            asked = time.perf_counter()
            pixels = self._next(source)
            wait_s += time.perf_counter() - asked
            gaps.append((done, _mark(device)))
            clips += pixels.shape[0] * pixels.shape[1]
            frames += pixels.shape[0] * pixels.shape[1] * pixels.shape[3]
            self._step(pixels)
        _synchronize(device)
        seconds = time.perf_counter() - began
        stats = None if before is None else self._loader.stats.since(before)
        hands = {"threads": data.threads, "decode_threads": data.decode_threads, "cores": cores_of_rank()}
        return Turn(
            source=source,
            batches=batches,
            clips=clips,
            frames=frames,
            seconds=seconds,
            wait_s=wait_s,
            device_wait_s=_gap_seconds(gaps) if device.type == "cuda" else None,
            stats=stats,
            advice=None if stats is None else stats.advise(**hands),
            rested=rested,
        )

    def _next(self, source: Source) -> Tensor:
        return next(self._loader).pixels if source == "loader" else next(self._memory)

    def _step(self, pixels: Tensor) -> None:
        """A step as the trainer takes it, metrics looked at as often; nothing where the loader is alone."""
        if self._parts is None:
            return
        config, (model, method, optimizer) = self._config, self._parts
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
                value.item()  # waits for the device, as writing the metrics does


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mark(device: torch.device) -> Any:
    """A place in the device's stream, with the time when it gets there; None on the CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _gap_seconds(gaps: list[tuple[Any, Any]]) -> float:
    return float(sum(done.elapsed_time(fed) for done, fed in gaps)) / 1000


def _come_to_rest() -> bool:
    """Wait until this process's threads hardly work any more; whether they did before patience ran out."""
    deadline = time.monotonic() + _REST_S
    while time.monotonic() < deadline:
        began, cpu = time.perf_counter(), time.process_time()
        time.sleep(0.2)
        if time.process_time() - cpu < _REST * (time.perf_counter() - began):
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
