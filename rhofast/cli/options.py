"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rhofast.errors import ConfigError

Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, e.g. a.b=3")]


def check_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out {path}: not a .png file")


def given(**options: Any) -> dict[str, Any]:
    """Those options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}
