"""The commands that train and move weights: `train`, `export`, `import`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from rhofast.checkpoint.run_folder import run_of
from rhofast.cli.console import err, out, say
from rhofast.cli.live_view import TrainingView
from rhofast.cli.options import Settings
from rhofast.cli.tables import transfer_table

Formats = Literal["safetensors", "pyslowfast"]


def train(
    page: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML page, see configs/")],
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run, or begin it")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="continue even with settings that make it another experiment")
    ] = False,
) -> None:
    """Pretrain. Also under `accelerate launch -m rhofast train ...`."""
    from rhofast.config.load import load_config
    from rhofast.training.trainer import EXIT_RESUMABLE
    from rhofast.training.trainer import train as run_training

    config = load_config(page, settings or [])
    with TrainingView(err) as view:
        outcome = run_training(config, resume=resume, accept_changes=accept_changes, on_log=view.on_log)
    first = os.environ.get("RANK", "0") == "0"
    if first and outcome.finished:
        look = f"rhofast report {shlex.quote(str(outcome.run))}"
        say(f"{outcome.run}: {outcome.step} steps done; look at it with: {look}")
    elif first:
        saved = f"{outcome.run}: saved at step {outcome.step} of {outcome.steps}; go on with --resume"
        err.print(saved, markup=False, highlight=False, soft_wrap=True)
    if not outcome.finished:
        raise typer.Exit(EXIT_RESUMABLE)


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="run or checkpoint folder")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="file to write: .safetensors, or .pyth of PySlowFast")],
    form: Annotated[Formats, typer.Option("--format", help="whose file it is to be")] = "safetensors",
) -> None:
    """Write the trained backbone as one file."""
    from rhofast.checkpoint.checkpoint import find_checkpoint, load_checkpoint
    from rhofast.checkpoint.export import export_checkpoint

    folder = find_checkpoint(checkpoint)
    run = checkpoint if folder != checkpoint else run_of(folder).path
    out.print(transfer_table(export_checkpoint(load_checkpoint(folder), target, format=form, run=run)))


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="official PySlowFast .pyth, or torchvision .pth")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="file to write: .safetensors")],
    backbone: Annotated[str, typer.Option(help="name of the backbone that it holds")],
    settings: Settings = None,
) -> None:
    """Turn foreign weights into a file that rhofast.load_backbone opens."""
    from rhofast.checkpoint.export import import_weights
    from rhofast.config.load import load_config

    section = load_config(None, [f"backbone.name={backbone}", *(settings or [])]).backbone
    out.print(transfer_table(import_weights(source, target, backbone=section.name, options=section.options)))
