"""What a run tells about itself while it trains: a line of numbers a window, warnings, advice, a trace on request.

    start     the machine, the model, who decodes what         once a process start
    step      loss, schedules, speed, waits, memory            every train.log_steps
    knn       accuracy on held-out videos                      when the trainer evaluates
    warning   what looks wrong (the embeddings collapse)       once each time
    advice    what holds the loader up, and what to change     once if steps wait for data, and in the end
    stop      why it ends before the last step                 on a signal, or at max_hours
    error     why it failed                                    once

Lines go to metrics.jsonl and to the caller; numbers go to the trackers, too. Between two windows nothing here waits for
the device or for another rank. What it is not: it does not decide when to log, evaluate or stop (train.py does).
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import dump_config
from rhofast.config.schema import Config, TrainConfig
from rhofast.data.loader.stats import LoaderStats
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.distributed.collectives import gather_objects, reduce_max, reduce_mean
from rhofast.distributed.process_group import cores_of_rank
from rhofast.errors import DependencyError
from rhofast.training.environment import resident_bytes
from rhofast.training.metrics_file import MetricsFile, read_metrics
from rhofast.training.profiler import StepProfiler
from rhofast.training.step_timer import STEP_PHASES, StepTimer

_WAITING = 0.03  # share of the time without data from which on the loader is worth a word
_COLLAPSE, _COLLAPSE_WINDOWS = 0.1, 3  # the embeddings' spread (1: over the sphere, 0: one point), and for how long


def check_trackers(section: TrainConfig) -> None:
    """Raise DependencyError for a tracker that is not installed."""
    if "wandb" in section.trackers and importlib.util.find_spec("wandb") is None:
        raise DependencyError('train.trackers: "wandb" is not installed', hint="pip install wandb")


class MetricsLogger:
    """The numbers of a run, on every rank; rank 0 writes them down.

    accelerator, model: Accelerate's, the model as prepared. steps: of the whole run. on_log: called on rank 0 with each
    line, with `steps`. All ranks make the same calls.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Any,
        model: nn.Module,
        loader: TrainLoader,
        steps: int,
        on_log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.accelerator, self.model, self.loader, self.steps = config, accelerator, model, loader, steps
        main, chosen = accelerator.is_main_process, config.train.profile_steps
        self._file = MetricsFile(RunFolder(config.folder).metrics) if main else None
        self._on_log = on_log
        self._trace = StepProfiler(*chosen, RunFolder(config.folder).trace) if main and chosen is not None else None
        self._clock = StepTimer(accelerator.device)
        self._collapse = Alarm(_COLLAPSE, _COLLAPSE_WINDOWS)
        self._advised = False
        self._windows = 0
        self._unwritten: set[str] = set()
        self._stats = loader.stats
        self._began = time.perf_counter()

    def begin(self, **facts: Any) -> None:
        """Open the trackers and say what is about to run. facts: with the `step` and the `time`."""
        if self.accelerator.is_main_process:
            # A queue that holds some windows, so that slow storage does not hold up a step; and what an earlier process
            # told of steps that are now taken again is void.
            kinds = {"tensorboard": {"max_queue": 1000, "purge_step": facts["step"] + 1}}
            kinds["wandb"] = self._wandb(facts["time"])
            self.accelerator.init_trackers("rhofast", init_kwargs=kinds)
        self.write("start", **facts, decoders=list(self.loader.decoders))

    def _wandb(self, time: str) -> dict[str, Any]:
        """How W&B is to begin this run, or continue it: its name there is that of the run and when it first began."""
        config = self.config
        first = next(iter(read_metrics(RunFolder(config.folder).metrics)), {}).get("time", time)
        run = f"{config.name}-{''.join(filter(str.isdigit, first))}"
        return {
            "name": config.name,
            "id": run,
            "resume": "allow",
            "dir": str(config.folder),
            "config": dump_config(config),
        }

    def restart(self) -> None:
        """Begin a new window and forget the old one: after an evaluation or a checkpoint."""
        self._clock.restart()
        self._stats = self.loader.stats

    @contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Around `next(loader)` for the step with this number (from 1)."""
        if self._trace is not None:
            self._trace.before(step)
            self._trace.enter("data")
        with self._clock.waiting():
            yield

    def enter(self, stage: str) -> None:
        """From here on the time of this step belongs to another of telemetry's `STEP_PHASES`."""
        self._clock.enter(stage)
        if self._trace is not None:
            self._trace.enter(stage)

    def step(self, step: int, clips: int) -> None:
        """The step with this number, with so many clips on this rank, is over."""
        self._clock.step(clips)
        if self._trace is not None and self._trace.after(step):
            self.restart()

    def log(self, step: int, epoch: float, values: Mapping[str, Tensor]) -> None:
        """Close the window: a line of numbers, and what they give reason to say. values: scalars of the last step,
        the same names on every rank; their mean over the ranks is logged."""
        device = self.accelerator.device
        told = torch.stack([value.detach().to(device, torch.float64) for value in values.values()])
        means = reduce_mean(told).tolist()  # here the host waits for the device, once a window
        window = self._clock.window()
        stats = self.loader.stats
        seen, self._stats = stats.since(self._stats), stats
        clocked = max(1, window.steps)
        own = [window.clips_per_second, window.step_seconds, *(window.stages[name] / clocked for name in STEP_PHASES)]
        speed, step_seconds, *split = reduce_mean(torch.tensor(own, dtype=torch.float64, device=device)).tolist()
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        worst = [window.data_wait_share, 1 - seen.readiness, stats.bad, resident_bytes(), peak]
        wait, unready, bad, memory, peak = reduce_max(torch.tensor(worst, dtype=torch.float64, device=device)).tolist()
        line = dict(zip(values, means, strict=True))
        line |= {"clips_per_second": speed * self.accelerator.num_processes, "step_seconds": step_seconds}
        line |= {f"{name}_seconds": value for name, value in zip(STEP_PHASES, split, strict=True)}
        if (exposed := _communication(self.model)) is not None:
            line["communication_seconds"] = exposed
        line |= {"data_wait_share": wait, "readiness": 1 - unready, "memory_bytes": int(memory)}
        if device.type == "cuda":
            line["device_memory_bytes"] = int(peak)
        self.write(
            "step", step=step, epoch=epoch, **line, bad_samples=int(bad), seconds=time.perf_counter() - self._began
        )
        self._track(line | {"bad_samples": int(bad), "epoch": epoch}, step)
        if self._collapse.see(line.get("feature_std", float("nan"))):
            self.write(
                "warning",
                step=step,
                text=f"the embeddings collapse: their spread is {line['feature_std']:.3f} (1: over the sphere, 0: one "
                f"point) and has been below {_COLLAPSE} for {_COLLAPSE_WINDOWS} windows",
            )
        self._windows += 1
        if unready > _WAITING and self._windows > 1 and not self._advised:  # the first holds the first batch's wait
            self._advised = True
            self._advise(step, seen, f"{unready:.1%} of the last {window.steps} steps went by waiting for data: ")

    def knn(self, step: int, *, top1: float, top5: float, samples: int) -> None:
        """What the held-out videos say."""
        self.write("knn", step=step, top1=top1, top5=top5, samples=samples)
        self._track({"knn_top1": top1, "knn_top5": top5}, step)

    def write(self, kind: str, **values: Any) -> None:
        """A line, on rank 0; nothing on others. It has a `step`. A disk that is full costs the line, not the run."""
        if self._file is None:
            return
        try:
            self._file.write(kind, **values)
        except OSError as error:
            self._lost("metrics.jsonl", error, values["step"])
        if self._on_log is not None:
            self._on_log({"kind": kind, "steps": self.steps, **values})

    def end(self, step: int) -> None:
        """The last step of this process is over."""
        stats = self.loader.stats
        if stats.batches:
            self._advise(step, stats)
        if self._trace is not None:
            self._trace.close()

    def _track(self, values: dict[str, Any], step: int) -> None:
        try:
            self.accelerator.log(values, step=step)
        except OSError as error:
            self.accelerator.trackers.clear()  # TensorBoard's thread has died of it
            self._lost("the trackers", error, step)

    def _lost(self, what: str, error: OSError, step: int) -> None:
        """Say once what cannot be written."""
        if what not in self._unwritten and self._on_log is not None:
            text = f"{what} cannot be written, and numbers are lost: {error.strerror or error}"
            self._on_log({"kind": "warning", "steps": self.steps, "step": step, "text": text})
        self._unwritten.add(what)

    def _advise(self, step: int, stats: LoaderStats, words: str = "") -> None:
        """What the rank that waited most has to say about its loader."""
        data, cores = self.config.data, cores_of_rank()
        own = stats.advise(threads=data.threads, decode_threads=data.decode_threads, cores=cores)
        told = gather_objects((stats.readiness, own))
        rank = min(range(len(told)), key=lambda one: told[one])
        where = f"rank {rank}: " if len(told) > 1 else ""
        self.write("advice", step=step, text=f"{words}{where}{told[rank][1]}")


def _communication(model: nn.Module) -> float | None:
    """Seconds of a step in which the gradients of this rank are ready and those of all ranks are not yet: part of the
    backward stage. As PyTorch clocked it last (it does in the first ten steps and then in every hundredth); None where
    it did not. The statistics that batch norms exchange are not in it."""
    if not isinstance(model, DistributedDataParallel):
        return None
    clocked = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    told, hidden = (clocked.get(name, 0) for name in ("backward_comm_time", "backward_compute_comm_overlap_time"))
    return max(0, told - hidden) / 1e9 if told else None


class Alarm:
    """Tells that a value has stayed below a level. Once, until the value has been above it again.

    level: below it a value is low; windows: as many in a row. Values that are not finite are not looked at.
    """

    def __init__(self, level: float, windows: int) -> None:
        self._level, self._windows, self._low = level, windows, 0

    def see(self, value: float) -> bool:
        """Whether this value is the one to tell of."""
        if not math.isfinite(value):
            return False
        self._low = self._low + 1 if value < self._level else 0
        return self._low == self._windows
