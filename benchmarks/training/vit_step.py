"""Measure a training step of rho-BYOL with a small ViT: against timm's blocks, and with a share of its tokens.

    python -m benchmarks.training.vit_step [--keep 0.25] [--out benchmarks/results/NAME]

The straightforward step (plain_step.py) has timm's blocks and does the same arithmetic from the same weights, which is
checked first. Then all contenders run steps alternately for several rounds. Only ratios within a round are meaningful,
because other load on the machine affects all alike. benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.table import Table
from torch import Tensor

from benchmarks.machine import facts_line, facts_of_the_machine
from benchmarks.training.plain_step import Plain, PlainAdamW, PlainViT, plain_step
from benchmarks.training.step_vs_plain import (
    BASE,
    COLUMNS,
    Contender,
    Shape,
    cells,
    check_same_step,
    console,
    make_pixels,
    measure,
    summarize,
)
from rhofast.config.schema import OptimConfig
from rhofast.models.backbones import build_backbone
from rhofast.models.memory_format import to_channels_last
from rhofast.models.methods import build_method
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.optim import build_optimizer
from rhofast.training.step import train_step

PACKAGES = ("torch", "timm", "accelerate", "numpy")
PLAIN, RHOFAST = "timm's blocks", "rhofast"
OPTIM = OptimConfig(name="adamw", weight_decay=0.05)
TUBELET = 2
RATE = 1e-4


def network_options(shape: Shape, depth: int, patch: int) -> dict[str, Any]:
    """Return the options of `vit`; heads are 64 wide, or there is one."""
    return {"width": shape.width, "depth": depth, "heads": max(1, shape.width // 64), "patch": patch}


def plain_contender(shape: Shape, network: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Contender:
    """Return the straightforward step, on contiguous clips."""
    torch.manual_seed(0)
    kernel = (TUBELET, network["patch"], network["patch"])
    tokens = shape.frames // TUBELET * (shape.size // network["patch"]) ** 2
    vit = PlainViT(network["width"], network["depth"], network["heads"], kernel, tokens)
    model = Plain("byol", vit, hidden=shape.hidden, queue=0).to(device, dtype)
    optimizer = PlainAdamW(model, decay=OPTIM.weight_decay)
    pixels = make_pixels(shape, device, dtype).contiguous()

    def step() -> Tensor:
        momentum = BASE["byol"]
        return plain_step(model, optimizer, pixels, rate=RATE, momentum=momentum, autocast=contextlib.nullcontext)

    return Contender(name=PLAIN, step=step, model=model)


def rhofast_contender(
    shape: Shape, network: dict[str, Any], accelerator: Accelerator, dtype: torch.dtype, keep: float
) -> Contender:
    """Return the trainer's step with default options: `train_step`, channels last."""
    torch.manual_seed(0)
    backbone = build_backbone("vit", {**network, "keep": keep}, num_frames=shape.frames, size=shape.size)
    method = to_channels_last(build_method("byol", {"hidden": shape.hidden}, backbone).to(accelerator.device, dtype))
    model, optimizer = accelerator.prepare(method, build_optimizer(method, OPTIM))
    pixels = make_pixels(shape, accelerator.device, dtype)
    progress = TrainingProgress(step=0, epoch=0.0, epochs=200.0)

    def step() -> Tensor:
        return train_step(accelerator, model, method, optimizer, pixels, progress, rate=RATE)["loss"]

    name = RHOFAST if keep == 1 else f"{RHOFAST}, keep={keep:g}"
    return Contender(name=name, step=step, model=method)


def make_contenders(
    shape: Shape, depth: int, patch: int, accelerator: Accelerator, dtype: torch.dtype, keeps: list[float]
) -> list[Contender]:
    """Return (straightforward, rhofast with all tokens, rhofast with shares of them), with the same weights."""
    network = network_options(shape, depth, patch)
    plain = plain_contender(shape, network, accelerator.device, dtype)
    ours = [rhofast_contender(shape, network, accelerator, dtype, keep) for keep in (1.0, *keeps)]
    state = {name: value for name, value in ours[0].model.state_dict().items() if name != "momentum"}
    plain.model.load_state_dict(state)
    return [plain, *ours]


