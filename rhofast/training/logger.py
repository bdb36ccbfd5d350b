"""What a run reports while it trains: numbers once per window, warnings, advice, and a trace on request.

    start     the machine, the model, who decodes what          once per process start
    step      loss, schedules, speed, waits, memory             every train.log_steps
    knn       accuracy on held-out videos                       when the trainer evaluates
    validation, test    what a classifier scores                while it is trained, and at the end
    warning   what looks wrong (the embeddings collapse)        once each time
    advice    what limits the loader, and what to change        once if steps wait for data, and at the end
    stop      why the run ends before its last step             on a signal, or at train.max_hours
    error     why the run failed                                once

metrics.py lists every number and every kind of line. Lines go to metrics.jsonl and to the caller; numbers go to the
trackers, too. Between two windows nothing here waits for the device or for another rank. The trainer decides when to
log, evaluate and stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.schema import Config
from rhofast.data.loader.stats import FED, LoaderStats
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.distributed.collectives import gather_objects, reduce_max, reduce_mean
from rhofast.distributed.process_group import cores_of_rank
from rhofast.errors import RhofastError
from rhofast.training.environment import device_memory, exposed_communication, resident_bytes
from rhofast.training.low_value_alarm import LowValueAlarm
from rhofast.training.metrics import METRICS, STEP_PHASES
from rhofast.training.metrics_file import MetricsFile
from rhofast.training.profiler import StepProfiler
from rhofast.training.step_timer import StepTimer
from rhofast.training.tracker import EndState
from rhofast.training.trackers import RunTrackers

_WAITING = 0.03  # share of the time without data from which on the loader is worth a line of advice
_WHOLE = ("memory_bytes", "device_memory_bytes", "torch_memory_bytes", "bad_samples")  # written as integers
_COLLAPSED_STD, _COLLAPSED_WINDOWS = 0.1, 3  # a lower feature_std, for so many windows in a row, is a collapse


class MetricsLogger:
    """The numbers of a run, on every rank; rank 0 writes them.

    All ranks make the same calls.
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
        """Prepare to log; nothing is written before `begin`.

        Args:
            config: The run's configuration.
            accelerator: Accelerate's.
            model: The model as the accelerator prepared it.
            loader: The training loader, for its counters.
            steps: Steps of the whole run.
            on_log: Called on rank 0 with each line, with `steps` in it; or None.
        """
        self.config, self.accelerator, self.model, self.loader, self.steps = config, accelerator, model, loader, steps
        is_main, run = accelerator.is_main_process, RunFolder(config.folder)
        self._file = MetricsFile(run.metrics) if is_main else None
        self._trackers = RunTrackers(config)
        self._on_log = on_log
        traced = config.train.profile_steps
        self._profiler = StepProfiler(*traced, run.trace) if is_main and traced is not None else None
        self._timer = StepTimer(accelerator.device)
        self._collapse = LowValueAlarm(_COLLAPSED_STD, _COLLAPSED_WINDOWS)
        self._advised = False
        self._windows = 0
        self._idle_s = self._timed_s = 0.0  # seconds that this device waited for data, of those in all windows
        self._unwritable: set[str] = set()
        self._lost_lines = 0  # of metrics.jsonl, since it could be written last
        self._stats = loader.stats
        self._began = time.perf_counter()

    def begin(self, **facts: Any) -> None:
        """Open the trackers and write the start line.

        Args:
            **facts: What the line holds, among it `step` (where the run begins or continues) and `time` (ISO 8601).

        Raises:
            ConfigError: A tracker of a run that begins does not begin; on every rank.
        """
        if transport := [shards.transport for shards in self.loader.shards.sets if shards.transport]:
            facts["remote"] = transport
        self.write("start", **facts, decoders=list(self.loader.decoders))
        failure = None
        try:
            if self.accelerator.is_main_process:
                self._trackers.open(facts["step"])
        except RhofastError as error:
            failure = error
        failure = gather_objects(failure)[0] if self.config.train.trackers else None
        if failure is not None:
            raise failure
        self._warn_of_trackers(facts["step"])

    def restart(self) -> None:
        """Begin a new window and forget the old one: after an evaluation or a checkpoint."""
        self._timer.restart()
        self._stats = self.loader.stats

    @contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Count the time within this context, which is around `next(loader)`, as the wait for the batch of `step`."""
        if self._profiler is not None:
            self._profiler.before(step)
            self._profiler.enter("data")
        with self.loader.outages.told_to(partial(self.write, "warning", step=step - 1)), self._timer.waiting():
            yield

    def enter(self, phase: str) -> None:
        """Count the time of this step from here on for another of the `STEP_PHASES`."""
        self._timer.enter(phase)
        if self._profiler is not None:
            self._profiler.enter(phase)

    def step(self, step: int, clips: int) -> None:
        """Note that a step is over.

        Args:
            step: Its number, from 1.
            clips: The clips in it, on this rank.
        """
        self._timer.step(clips)
        if self._profiler is None:
            return
        try:
            written = self._profiler.after(step)
        except (OSError, RuntimeError) as error:
            self._profiler = None
            self._warn_unwritable("the trace", error, step)
        else:
            if written:
                self.restart()

    def log(self, step: int, epoch: float, values: Mapping[str, Tensor]) -> None:
        """Close the window: write a line of numbers, and warnings and advice where they give reason to.

        Args:
            step: Number of the last step.
            epoch: Epochs done, with their fraction.
            values: Scalars of the last step, with the same names on every rank; their mean over ranks is logged.
        """
        device = self.accelerator.device
        stacked = torch.stack([value.detach().to(device, torch.float64) for value in values.values()])
        means = reduce_mean(stacked).tolist()  # here the host waits for the device, once per window
        window = self._timer.window()
        self._idle_s += window.phases["data"]
        self._timed_s += window.seconds
        stats = self.loader.stats
        recent, self._stats = stats.since(self._stats), stats
        mine = {
            "clips_per_second": window.clips_per_second,
            "step_seconds": window.step_seconds,
            **{f"{phase}_seconds": window.phases[phase] / max(1, window.steps) for phase in STEP_PHASES},
            "data_wait_share": window.data_wait_share,
            "host_blocked_share": window.host_blocked_share,
            "readiness": recent.readiness,
            "memory_bytes": resident_bytes(),
            "bad_samples": stats.bad,
        }
        if device.type == "cuda":
            mine |= device_memory(device)
        line = dict(zip(values, means, strict=True)) | self._over_ranks(mine)
        if (exposed := exposed_communication(self.model)) is not None:
            line["communication_seconds"] = exposed
        line |= {name: int(line[name]) for name in _WHOLE if name in mine}
        self.write("step", step=step, epoch=epoch, **line, seconds=time.perf_counter() - self._began)
        self._track(line | {"epoch": epoch}, step)
        if self._collapse.update(line.get("feature_std", float("nan"))):
            self.write(
                "warning",
                step=step,
                text=f"the embeddings collapse: feature_std is {line['feature_std']:.3f} (1: over the sphere, 0: one "
                f"point) and has been below {_COLLAPSED_STD} for {_COLLAPSED_WINDOWS} windows",
            )
        if self.loader.write_error is not None:
            self._warn_unwritable("bad_samples.jsonl", self.loader.write_error, step)
        self._windows += 1
        # On CUDA the host may find the queue empty while the device has work: only the device's wait counts.
        waited = line["data_wait_share"] if device.type == "cuda" else 1 - line["readiness"]
        if waited > _WAITING and self._windows > 1 and not self._advised:  # the first window waits for the first batch
            self._advised = True
            words = f"{waited:.1%} of the last {window.steps} steps went by waiting for data: "
            self._advise(step, recent, window.data_wait_share if device.type == "cuda" else None, words)

    def knn(self, step: int, *, top1: float, top5: float | None, samples: int) -> None:
        """Write the accuracy on held-out videos.

        Args:
            step: Optimizer steps done.
            top1: Top-1 accuracy, in [0, 1].
            top5: Top-5 accuracy, in [0, 1]; None with five classes or fewer.
            samples: The videos that were tested.
        """
        accuracies = {"top1": top1} if top5 is None else {"top1": top1, "top5": top5}
        self.write("knn", step=step, **accuracies, samples=samples)
        self._track({f"knn_{name}": value for name, value in accuracies.items()}, step)

    def score(
        self,
        kind: Literal["validation", "test"],
        step: int,
        *,
        measure: str,
        value: float,
        samples: int,
        held_out: str,
    ) -> None:
        """Write what a classifier scores on held-out videos.

        Args:
            kind: Whether training goes on ("validation"), or is over ("test").
            step: Optimizer steps done.
            measure: Name of the measure.
            value: Its value, in [0, 1].
            samples: The videos, or key frames, that were looked at.
            held_out: Digest of what they were chosen from, which tells test sets apart.
        """
        self.write(kind, step=step, measure=measure, score=value, samples=samples, held_out=held_out)
        self._track({f"{kind}_score": value}, step)

    def write(self, kind: str, **values: Any) -> None:
        """Write a line on rank 0. A full disk costs the line, not the run.

        Args:
            kind: One of metrics.LINE_KINDS.
            **values: What the line holds; `step` among it.
        """
        if self._file is None:
            return
        try:
            self._file.write(kind, **values)
        except OSError as error:
            self._lost_lines += 1
            self._warn_unwritable("metrics.jsonl", error, values["step"])
        else:
            if self._lost_lines:
                text, self._lost_lines = f"{self._lost_lines} lines before this one could not be written", 0
                self.write("note", step=values["step"], text=text)
        if self._on_log is not None:
            self._on_log({"kind": kind, "steps": self.steps, **values})

    def end(self, step: int) -> None:
        """Write advice about the loader, and what has been traced, after the last step of this process."""
        stats = self.loader.stats
        if stats.batches:
            cuda = self.accelerator.device.type == "cuda"
            self._advise(step, stats, self._idle_s / self._timed_s if cuda and self._timed_s else None)
        try:
            if self._profiler is not None:
                self._profiler.close()
        except (OSError, RuntimeError) as error:
            self._warn_unwritable("the trace", error, step)

    @contextmanager
    def ending(self, step: Callable[[], int]) -> Iterator[None]:
        """Write why the run fails, if the block does, and tell the trackers.

        Args:
            step: Returns the optimizer steps done.
        """
        try:
            yield
        except BaseException as error:
            if isinstance(error, RhofastError):
                self.write("error", step=step(), text=error.message)
            self.end_trackers(step(), "failed", hurried=isinstance(error, KeyboardInterrupt))
            raise

    def end_trackers(self, step: int, state: EndState, *, hurried: bool = False) -> None:
        """Tell the trackers how the run ended; they get a limited time to send what they have.

        Args:
            step: Optimizer steps done.
            state: How the run ended.
            hurried: Whether somebody waits for the process to end (a second Ctrl-C).
        """
        self._trackers.finish(state, hurried=hurried)
        self._warn_of_trackers(step)

    def _over_ranks(self, mine: dict[str, float]) -> dict[str, float]:
        """Combine this rank's numbers with those of the other ranks as METRICS says."""
        names = {
            how: [name for name in mine if METRICS[name].over_ranks == how] for how in ("mean", "sum", "max", "min")
        }
        averaged, largest = names["mean"] + names["sum"], names["max"] + names["min"]
        sign = [1.0] * len(names["max"]) + [-1.0] * len(names["min"])
        device = self.accelerator.device
        means = reduce_mean(torch.tensor([mine[name] for name in averaged], dtype=torch.float64, device=device))
        signs = torch.tensor(sign, dtype=torch.float64, device=device)
        extremes = reduce_max(
            signs * torch.tensor([mine[name] for name in largest], dtype=torch.float64, device=device)
        )
        combined = dict(zip(averaged, means.tolist(), strict=True))
        combined |= {name: combined[name] * self.accelerator.num_processes for name in names["sum"]}
        combined |= dict(zip(largest, (signs * extremes).tolist(), strict=True))
        return {name: combined[name] for name in mine}

    def _track(self, values: dict[str, Any], step: int) -> None:
        self._trackers.log(values, step)
        self._warn_of_trackers(step)

    def _warn_of_trackers(self, step: int) -> None:
        for text in self._trackers.news():
            self.write("warning", step=step, text=text)

    def _warn_unwritable(self, what: str, error: OSError | RuntimeError, step: int) -> None:
        """Tell the caller once what cannot be written."""
        if what not in self._unwritable and self._on_log is not None:
            reason = getattr(error, "strerror", None) or error
            text = f"{what} cannot be written, and numbers are lost: {reason}"
            self._on_log({"kind": "warning", "steps": self.steps, "step": step, "text": text})
        self._unwritable.add(what)

    def _advise(self, step: int, stats: LoaderStats, waited: float | None, words: str = "") -> None:
        """Write what the rank that waited most says about its loader.

        Args:
            step: Optimizer steps done.
            stats: The loader's numbers of the time that the advice is about.
            waited: Share of that time in which this rank's CUDA device waited for data; None on a CPU, where the
                loader knows it by itself.
            words: What the line begins with.
        """
        data, cores = self.config.data, cores_of_rank()
        advice = stats.advise(threads=data.threads, decode_threads=data.decode_threads, cores=cores)
        if waited is not None and waited <= 1 - FED:
            advice = f"the device is the limit: it waits for data {waited:.1%} of the time"
        gathered = gather_objects((stats.readiness if waited is None else 1 - waited, advice))
        slowest = min(range(len(gathered)), key=lambda rank: gathered[rank])
        where = f"rank {slowest}: " if len(gathered) > 1 else ""
        self.write("advice", step=step, text=f"{words}{where}{gathered[slowest][1]}")
