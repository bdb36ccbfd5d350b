"""Options, arguments and checks that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rhofast.errors import ConfigError
from rhofast.storage.address import redacted
from rhofast.storage.files import is_local
from rhofast.storage.store_path import as_path

# Panels of the help: options that belong together stand together.
SOURCE, STORAGE, LIMITS, EXECUTION = "Source", "Storage", "Limits", "Execution"
CONFIG, OUTPUT, DATA, RUN, HUB = "Config", "Output", "Data", "Run", "Hugging Face Hub"

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Config option to override, such as train.steps=100. Repeatable.",
        rich_help_panel=CONFIG,
        show_default=False,
    ),
]
ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="TOML file, or name of a packaged config (see: rhofast configs list).",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="TOML file, or name of a packaged config. Default: the defaults of every option.",
        rich_help_panel=CONFIG,
        show_default=False,
    ),
]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Run or checkpoint folder, .safetensors file, hf://user/name, PySlowFast .pyth, torchvision .pth, or "
        "the word random.",
        show_default=False,
    ),
]
ShardsArgument = Annotated[
    str, typer.Argument(metavar="SHARDS", help="Folder or address of a shard set.", show_default=False)
]


def examples(*lines: str) -> str:
    """Return the epilog of a command's help: example command lines."""
    return "\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in lines)])


def check_png(option: str, path: Path) -> None:
    """Raise ConfigError unless the path given to an option ends with .png."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{option} {path}: not a .png file")


def local_folder(text: str) -> Path:
    """Return the folder that SHARDS names.

    Raises:
        ConfigError: It is an address.
    """
    path = as_path(text, "SHARDS")
    if not is_local(path):
        raise ConfigError(
            f"SHARDS={redacted(text)}: boxes are stored beside a set in a local folder",
            hint="copy the set to a folder, and give that one",
        )
    return path


def given(**options: Any) -> dict[str, Any]:
    """Return the options that the user gave: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}
