"""The commands that train and move weights: `train`, `configs`, `export`, `import`."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from rhofast.checkpoint.run_folder import run_of
from rhofast.cli.console import err, is_main_process, out, print_error, print_line, print_lines
from rhofast.cli.live_view import TrainingView
from rhofast.cli.options import CONFIG, HUB, OUTPUT, RUN, ConfigArgument, Overrides
from rhofast.cli.tables import transfer_table
from rhofast.errors import EXIT_RESUMABLE, ConfigError

WeightFormat = Literal["safetensors", "pyslowfast", "hub", "transformers"]
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
        Path | None,
        typer.Argument(
            metavar="[OUT]",
            help="What to write: a .safetensors file, a .pyth file for PySlowFast, or a folder. Not needed with --hub.",
            show_default=False,
        ),
    ] = None,
    weight_format: Annotated[
        WeightFormat | None,
        typer.Option(
            "--format",
            help="A file (safetensors, pyslowfast), or a folder with config.json, model.safetensors and a model card "
            "(hub; transformers, for a vit). Default: safetensors; hub with --hub.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(
            "--hub", metavar="USER/NAME", help="Repository of the Hugging Face Hub to upload to.", rich_help_panel=HUB
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="Branch to upload to. Default: main.", rich_help_panel=HUB),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a repository that is created private.", rich_help_panel=HUB)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that the repository has.", rich_help_panel=HUB)
    ] = False,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="License for the model card, such as apache-2.0. Default: a line to fill in.",
            rich_help_panel=HUB,
        ),
    ] = None,
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
    """Write the trained backbone of a run as a file or a folder, and upload it."""
    from rhofast.checkpoint.checkpoint import find_checkpoint, load_checkpoint
    from rhofast.checkpoint.export import export_checkpoint
    from rhofast.checkpoint.hub_folder import check_folder, write_folder
    from rhofast.config.load import find_value
    from rhofast.storage.hub import check_token, open_repository, parse_repository, upload

    for text in overrides or []:
        if text.partition("=")[0].strip() != "backbone.name":
            raise ConfigError(f"--set {text}: only backbone.name can be set; the rest is the run's")
    if hub is None:
        given = {"revision": revision, "private": private, "overwrite": overwrite}
        for option in (name for name, value in given.items() if value):
            raise ConfigError(f"--{option} requires --hub")
    repository = None if hub is None else parse_repository(hub, where="--hub", revision=revision)
    named = find_value(None, overrides or [], "backbone", "name")
    form = weight_format or ("safetensors" if hub is None else "hub")
    if repository is None and target is None:
        raise ConfigError("OUT is missing", hint="name a file or a folder, or a repository: --hub USER/NAME")
    folder = find_checkpoint(checkpoint)
    run = checkpoint if folder != checkpoint else run_of(folder).path
    if form == "safetensors" or form == "pyslowfast":
        if license_id is not None or repository is not None or target is None:
            option = "--hub" if repository is not None else "--license"
            raise ConfigError(f"{option} excludes --format {form}", hint="--format hub, or transformers for a vit")
        out.print(transfer_table(export_checkpoint(load_checkpoint(folder), target, format=form, run=run, named=named)))
        return
    with tempfile.TemporaryDirectory() as aside:
        place = target or Path(aside) / "export"
        check_folder(place, license_id)
        if repository is not None:
            check_token(repository)
        address = None if repository is None else str(repository).removeprefix("hf://")
        done = write_folder(
            load_checkpoint(folder), place, form=form, run=run, named=named, address=address, license=license_id
        )
        if repository is not None:
            open_repository(repository, private=private, overwrite=overwrite)
            uploaded = upload(repository, place, done.origin)
    out.print(transfer_table(done, target=str(repository) if target is None else None))
    if repository is not None:
        print_line(f"Uploaded: {uploaded}")
    print_lines(done.load)


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
