"""Load a config from TOML and `--set key.path=value`, and dump it as plain values."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import rhofast
from rhofast.config.schema import Config
from rhofast.config.section import parse_section
from rhofast.errors import ConfigError
from rhofast.storage.address import redacted

_PACKAGE = Path(rhofast.__file__).parent
_FOLDERS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")  # of a checkout, of an installed wheel

# Keys of `train` that exclude each other: setting one on the command line removes the other.
_ALTERNATIVES = {"epochs": "steps", "steps": "epochs", "knn_epochs": "knn_steps", "knn_steps": "knn_epochs"}


def config_names() -> list[str]:
    """Return the names of the configs that come with rhofast, such as `demo` and `eval/ucf101_paper`."""
    return sorted(
        {str(path.relative_to(folder).with_suffix("")) for folder in _FOLDERS for path in folder.rglob("*.toml")}
    )


def find_config(source: str | Path) -> Path:
    """Return the TOML file that a path or the name of a packaged config stands for.

    Args:
        source: Path of a file, or name of a packaged config, with or without `.toml`. A file comes first.

    Raises:
        ConfigError: There is neither such a file nor such a config.
    """
    path = Path(source)
    name = str(source).removesuffix(".toml")
    if path.is_file():
        return path
    packaged = next((file for folder in _FOLDERS if (file := folder / f"{name}.toml").is_file()), None)
    if packaged is None or path.is_absolute():
        near = difflib.get_close_matches(name, config_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "rhofast configs list"
        raise ConfigError(f"{source}: no such file, and no packaged config of this name", hint=hint)
    return packaged


def load_config(
    source: str | Path | None, overrides: Iterable[str] = (), *, base: Mapping[str, Any] | None = None
) -> Config:
    """Load a config from TOML and `--set` overrides.

    Args:
        source: Path of a TOML file, or name of a packaged config (see `find_config`); None for all defaults.
        overrides: `key.path=value` each, where value is TOML or a bare string. Later ones win.
        base: Nested values used where the file has none.

    Returns:
        The checked config.

    Raises:
        ConfigError: for a missing file, broken TOML, an unknown key, a wrong type or a bad value.
    """
    path = None if source is None else find_config(source)
    content = {} if path is None else _read_toml(path)
    values = {} if path is not None and base is None else {"name": "default"}
    for layer in (base or {}, content):
        _merge(values, layer)
    for override in overrides:
        _apply_override(values, override)
    return parse_section(Config, values, where=str(source or "--set"))


def find_value(source: str | Path | None, overrides: Iterable[str], section: str, key: str) -> str | None:
    """Return the text that a TOML file and `--set` overrides give for a key; nothing else is checked.

    Args:
        source: As for `load_config`.
        overrides: As for `load_config`.
        section: The section of the key.
        key: The key.

    Returns:
        The text, or None where neither has the key, or another type of value.

    Raises:
        ConfigError: for a missing file, broken TOML, or an override of another form.
    """
    values = {} if source is None else _read_toml(find_config(source))
    for override in overrides:
        _apply_override(values, override)
    table = values.get(section)
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, str) else None


def override_config(config: Config, overrides: Iterable[str]) -> Config:
    """Return a config with `--set` overrides applied.

    Args:
        config: the config to start from.
        overrides: `key.path=value` each, where value is TOML or a bare string. Later ones win.

    Returns:
        The new config.

    Raises:
        ConfigError: for an unknown key, a wrong type or a bad value.
    """
    values = dump_config(config)
    for override in overrides:
        _apply_override(values, override)
    return parse_section(Config, values, where="--set")


def parse_config(values: Mapping[str, Any], where: str) -> Config:
    """Build a config from plain values, as `dump_config` returns them.

    Args:
        values: nested values.
        where: what the error message starts with, such as the file that they come from.

    Returns:
        The checked config.

    Raises:
        ConfigError: for an unknown key, a wrong type or a bad value.
    """
    return parse_section(Config, values, where)


def dump_config(config: Config) -> dict[str, Any]:
    """Return plain JSON values from which `parse_config` builds an equal config."""
    return dict(json.loads(config.model_dump_json(exclude_none=True)))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None


def _merge(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Write the values of a layer over `values`, key by key, also within sections."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(values.get(key, {}), dict):
            _merge(values.setdefault(key, {}), value)
        else:
            values[key] = value


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {redacted(override)!r}: not of the form key.path=value", hint="for example --set train.steps=100"
        )
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    if isinstance(value, int | float) and _takes_text(keys):  # name=2024, name=nan
        value = text.strip()
    table = values
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {redacted(override)!r}: {key!r} is a value, not a section")
    if keys[0] == "train" and keys[-1] in _ALTERNATIVES:
        table.pop(_ALTERNATIVES[keys[-1]], None)
    table[keys[-1]] = value


def _takes_text(keys: list[str]) -> bool:
    """Whether a key of Config takes text and nothing else."""
    annotation: Any = Config
    for key in keys:
        known = isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation.model_fields.get(key)
        if not known:
            return False
        annotation = known.annotation
    return annotation is str
