"""Compare a full training step of rhofast with a straightforward one (plain_step.py).

    python -m benchmarks.training.step_vs_plain [--method byol] [--compile] [--out benchmarks/results/NAME]

Both do the same arithmetic from the same weights, which is checked first. Then they run steps alternately for several
rounds. Only ratios within a round are meaningful, because other load on the machine affects both alike.
benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import facts_line, facts_of_the_machine
from benchmarks.training.plain_step import Plain, PlainLARS, PlainSlow, plain_step
from rhofast.config.schema import OptimConfig
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.models.methods.method import Method, TrainingProgress
from rhofast.training.optim import build_optimizer
from rhofast.training.step import train_step

PACKAGES = ("torch", "accelerate", "numpy")
PLAIN, RHOFAST, COMPILED = "plain", "rhofast", "rhofast, train.compile"
BASE = {"byol": 0.996, "moco": 0.994}  # momentum at epoch 0 of a long run
RATE = 0.01
MIB = 2**20

console = Console(width=120)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the batch and the network.

    Attributes:
        batch_size: Videos.
        clips: Clips per video.
        frames: Frames per clip.
        size: Pixels per side.
        width: Width of the backbone.
        hidden: Hidden width of the heads.
    """

    batch_size: int
    clips: int
    frames: int
    size: int
    width: int
    hidden: int


@dataclass(kw_only=True)
class Contender:
    """An implementation of the step that is measured.

    Attributes:
        name: Its name in the table.
        step: Runs one step and returns its loss.
        model: The method.
        seconds: Wall-clock seconds of each timed step.
        cpu: CPU seconds of all threads for each timed step.
        peak: Peak bytes allocated during a step, beyond those before it.
    """

    name: str
    step: Callable[[], Tensor]
    model: torch.nn.Module
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0


def method_options(name: str, shape: Shape) -> dict[str, Any]:
    """Return the released options, except that updates begin at once."""
    begin = {"moco": {"fill_first": False}, "swav": {"frozen_epochs": 0.0}}
    return {"hidden": shape.hidden, **begin.get(name, {})}


def optim_section(name: str) -> OptimConfig:
    """Return the optimizer settings of a method."""
    return OptimConfig(name="sgd", weight_decay=1e-4) if name == "moco" else OptimConfig(name="lars")


