"""Measure weak scaling on the CPU: a training step in one process with one thread, and in several processes.

    python -m benchmarks.training.weak_scaling [--config CONFIG] [--set KEY=VALUE] [--processes 2] [--out PATH]

Each process has the batch of the config, so N processes train on a batch that is N times as large; an efficiency of 1.0
means that nothing is lost. All contenders run at the same time, one core per process, and are measured one after
another in rotating order; the others sleep meanwhile. Batch statistics and gradients travel over gloo. Efficiency is
computed within a round. benchmarks/README.md explains what is measured and what is not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import facts_line, facts_of_the_machine

PACKAGES = ("torch", "accelerate")
TIMEOUT_S = 300.0
CONFIG = Path(__file__).parents[2] / "configs" / "demo.toml"

console = Console(width=120)


@dataclass(kw_only=True)
class Contender:
    """A group of processes that is measured.

    Attributes:
        name: Its name in the table.
        processes: Processes that train one model together.
        copies: Independent groups of such processes.
        settings: Settings on top of the config.
        seconds: Seconds per step, one value per round.
        cpu: CPU seconds per step, mean over the processes, one value per round.
        pipes: Connections to all processes.
    """

    name: str
    processes: int = 1
    copies: int = 1
    settings: tuple[str, ...] = ()
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)


def contenders_of(processes: int) -> list[Contender]:
    """Return the contenders; the first one is the baseline."""
    several = f"{processes} processes"
    return [
        Contender(name="1 process, other cores idle"),
        Contender(name=f"{several}, no communication (limit of the machine)", copies=processes),
        Contender(
            name=f"{several}, local batch norm (only gradients are exchanged)",
            processes=processes,
            settings=("method.batch_norm=local",),
        ),
        Contender(
            name=f"{several}, synchronized batch norm", processes=processes, settings=("method.batch_norm=sync",)
        ),
    ]


def work(pipe: Connection, path: Path, settings: list[str], place: dict[str, str], core: int) -> None:
    """Run one process: make the model, then run as many steps as the pipe requests, until it requests 0.

    Args:
        pipe: Connection to the main process.
        path: The config.
        settings: Settings on top of it.
        place: Environment variables that give the process its rank.
        core: The core that the process runs on.
    """
    os.environ.update(place)
    os.sched_setaffinity(0, {core})
    import torch

    from rhofast.config.load import load_config
    from rhofast.models.methods.method import TrainingProgress
    from rhofast.training.setup import build_accelerator, build_model
    from rhofast.training.step import no_garbage_collection, train_step

    torch.set_num_threads(1)
    ranks, rank = int(place["WORLD_SIZE"]), int(place["RANK"])
    config = load_config(path, settings)
    share = config.train.batch_size // ranks
    accelerator = build_accelerator(config)
    model, method, optimizer = build_model(config, accelerator)
    clips, augment = config.clips, config.augment
    shape = (share, max(2, clips.num_clips), clips.num_frames, augment.size, augment.size, 3)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(rank))
    pixels = noise.permute(0, 1, 5, 2, 3, 4)  # the layout of the loader's batches
    moment = TrainingProgress(step=1000, epoch=50.0, epochs=100.0)

    def steps(count: int) -> tuple[float, float]:
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            train_step(accelerator, model, method, optimizer, pixels, moment, rate=1e-3)
        return (time.perf_counter() - began) / count, (time.process_time() - cpu) / count

    with no_garbage_collection():
        steps(2)
        pipe.send("ready")
        while count := pipe.recv():
            pipe.send(steps(count))
    accelerator.end_training()


def start(contender: Contender, path: Path, settings: list[str]) -> list[multiprocessing.Process]:
    """Start the processes of a contender and wait until they are ready."""
    from rhofast.config.load import load_config

    context = multiprocessing.get_context("spawn")
    batch = load_config(path, settings).train.batch_size * contender.processes
    changes = [*settings, *contender.settings, f"train.batch_size={batch}"]
    cores = sorted(os.sched_getaffinity(0))
    started = []
    for copy in range(contender.copies):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        for rank in range(contender.processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(contender.processes)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            place |= {"LOCAL_WORLD_SIZE": str(contender.processes), "GLOO_SOCKET_IFNAME": "lo"}
            place |= {"ACCELERATE_USE_CPU": "true"}
            mine, theirs = context.Pipe()
            core = cores[(copy + rank) % len(cores)]
            process = context.Process(target=work, args=(theirs, path, changes, place, core), daemon=True)
            process.start()
            theirs.close()
            contender.pipes.append(mine)
            started.append(process)
    for pipe in contender.pipes:
        receive(pipe)
    return started


def receive(pipe: Connection) -> Any:
    """Return the next message; exits if none comes in time."""
    if not pipe.poll(TIMEOUT_S):
        raise SystemExit(f"a process did not answer for {TIMEOUT_S:.0f} s")
    return pipe.recv()


def measure(contender: Contender, steps: int) -> None:
    """Run steps and record the seconds per step of the slowest process."""
    for pipe in contender.pipes:
        pipe.send(steps)
    answers = [receive(pipe) for pipe in contender.pipes]
    contender.seconds.append(max(seconds for seconds, _ in answers))
    contender.cpu.append(statistics.mean(cpu for _, cpu in answers))


def summarize(contenders: list[Contender], clips: int) -> list[dict[str, Any]]:
    """Return medians over rounds; `efficiency` is the first contender's time divided by the contender's, per round."""
    first = contenders[0]
    rows = []
    for one in contenders:
        ratios = [a / b for a, b in zip(first.seconds, one.seconds, strict=True)]
        seconds, workers = statistics.median(one.seconds), one.processes * one.copies
        rows.append(
            {
                "name": one.name,
                "seconds": seconds,
                "lowest": min(one.seconds),
                "highest": max(one.seconds),
                "clips_per_second": workers * clips / seconds,
                "efficiency": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
                "cpu_efficiency": statistics.median(a / b for a, b in zip(first.cpu, one.cpu, strict=True)),
                "rounds": one.seconds,
                "cpu_rounds": one.cpu,
            }
        )
    return rows


COLUMNS = (
    "contender",
    "ms/step, median",
    "lowest to highest",
    "clips/s",
    "efficiency",
    "quartiles",
    "efficiency by CPU s",
)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["quartiles"]
    return (
        row["name"],
        f"{1000 * row['seconds']:.0f}",
        f"{1000 * row['lowest']:.0f} to {1000 * row['highest']:.0f}",
        f"{row['clips_per_second']:.0f}",
        f"{row['efficiency']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['cpu_efficiency']:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="path of a config (default: configs/demo.toml)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="change a setting"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes, one per core (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="number of rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps per measurement (default: %(default)s)")
    parser.add_argument("--rest", type=float, default=0.5, help="seconds between measurements (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write PATH.json and PATH.md")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < options.processes:
        parser.error(f"--processes={options.processes} needs as many cores (found {len(os.sched_getaffinity(0))})")
    from rhofast.config.load import load_config

    config = load_config(options.config, options.settings)
    load = os.getloadavg()[0]
    contenders = contenders_of(options.processes)
    started = [process for one in contenders for process in start(one, options.config, options.settings)]
    for number in range(options.rounds):
        first = number % len(contenders)
        for one in contenders[first:] + contenders[:first]:
            time.sleep(options.rest)
            measure(one, options.steps)
    for one in contenders:
        for pipe in one.pipes:
            pipe.send(0)
    for process in started:
        process.join(30)

    rows = summarize(contenders, config.train.batch_size * max(2, config.clips.num_clips))
    facts = facts_of_the_machine(PACKAGES)
    title = f"{' '.join([options.config.name, *options.settings])}, {config.train.batch_size} videos per process"
    table = Table(*COLUMNS, title=title)
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    foot = f"{options.rounds} rounds of {options.steps} steps, one thread and one core per process. "
    foot += facts_line(facts, load)
    console.print(foot)
    if options.out is not None:
        report = {"title": title, "rounds": options.rounds, "steps": options.steps, "load": load, **facts, "rows": rows}
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        lines = [f"# Weak scaling: {title}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        options.out.with_suffix(".md").write_text("\n".join([*lines, "", foot, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
