"""Measure what logging costs per step: the calls that the trainer makes, with nothing between them.

    python -m benchmarks.training.logging_overhead [--log-steps 10] [--passes 4]

The share is of a step of 200 ms. The line of a window goes to metrics.jsonl and to TensorBoard, as in a run; the live
view is drawn into memory.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from rhofast.cli.live_view import TrainingView
from rhofast.config.load import parse_config
from rhofast.data.loader.stats import LoaderStats
from rhofast.data.loader.threaded_pipeline import StageClock
from rhofast.training.logger import MetricsLogger

STEP_S = 0.2
STEPS = 2000


class Idle:
    """A loader that does nothing, with the counters that the logger reads."""

    decoders = ("nothing is decoded",)
    write_error = None

    @property
    def stats(self) -> LoaderStats:
        clocks = {name: StageClock(busy=1.0, starved=0.1, blocked=0.1) for name in ("plan", "read", "decode")}
        zeros = dict.fromkeys(("batches", "clips", "frames", "frames_decoded", "bytes_read", "bytes_used", "bad"), 0)
        return LoaderStats(**zeros, seconds=time.perf_counter(), wait_s=0.0, stages=clocks)


def timed(work: Callable[[], object], count: int) -> float:
    """Return the mean seconds per call."""
    began = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - began) / count


def measure(folder: Path, passes: int, log_steps: int) -> dict[str, Any]:
    """Return the time per step, per window, and both as a share of a step of STEP_S."""
    values = {"name": "x", "out": str(folder), "train": {"steps": STEPS, "log_steps": log_steps}}
    config = parse_config(values, where="benchmark")
    config.folder.mkdir()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    loader: Any = Idle()
    model = torch.nn.Linear(1, 1)
    logs = {f"loss_pass{pass_index}": torch.rand((), device=accelerator.device) for pass_index in range(passes)}
    logs |= {name: torch.rand(()) for name in ("loss", "lr", "grad_norm", "feature_std", "ema_momentum")}
    at = SimpleNamespace(step=0)
    with TrainingView(console) as view:
        logger = MetricsLogger(config, accelerator, model, loader, STEPS, view.on_log)
        logger.begin(step=0, time="now")

        def step() -> None:
            at.step += 1
            with logger.waiting(at.step):
                pass
            logger.enter("forward")
            for _ in range(passes):
                logger.enter("backward")
                logger.enter("forward")
            logger.enter("optimizer")
            logger.step(at.step, 64)

        def window() -> None:
            at.step += 1
            logger.log(at.step, 0.5, logs)

        timed(step, 100)
        step_s = timed(step, STEPS)
        timed(window, 10)
        window_s = timed(window, STEPS // log_steps)
        logger.end_trackers(at.step, "finished")
    share = (step_s + window_s / log_steps) / STEP_S
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "cpu"
    return {"device": device, "step_us": 1e6 * step_s, "window_us": 1e6 * window_s, "share_of_200_ms": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-steps", type=int, default=10, help="steps per window (default: %(default)s)")
    parser.add_argument(
        "--passes", type=int, default=4, help="backward passes, one per query clip (default: %(default)s)"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), given.passes, given.log_steps), indent=1))


if __name__ == "__main__":
    main()