def check_the_same(accelerator: Accelerator) -> float:
    """Compare two steps with all tokens in float64, and return the largest relative difference."""
    shape = Shape(batch_size=3, clips=3, frames=4, size=32, width=24, hidden=32)
    pair = make_contenders(shape, 2, 8, accelerator, torch.float64, [])
    # AdamW makes steps of the size of the rate; where a gradient is zero but for rounding, they are rounding, too.
    return check_same_step("vit", (pair[0], pair[1]), floor=RATE)


def add_options(parser: argparse.ArgumentParser, *, gpu: bool) -> None:
    """Add the options for sizes, number of rounds and output."""
    parser.add_argument("--width", type=int, default=768 if gpu else 192, help="of a token (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=12, help="number of blocks (default: %(default)s)")
    parser.add_argument("--patch", type=int, default=16, help="pixels per side of a patch (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=4096 if gpu else 512, help="of the heads (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224 if gpu else 112, help="pixels per side (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16 if gpu else 8, help="frames per clip (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=2, help="clips per video, rho (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16 if gpu else 8, help="videos (default: %(default)s)")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.25], help="shares of tokens (default: 0.25)")
    parser.add_argument("--rounds", type=int, default=24, help="number of rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: one per core)")
    parser.add_argument("--out", type=Path, help="write PATH.json and PATH.md", metavar="PATH")


def as_markdown(report: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> str:
    """Return the report as Markdown."""
    run = report["run"]
    shape, network = run["shape"], report["network"]
    lines = []
    for reference, rows in tables.items():
        columns = [column.replace("plain", reference) for column in COLUMNS]
        lines += [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
        lines += [*(f"| {' | '.join(cells(row))} |" for row in rows), ""]
    lines += [
        f"rho-BYOL, fp32, AdamW, ViT of width {network['width']}, {network['depth']} blocks, {network['heads']} heads, "
        f"tubelets of {TUBELET} x {network['patch']} x {network['patch']} pixels, heads {shape['hidden']} wide, rho = "
        f"{shape['clips']}, {shape['batch_size']} videos, {shape['frames']} frames of {shape['size']} px, "
        f"{report['device']}, {report['threads']} threads, {run['rounds']} rounds of one step each, load average "
        f"{run['load_average_before']:.1f} before and {run['load_average_after']:.1f} after. In float64, steps with "
        f"all tokens agree to {run['difference']:.0e}. Peak: allocated in a step, beyond what is there before it.",
        "",
        facts_line(report["machine"], run["load_average_before"]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser, gpu=gpu)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    accelerator = Accelerator(cpu=not gpu)
    difference = check_the_same(accelerator)
    shape = Shape(
        batch_size=options.batch_size,
        clips=options.clips,
        frames=options.frames,
        size=options.size,
        width=options.width,
        hidden=options.hidden,
    )
    contenders = make_contenders(shape, options.depth, options.patch, accelerator, torch.float32, options.keep)
    run = measure("vit", shape, contenders, options.rounds, accelerator, difference)
    tables = {"plain": run.pop("results"), "all tokens": summarize(contenders[1:])}
    tables["plain"] = tables["plain"][:2]
    report = {
        "machine": facts_of_the_machine(PACKAGES),
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "threads": options.threads,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "network": network_options(shape, options.depth, options.patch),
        "run": run,
        "results": tables,
    }
    for reference, rows in tables.items():
        table = Table(*(column.replace("plain", reference) for column in COLUMNS))
        for row in rows:
            table.add_row(*cells(row))
        console.print(table)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_name(options.out.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_name(options.out.name + ".md").write_text(as_markdown(report, tables))


if __name__ == "__main__":
    main()