def make_pixels(shape: Shape, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return noise [B, P, C, T, H, W] in the layout of rhofast's loader: channels last without a copy."""
    noise = torch.randn(
        (shape.batch_size, shape.clips, shape.frames, shape.size, shape.size, 3),
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )
    return noise.to(device, dtype).permute(0, 1, 5, 2, 3, 4)


def make_pair(
    name: str, shape: Shape, accelerator: Accelerator, dtype: torch.dtype, precision: str
) -> tuple[Contender, Contender]:
    """Return (plain, rhofast) with the same weights."""
    device = accelerator.device
    torch.manual_seed(0)
    method = build_method(name, method_options(name, shape), build_backbone("slow_r50", {"width": shape.width}))
    plain = Plain(name, PlainSlow(shape.width), hidden=shape.hidden, queue=65536)
    state = {key: value for key, value in method.state_dict().items() if key not in ("momentum", "written")}
    plain.load_state_dict(state)
    plain.to(device, dtype)
    method.to(device, dtype)
    pixels = make_pixels(shape, device, dtype)
    return plain_contender(name, plain, pixels.contiguous(), precision), rhofast_contender(
        name, method, pixels, accelerator
    )


def plain_contender(name: str, model: Plain, pixels: Tensor, precision: str) -> Contender:
    """Return the straightforward step."""
    section = optim_section(name)
    optimizer = PlainLARS(model, decay=section.weight_decay, adapt=section.name == "lars")

    def autocast() -> Any:
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(pixels.device.type, dtype=torch.bfloat16)

    def step() -> Tensor:
        return plain_step(model, optimizer, pixels, rate=RATE, momentum=BASE.get(name, 0.0), autocast=autocast)

    return Contender(name=PLAIN, step=step, model=model)


def rhofast_contender(name: str, method: Method, pixels: Tensor, accelerator: Accelerator) -> Contender:
    """Return the trainer's step with default options: `train_step`, channels last."""
    method = method.to(memory_format=torch.channels_last_3d)
    model, optimizer = accelerator.prepare(method, build_optimizer(method, optim_section(name)))
    moment = TrainingProgress(step=0, epoch=0.0, epochs=200.0)

    def step() -> Tensor:
        return train_step(accelerator, model, method, optimizer, pixels, moment, rate=RATE)["loss"]

    return Contender(name=RHOFAST, step=step, model=method)


def check_same_step(name: str, pair: tuple[Contender, Contender], floor: float = 1e-9) -> float:
    """Compare two steps of both, in float64: losses, and the change of each tensor.

    Exits if they differ by more than rounding.

    Args:
        name: What is compared, for the message.
        pair: The straightforward contender and rhofast, with the same weights.
        floor: The change of a tensor below which a difference is not relative to it.

    Returns:
        The largest relative difference.
    """
    before = {key: value.clone() for key, value in pair[0].model.state_dict().items()}
    worst = 0.0
    for _ in range(2):
        plain, ours = (float(one.step()) for one in pair)
        worst = max(worst, abs(plain - ours) / abs(plain))
    state = pair[1].model.state_dict()
    for key, value in pair[0].model.state_dict().items():
        apart, moved = (value - state[key]).double().norm(), (value - before[key]).double().norm()
        worst = max(worst, float(apart / (moved + 1e-6 * value.double().norm() + floor)))
    if worst > 1e-6:
        raise SystemExit(f"{name}: the steps of plain_step.py and rhofast differ by {worst:.1e}")
    return worst


def time_step(contender: Contender, device: torch.device) -> None:
    """Run one step and record its time."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began, cpu = time.perf_counter(), time.process_time()
    contender.step()
    wait()
    contender.seconds.append(time.perf_counter() - began)
    contender.cpu.append(time.process_time() - cpu)


def peak_bytes(contender: Contender, device: torch.device) -> int:
    """Return the peak bytes allocated during a step, beyond those before it."""
    contender.model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        contender.step()
    allocated = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == DeviceType.CPU:
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


def summarize(contenders: list[Contender]) -> list[dict[str, Any]]:
    """Return medians over rounds; `of_plain` is the contender's time divided by the plain one's, per round."""
    plain = contenders[0]
    rows = []
    for one in contenders:
        ratios = [a / b for a, b in zip(one.seconds, plain.seconds, strict=True)]
        rows.append(
            {
                "name": one.name,
                "seconds": statistics.median(one.seconds),
                "lowest": min(one.seconds),
                "highest": max(one.seconds),
                "of_plain": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
                "cpu_of_plain": statistics.median(a / b for a, b in zip(one.cpu, plain.cpu, strict=True)),
                "peak_bytes": one.peak,
                "peak_of_plain": one.peak / plain.peak,
                "rounds": one.seconds,
                "cpu_rounds": one.cpu,
            }
        )
    return rows


COLUMNS = (
    "contender",
    "ms/step, median",
    "lowest to highest",
    "relative to plain",
    "quartiles",
    "CPU s relative to plain",
    "peak MiB",
    "peak relative to plain",
)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["quartiles"]
    return (
        row["name"],
        f"{1000 * row['seconds']:.0f}",
        f"{1000 * row['lowest']:.0f} to {1000 * row['highest']:.0f}",
        f"{row['of_plain']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['cpu_of_plain']:.2f}",
        f"{row['peak_bytes'] / MIB:.0f}",
        f"{row['peak_of_plain']:.2f}",
    )


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = []
    for run in report["runs"]:
        shape = run["shape"]
        lines += [
            f"| {' | '.join((run['method'], *COLUMNS[1:]))} |",
            f"|---|{'--:|' * (len(COLUMNS) - 1)}",
            *(f"| {' | '.join(cells(row))} |" for row in run["results"]),
            "",
            f"{report['precision']}, Slow-R50 of width {shape['width']}, heads {shape['hidden']} wide, "
            f"rho = {shape['clips']}, {shape['batch_size']} videos, {shape['frames']} frames of {shape['size']} px, "
            f"{report['device']}, {report['threads']} threads, {run['rounds']} rounds of one step each, load average "
            f"{run['load_average_before']:.1f} before and {run['load_average_after']:.1f} after. "
            + (f"In float64, all steps agree to {run['difference']:.0e}." if run["difference"] else ""),
            "",
        ]
    for note in report["notes"]:
        lines += [note, ""]
    return "\n".join([*lines, facts_line(report["machine"], report["runs"][0]["load_average_before"]), ""])


def shape_of(name: str, options: argparse.Namespace) -> Shape:
    """Return the sizes that the command line asks for."""
    return Shape(
        batch_size=options.batch_size,
        clips=options.clips,
        frames=options.frames,
        size=options.size,
        width=options.width,
        hidden=options.hidden or (64 if name == "byol" else 32) * options.width,
    )


def run_method(name: str, options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """Check and measure one method."""
    tiny = Shape(batch_size=3, clips=3, frames=2, size=32, width=4, hidden=32)
    pair = make_pair(name, tiny, accelerator, torch.float64, "fp32")
    difference = check_same_step(name, pair) if options.precision == "fp32" else None
    shape = shape_of(name, options)
    contenders = list(make_pair(name, shape, accelerator, torch.float32, options.precision))
    if options.compile:
        compiled = make_pair(name, shape, accelerator, torch.float32, options.precision)[1]
        for module in compiled.model.children():
            module.compile()
        contenders.append(Contender(name=COMPILED, step=compiled.step, model=compiled.model))
    return measure(name, shape, contenders, options.rounds, accelerator, difference)


def measure(
    name: str,
    shape: Shape,
    contenders: list[Contender],
    rounds: int,
    accelerator: Accelerator,
    difference: float | None,
) -> dict[str, Any]:
    """Warm up, time the contenders in rotating order, and measure memory."""
    load = os.getloadavg()[0]
    for one in contenders:
        for _ in range(3):
            one.step()
    for number in range(rounds):
        with console.status(f"{name}: round {number + 1} of {rounds}"):
            for place in range(len(contenders)):
                time_step(contenders[(place + number) % len(contenders)], accelerator.device)
    for one in contenders:
        one.peak = peak_bytes(one, accelerator.device)
    accelerator.free_memory()
    return {
        "method": name,
        "shape": asdict(shape),
        "rounds": rounds,
        "difference": difference,
        "load_average_before": load,
        "load_average_after": os.getloadavg()[0],
        "results": summarize(contenders),
    }


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--method", nargs="+", choices=("byol", "moco", "simclr", "swav"), default=["byol"], help="methods"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both (default: fp32)")
    parser.add_argument("--compile", action="store_true", help="measure rhofast with train.compile too")
    add_options(parser, gpu=gpu)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    accelerator = Accelerator(cpu=not gpu, mixed_precision="no" if options.precision == "fp32" else options.precision)
    runs = [run_method(name, options, accelerator) for name in options.method]
    publish(runs, options, precision=options.precision, packages=PACKAGES)


def add_options(parser: argparse.ArgumentParser, *, gpu: bool) -> None:
    """Add the options for sizes, number of rounds and output."""
    parser.add_argument(
        "--width",
        type=int,
        default=64 if gpu else 16,
        help="width of the backbone (default: %(default)s)",
    )
    parser.add_argument("--hidden", type=int, help="width of the heads (default: released, scaled like --width)")
    parser.add_argument("--size", type=int, default=224 if gpu else 112, help="pixels per side (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="frames per clip (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=2, help="clips per video, rho (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8 if gpu else 4, help="videos (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=24, help="number of rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: one per core)")
    parser.add_argument("--out", type=Path, help="write PATH.json and PATH.md", metavar="PATH")


def publish(
    runs: list[dict[str, Any]],
    options: argparse.Namespace,
    *,
    precision: str,
    packages: tuple[str, ...],
    notes: Sequence[str] = (),
) -> None:
    """Print the tables and notes, and write them to `options.out`."""
    report = {
        "machine": facts_of_the_machine(packages),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": options.threads,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "precision": precision,
        "notes": list(notes),
        "runs": runs,
    }
    for run in report["runs"]:
        table = Table(run["method"], *COLUMNS[1:])
        for row in run["results"]:
            table.add_row(*cells(row))
        console.print(table)
    for note in notes:
        console.print(note)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_name(options.out.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_name(options.out.name + ".md").write_text(as_markdown(report))


if __name__ == "__main__":
    main()
