"""The training loop.

    next(loader) -> learning rate -> for each part: forward, backward -> optimizer -> log, evaluate, save

A method splits a step into parts (one query clip each, say), and `train.accumulate` splits the batch; gradients add up,
and only the last backward meets the other ranks. The loop knows no method's name. Every rank takes its slice of the
same global batches, so the number of processes changes the speed, not the data. Nothing here draws from a global random
state that was not set from (seed, step) before, so a resumed run continues as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import platform
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from rhofast.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint, untrained_backbone
from rhofast.config import Config, dump_config
from rhofast.data.index import ShardSet
from rhofast.data.loader import Loader
from rhofast.data.mixture import Mixture
from rhofast.data.remote import open_test, open_training
from rhofast.distributed import reduce_max
from rhofast.errors import ConfigError, ResumeError, RhofastError
from rhofast.evals.knn import evaluate_knn
from rhofast.files import write_atomically
from rhofast.methods import build_method
from rhofast.methods.contract import Method, Moment, check_accumulation, run_step
from rhofast.optim import build_optimizer, learning_rate, load_optimizer
from rhofast.rng import Stream, bits
from rhofast.telemetry import MetricsFile, StepClock

EXIT_RESUMABLE = 75  # sysexits' EX_TEMPFAIL: saved on a signal or at max_hours; run again with --resume
_COLLECT_STEPS = 200  # garbage is collected here, on all ranks at the same step, and nowhere else in the loop


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a call of `train` ended. finished: the last step is done; otherwise it stopped early and can be resumed."""

    run: Path
    step: int
    steps: int
    finished: bool


def train(config: Config, *, resume: bool = False, on_log: Callable[[dict[str, Any]], None] | None = None) -> Outcome:
    """Run or continue the run that `config` describes; call it in every process.

    resume: continue from the run folder's newest checkpoint, or begin where there is none. on_log: called on rank 0
    with each line of metrics, with `step` and `steps`. Raises ConfigError (also where the run folder exists and
    `resume` is off), ShardError, SampleError, ResumeError.
    """
    shards = open_training_shards(config)
    test = open_test(config.data)
    accelerator = build_accelerator(config)
    run = _Run(config, accelerator, shards, test, on_log)
    with _Stopper(config.train.max_hours) as stopper, run.loader:
        checkpoint = _open_run(config, accelerator, resume=resume)
        if checkpoint is not None:
            run.restore(checkpoint)
        outcome = run.loop(stopper)
    accelerator.end_training()
    return outcome


def open_training_shards(config: Config) -> Mixture:
    """What the run trains on. Raises ConfigError, ShardError."""
    sources = open_training(config.data)
    return Mixture(sources.sets, sources.weights)


def build_accelerator(config: Config) -> Accelerator:
    """This process's place among the ranks, its device and its arithmetic."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        log_with="tensorboard",
        project_dir=str(config.folder),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def build_loader(config: Config, accelerator: Accelerator, shards: Mixture, bad_log: Path | None) -> Loader:
    """This rank's training loader. Raises ConfigError."""
    device = accelerator.device
    return Loader(
        shards,
        clips=config.clips,
        augment=config.augment,
        data=config.data,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=device,
        half=device.type == "cuda" and config.train.precision != "fp32",
        bad_log=bad_log,
    )


def build_model(config: Config, accelerator: Accelerator) -> tuple[nn.Module, Method, AcceleratedOptimizer]:
    """What `take_step` needs: the model as `accelerator.prepare` gives it, the method within, the optimizer; the same
    weights on every rank. Raises ConfigError."""
    method = build_method(config.method.name, config.method.options, untrained_backbone(config)).to(accelerator.device)
    try:
        method.check(max(2, config.clips.num_clips), config.train.batch_size)
    except ValueError as error:
        raise ConfigError(f"method: {error}") from None
    check_accumulation(method, config.train, accelerator.num_processes)
    if config.train.channels_last:
        method = method.to(memory_format=torch.channels_last_3d)
    optimizer = build_optimizer(method, config.optim)
    if config.train.compile:
        for module in method.children():
            module.compile()  # in place: names in the state dict stay
    with warnings.catch_warnings():  # newer torch has another word for broadcast_buffers, older torch only this one
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        model, prepared = accelerator.prepare(method, optimizer)
    return model, method, prepared


