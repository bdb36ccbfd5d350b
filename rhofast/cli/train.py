"""The commands that train and move weights: `train`, `configs`, `export`, `import`."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from rhofast.checkpoint.run_folder import run_of
from rhofast.cli.console import err, is_main_process, out, print_error, print_line
from rhofast.cli.live_view import TrainingView
from rhofast.cli.options import CONFIG, OUTPUT, RUN, ConfigArgument, Overrides
from rhofast.cli.tables import transfer_table
from rhofast.errors import EXIT_RESUMABLE, ConfigError

WeightFormat = Literal["safetensors", "pyslowfast"]
_BY_FILE = "as the file says"

configs = typer.Typer(help="List, show and copy the configs that come with rhofast.", no_args_is_help=True)


@configs.command("list")
def list_configs() -> None:
    """List the packaged configs by name, with their first line."""
    from rhofast.config.load import config_names, find_config

    names = config_names()
    width = max(map(len, names))
    for name in names:
        first = find_config(name).read_text(encoding="utf-8").partition("\n")[0]
        print_line(f"{name:<{width}}  {first.lstrip('# ')}")


@configs.command("show")
def show_config(name: ConfigArgument) -> None:
    """Print a packaged config."""
    from rhofast.config.load import find_config

    typer.echo(find_config(name).read_text(encoding="utf-8"), nl=False)


@configs.command("copy")
def copy_config(
    name: ConfigArgument,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[TARGET]", help="File or folder. Default: the current folder.", show_default=False),
    ] = None,
) -> None:
    """Copy a packaged config, to change it."""
    from rhofast.config.load import find_config

    source = find_config(name)
    path = target or Path()
    path = path / source.name if path.is_dir() else path
    if path.exists():
        raise ConfigError(f"{path}: the file exists", hint="give another TARGET")
    shutil.copyfile(source, path)
    print_line(f"Wrote {path}")


def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue from the newest checkpoint; begin where there is none.", rich_help_panel=RUN
        ),
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="With --resume: continue under changed options that make it another experiment.",
            rich_help_panel=RUN,
        ),
    ] = False,
) -> None:
    """Pretrain a backbone. Runs alone or under `accelerate launch -m rhofast train ...`."""
    from rhofast.config.load import load_config
    from rhofast.training.trainer import train as run_training

    loaded = load_config(config, overrides or [])
    with TrainingView(err) as view:
        outcome = run_training(loaded, resume=resume, accept_changes=accept_changes, on_log=view.on_log)
    if is_main_process() and outcome.finished:
        command = f"rhofast report {shlex.quote(str(outcome.run))}"
        with contextlib.suppress(OSError):  # the run is done, whether or not anybody reads so
            print_line(f"{outcome.run}: {outcome.step} steps done. Look at the run: {command}")
            out.file.flush()
    elif is_main_process():
        saved = f"{outcome.run}: saved at step {outcome.step} of {outcome.steps}. Continue with --resume."
        print_error(saved, style="")
    if not outcome.finished:
        raise typer.Exit(EXIT_RESUMABLE)


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Folder of a run or of a checkpoint.", show_default=False),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="File to write: .safetensors, or .pyth for PySlowFast.", show_default=False),
    ],
    weight_format: Annotated[
        WeightFormat, typer.Option("--format", help="Format of the file.", rich_help_panel=OUTPUT)
    ] = "safetensors",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="backbone.name=CODE",
            help="For a run with a backbone of your own: package.module:function or path/to/file.py:function.",
            rich_help_panel=CONFIG,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the trained backbone of a run as one file."""
    from rhofast.checkpoint.checkpoint import find_checkpoint, load_checkpoint
    from rhofast.checkpoint.export import export_checkpoint
    from rhofast.config.load import find_value

    for text in overrides or []:
        if text.partition("=")[0].strip() != "backbone.name":
            raise ConfigError(f"--set {text}: only backbone.name can be set; the rest is the run's")
    named = find_value(None, overrides or [], "backbone", "name")
    folder = find_checkpoint(checkpoint)
    run = checkpoint if folder != checkpoint else run_of(folder).path
    saved = load_checkpoint(folder)
    out.print(transfer_table(export_checkpoint(saved, target, format=weight_format, run=run, named=named)))


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Weights of VideoMAE, V-JEPA, timm, PySlowFast or torchvision: .safetensors, .pth, .pt, .pyth.",
            show_default=False,
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .safetensors.", show_default=False)],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Name of the backbone that the file holds, where the file does not say it.",
            rich_help_panel=CONFIG,
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Convert weights of other projects to a file that `rhofast.load_backbone` opens."""
    from rhofast.checkpoint.export import import_weights
    from rhofast.config.load import load_config

    named = [] if backbone is None else [f"backbone.name={backbone}"]
    component = load_config(None, [*named, *(overrides or [])], base={"backbone": {"name": _BY_FILE}}).backbone
    name = None if component.name == _BY_FILE else component.name
    out.print(transfer_table(import_weights(source, target, backbone=name, options=component.options)))
