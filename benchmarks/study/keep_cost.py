"""Measure what `backbone.keep` saves: time and memory of a training step of the study's tiny vit, side by side.

    python -m benchmarks.study.keep_cost --out OUT

No data is loaded: all contenders get the same noise. Steps alternate in rotating order, and each ratio is that of two
steps of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import track
from torch import Tensor

from benchmarks.machine import facts_line, facts_of_the_machine
from benchmarks.study.questions import Question, Run, questions
from benchmarks.study.study import CONFIGS, settings_of
from benchmarks.training.step_vs_plain import MIB, Contender, peak_bytes, time_step
from rhofast.config.load import load_config
from rhofast.config.schema import Config
from rhofast.models.backbones import build_backbone
from rhofast.models.methods import build_method
from rhofast.models.methods.method import TrainingProgress
from rhofast.training.optim import build_optimizer
from rhofast.training.step import train_step

RATE = 1e-3


def config_of(run: Run) -> Config:
    """Return the config of a run of the study."""
    return load_config(CONFIGS[run.network], settings_of(run, Path("shards")))


def make_contender(name: str, config: Config, accelerator: Accelerator, scale: int) -> Contender:
    """Return the trainer's step of a config on noise.

    Args:
        name: Name of the contender.
        config: Config of the run.
        accelerator: Accelerate's.
        scale: Factor for the size of clips, so that there are scale^2 times as many tokens.
    """
    torch.manual_seed(0)
    clips, size = config.clips, scale * config.augment.size
    shape = (config.train.batch_size, max(2, clips.num_clips), clips.num_frames, size, size, 3)
    pixels = torch.randn(shape).permute(0, 1, 5, 2, 3, 4)  # channels last, as the loader's
    backbone = build_backbone(config.backbone.name, config.backbone.options)
    method = build_method(config.method.name, config.method.options, backbone)
    model, optimizer = accelerator.prepare(method, build_optimizer(method, config.optim))
    progress = TrainingProgress(step=0, epoch=0.0, epochs=100.0)

    def step() -> Tensor:
        return train_step(accelerator, model, method, optimizer, pixels, progress, rate=RATE)["loss"]

    return Contender(name=name, step=step, model=method)


def measure(contenders: list[Contender], rounds: int, accelerator: Accelerator) -> None:
    """Warm up, time the contenders in rotating order, and measure memory."""
    for one in contenders:
        one.step()
    for number in track(range(rounds), description="rounds"):
        for place in range(len(contenders)):
            time_step(contenders[(place + number) % len(contenders)], accelerator.device)
    for one in contenders:
        one.peak = peak_bytes(one, accelerator.device)


def summarize(contenders: list[Contender]) -> list[dict[str, Any]]:
    """Return medians over the rounds; ratios are to the first contender."""
    full = contenders[0]
    return [
        {
            "name": one.name,
            "seconds": statistics.median(one.seconds),
            "of_full": statistics.median(a / b for a, b in zip(one.seconds, full.seconds, strict=True)),
            "cpu_of_full": statistics.median(a / b for a, b in zip(one.cpu, full.cpu, strict=True)),
            "peak_bytes": one.peak,
            "peak_of_full": one.peak / full.peak,
        }
        for one in contenders
    ]


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = []
    for size, rows in report["results"].items():
        lines += [
            f"| {size} px, tokens kept | ms per step | relative | CPU s, relative | peak MiB | relative |",
            f"|---|{'--:|' * 5}",
            *(
                f"| {row['name']} | {1000 * row['seconds']:.0f} | {row['of_full']:.2f} | {row['cpu_of_full']:.2f} "
                f"| {row['peak_bytes'] / MIB:.0f} | {row['peak_of_full']:.2f} |"
                for row in rows
            ),
            "",
        ]
    threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}, {report['rounds']} rounds."
    return "\n".join([*lines, f"{threads} {facts_line(report['machine'], report['load'])}", ""])


def main() -> None:
    """Measure and write keep_cost.md and keep_cost.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of one step each (default: %(default)s)")
    parser.add_argument(
        "--scales", type=int, nargs="+", default=[1, 2], help="factors for the size of clips (default: 1 2)"
    )
    options = parser.parse_args()

    accelerator, load = Accelerator(cpu=True), os.getloadavg()[0]
    keep: Question = next(question for question in questions() if question.key == "keep")
    results = {}
    for scale in options.scales:
        configs = {share: config_of(run) for (_, share), run in keep.cells.items()}
        contenders = [make_contender(share, config, accelerator, scale) for share, config in configs.items()]
        measure(contenders, options.rounds, accelerator)
        results[scale * configs[contenders[0].name].augment.size] = summarize(contenders)
        accelerator.free_memory()
    report = {
        "machine": facts_of_the_machine(("torch", "numpy")),
        "load": load,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "results": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "keep_cost.json").write_text(json.dumps(report, indent=1))
    (options.out / "keep_cost.md").write_text(text := as_markdown(report))
    print(text)


if __name__ == "__main__":
    main()