class _Run:
    """The state of a run between two steps: model, optimizer, loader, and the step's number."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        shards: Mixture,
        test: ShardSet | None,
        on_log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.shards, self.test = shards, test
        self.model, self.method, self.optimizer = build_model(config, accelerator)
        self.loader = build_loader(config, accelerator, shards, config.folder / "bad_samples.jsonl")
        self.step = 0
        self.steps, self.epochs = run_length(config, self.loader.steps_per_epoch)
        self.metrics = MetricsFile(config.folder / "metrics.jsonl") if accelerator.is_main_process else None
        self.on_log = on_log
        self._began = time.perf_counter()

    @property
    def epoch(self) -> float:
        return self.step / self.loader.steps_per_epoch

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint left off. Raises ResumeError."""
        try:
            self.method.load_state_dict(checkpoint.method)
        except RuntimeError as error:
            raise ResumeError(f"the checkpoint's weights do not fit this configuration: {error}") from None
        load_optimizer(self.optimizer.optimizer, checkpoint.optimizer)
        self.loader.load_state_dict(checkpoint.loader)
        self.step = checkpoint.step

    def loop(self, stopper: _Stopper) -> Outcome:
        """All steps from here to the end, or to the first call for a stop."""
        train = self.config.train
        if self.accelerator.is_main_process:
            self.accelerator.init_trackers("tensorboard")
        self._write("start", step=self.step, **self._facts())
        self._evaluate(first=True)
        clock = StepClock()
        with collected_by_hand():
            while self.step < self.steps:
                with clock.waiting():
                    views = next(self.loader)
                last = self.step + 1 == self.steps
                logs = self._train_step(views.pixels, log=last or (self.step + 1) % train.log_steps == 0)
                self.step += 1
                clock.step(views.pixels.shape[0] * views.pixels.shape[1])
                if self.step % train.log_steps == 0 or self.step == self.steps:
                    self._log(logs, clock)
                if self._agree_to_stop(stopper):
                    break
                if self._evaluate():
                    clock.restart()
                if self.step % train.checkpoint_steps == 0 and self.step < self.steps:
                    self._save()
                    clock.restart()
                if self.step % _COLLECT_STEPS == 0:
                    gc.collect()
        self._save()
        return Outcome(run=self.config.folder, step=self.step, steps=self.steps, finished=self.step >= self.steps)

    def _train_step(self, pixels: Tensor, *, log: bool) -> dict[str, Tensor]:
        """The next step of the run."""
        config = self.config
        torch.manual_seed(_torch_seed(config.seed, self.step + 1, self.accelerator.process_index))
        return take_step(
            self.accelerator,
            self.model,
            self.method,
            self.optimizer,
            pixels,
            Moment(step=self.step, epoch=self.epoch, epochs=self.epochs),
            rate=learning_rate(config.optim, config.train.batch_size, self.epoch, self.epochs),
            accumulate=config.train.accumulate,
            clip=config.optim.clip,
            log=log,
        )

    def _log(self, logs: dict[str, Tensor], clock: StepClock) -> None:
        window = clock.window()
        values = {name: float(value) for name, value in logs.items()}
        share = reduce_max(torch.tensor(window.data_wait_share, device=self.accelerator.device))
        bad = reduce_max(torch.tensor(float(self.loader.stats.bad), device=self.accelerator.device))
        values["loss"] = float(self.accelerator.reduce(logs["loss"], reduction="mean"))
        values["clips_per_second"] = window.clips_per_second * self.accelerator.num_processes
        values["data_wait_share"] = float(share)
        seconds = time.perf_counter() - self._began
        self._write("step", step=self.step, epoch=self.epoch, **values, bad_samples=int(bad), seconds=seconds)
        self.accelerator.log(values, step=self.step)

    def _evaluate(self, *, first: bool = False) -> bool:
        """kNN on the held-out shards: before the first step, every `knn_steps`, and after the last. True if it ran."""
        every = self.config.train.knn_steps
        due = self.step == 0 if first else every is not None and (self.step % every == 0 or self.step == self.steps)
        if self.test is None or every is None or not due:
            return False
        config = self.config
        result = evaluate_knn(
            self.method.backbone,
            self.shards.sets[0],
            self.test,
            clips=config.clips,
            augment=config.augment,
            data=config.data,
            section=config.eval,
        )
        self._write("knn", step=self.step, top1=result.top1, top5=result.top5, samples=result.samples)
        self.accelerator.log({"knn_top1": result.top1, "knn_top5": result.top5}, step=self.step)
        return True

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            checkpoint = Checkpoint(
                step=self.step,
                config=self.config,
                loader=self.loader.state_dict(),
                method=self.method.state_dict(),
                optimizer=self.optimizer.optimizer.state_dict(),
            )
            save_checkpoint(self.config.folder, checkpoint, keep=self.config.train.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _agree_to_stop(self, stopper: _Stopper) -> bool:
        """Whether to stop here: on one rank at any step; on several where they talk anyway, so that none waits."""
        if self.accelerator.num_processes == 1:
            return stopper.asked
        if self.step % self.config.train.log_steps:
            return False
        asked = torch.tensor(float(stopper.asked), device=self.accelerator.device)
        return bool(reduce_max(asked) > 0)

    def _write(self, kind: str, **values: Any) -> None:
        if self.metrics is not None:
            self.metrics.write(kind, **values)
            if self.on_log is not None:
                self.on_log({"kind": kind, "steps": self.steps, **values})

    def _facts(self) -> dict[str, Any]:
        """What a reader of the metrics wants to know about the machine and the model."""
        device = self.accelerator.device
        return {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "world_size": self.accelerator.num_processes,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "parameters": sum(p.numel() for p in self.method.backbone.parameters()),
            "samples": len(self.shards),
            "digest": self.shards.digest,
            "versions": versions(),
        }


def take_step(
    accelerator: Accelerator,
    model: nn.Module,
    method: Method,
    optimizer: AcceleratedOptimizer,
    pixels: Tensor,
    moment: Moment,
    *,
    rate: float,
    accumulate: int = 1,
    clip: float | None = None,
    log: bool = False,
) -> dict[str, Tensor]:
    """One optimizer step: its metrics, as tensors. The host queues the work and does not wait for the device.

    model, optimizer: as `accelerator.prepare` gave them; method: the model without what wraps it. pixels:
    [B, P, C, T, H, W]. rate: the learning rate. accumulate, clip: as in the configuration. log: the norm of the
    gradients is wanted.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss, logs = run_step(
        model,
        method,
        pixels,
        moment,
        accumulate=accumulate,
        backward=accelerator.backward,
        apart=lambda: accelerator.no_sync(model),
    )
    logs |= {"loss": loss.float(), "lr": torch.tensor(rate), "grad_norm": torch.zeros(())}
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    if gradients:  # none where a method holds back its first updates
        if clip is not None:
            logs["grad_norm"] = accelerator.clip_grad_norm_(method.parameters(), clip)
        elif log:
            accelerator.unscale_gradients(optimizer)
            logs["grad_norm"] = nn.utils.get_total_norm(gradients)
        optimizer.step()
    return logs


class _Stopper:
    """Notices SIGTERM, SIGUSR1 (Slurm's warning), Ctrl-C and the end of `max_hours`. The step under way is finished and
    saved; a second Ctrl-C ends at once."""

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, max_hours: float | None) -> None:
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._signaled = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        return self._signaled or (self._deadline is not None and time.monotonic() > self._deadline)

    def __enter__(self) -> _Stopper:
        with contextlib.suppress(ValueError):  # not in the main thread: then the caller sees to signals
            self._before = {name: signal.signal(name, self._notice) for name in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self._signaled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signaled = True


def _open_run(config: Config, accelerator: Accelerator, *, resume: bool) -> Checkpoint | None:
    """Make the run folder on rank 0, or find the checkpoint to continue from; every rank learns of a failure."""
    outcome: list[Any] = [None]
    checkpoint = None
    if accelerator.is_main_process:
        try:
            outcome[0], checkpoint = _make_folder(config, resume=resume)
        except RhofastError as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], RhofastError):
        raise outcome[0]
    if outcome[0] is not None and checkpoint is None:  # rank 0 has read it already
        checkpoint = load_checkpoint(outcome[0])
    return checkpoint


def _make_folder(config: Config, *, resume: bool) -> tuple[Path | None, Checkpoint | None]:
    """The checkpoint to continue from, where there is one: its folder and what is in it."""
    folder = config.folder
    found = latest_checkpoint(folder) if resume else None
    if folder.exists() and not resume:
        raise ConfigError(
            f"{folder}: the run folder exists", hint="continue it with --resume, or choose another name: --set name=..."
        )
    checkpoint = None if found is None else load_checkpoint(found)
    if checkpoint is not None:
        _check_same_run(config, checkpoint.config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", json.dumps(dump_config(config), indent=1))
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}") from None
    return found, checkpoint


def _check_same_run(new: Config, old: Config) -> None:
    """Refuse to continue a run as another one. How long, how often and with how many hands may change."""
    free = {"name", "out", "data", "eval"}
    free_train = {"epochs", "steps", "checkpoint_steps", "keep_checkpoints", "log_steps", "knn_steps", "max_hours"}
    now, before = dump_config(new), dump_config(old)
    changes = []
    for section in sorted(set(now) - free):
        if not isinstance(now[section], dict):
            pairs = {section: (before.get(section), now[section])}
        else:
            keys = set(now[section]) | set(before.get(section, {}))
            pairs = {f"{section}.{key}": (before.get(section, {}).get(key), now[section].get(key)) for key in keys}
        changes += [f"{key} was {a!r}, is {b!r}" for key, (a, b) in pairs.items() if a != b]
    changes = [change for change in changes if change.split()[0].removeprefix("train.") not in free_train]
    if changes:
        raise ResumeError(
            "the checkpoint belongs to another configuration: " + "; ".join(sorted(changes)),
            hint="choose another name for a new run",
        )


def run_length(config: Config, steps_per_epoch: int) -> tuple[int, float]:
    """(steps, epochs) of the whole run."""
    if config.train.steps is not None:
        return config.train.steps, config.train.steps / steps_per_epoch
    assert config.train.epochs is not None
    return max(1, round(config.train.epochs * steps_per_epoch)), config.train.epochs


def _torch_seed(seed: int, step: int, rank: int) -> int:
    return int(bits(seed, step, rank, Stream.MODEL, 1)[0] >> 1)


@contextlib.contextmanager
def collected_by_hand() -> Iterator[None]:
    """No garbage collection at random moments of the hot loop: it would stall one rank, and so all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def versions() -> dict[str, str]:
    """Of what a run depends on."""
    return {name: _version(name) for name in ("rhofast", "torch", "accelerate", "nvidia-dali")}


def _version(package: str) -> str:
    names = [package] if package != "nvidia-dali" else ["nvidia-dali-cuda130", "nvidia-dali-cuda120"]
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "none"
