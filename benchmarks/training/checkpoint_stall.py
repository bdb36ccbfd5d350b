"""Measure how long a checkpoint blocks the training thread, and how long it takes until it is on the disk.

    python -m benchmarks.training.checkpoint_stall [--backbone slow_r50] [--method byol] [--rounds 7] [--folder FOLDER]

The checkpoint has everything that a run has: weights of both networks, heads, and optimizer state. As in training,
memory for the copy is reserved beforehand, and a checkpoint is on the disk before the next one is saved.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.machine import facts_line, facts_of_the_machine
from rhofast.checkpoint.async_writer import AsyncCheckpointWriter
from rhofast.checkpoint.checkpoint import Checkpoint
from rhofast.config.schema import Config, OptimConfig, TrainConfig
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.training.optim import build_optimizer


def make_checkpoint(backbone: str, method: str, folder: Path) -> Checkpoint:
    """Return what is saved after the first step of a run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = build_method(method, {}, build_backbone(backbone, {})).to(device)
    optimizer = build_optimizer(module, OptimConfig())
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    config = Config(name="run", out=folder, train=TrainConfig(steps=1))
    state = {"epoch": 0, "position": 0}
    return Checkpoint(
        step=1,
        config=config,
        loader=state,
        method=module.state_dict(),
        optimizer=optimizer.state_dict(),
        scaler=None,
    )


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="slow_r50", help="backbone (default: %(default)s)")
    parser.add_argument("--method", default="byol", help="method (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="checkpoints to save (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    blocked, seconds = [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoint = make_checkpoint(arguments.backbone, arguments.method, Path(folder))
        size = sum(value.nbytes for value in checkpoint.method.values())
        run = Path(folder) / "run"
        run.mkdir()
        with AsyncCheckpointWriter(run, keep=1) as writer:
            writer.reserve(checkpoint)
            for step in range(1, arguments.rounds + 1):
                writer.save(replace(checkpoint, step=step))
                writer.wait()
                time.sleep(0.2)
                [written] = writer.poll()
                if written.error is not None:
                    raise SystemExit(written.error)
                blocked.append(1000 * written.stall_s)
                seconds.append(written.seconds)
    print(f"{arguments.method}, {arguments.backbone}: {size / 1e6:.0f} MB of weights and buffers, plus optimizer state")
    print(f"training thread blocked: {statistics.median(blocked):.0f} ms ({min(blocked):.0f} to {max(blocked):.0f})")
    print(f"on the disk after: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    print(facts_line(facts_of_the_machine(("torch", "safetensors")), load))


if __name__ == "__main__":
    main()
