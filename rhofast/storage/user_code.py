"""Import functions from the user's own Python code: `package.module:function` or `path/to/file.py:function`.

Importing runs code. So only what the user names, on the command line or in a config, is imported. A name that stands in
a checkpoint or in the card of an export is not; `renamed` asks the user to name it again.
"""

from __future__ import annotations

import hashlib
import importlib
import shlex
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import rhofast
from rhofast.errors import ConfigError, RhofastError
from rhofast.storage.address import is_address, redacted

# Where code is not the user's own: the standard library, installed packages, this package.
_LIBRARIES = ("<", *sysconfig.get_paths().values(), str(Path(rhofast.__file__).parent))
FORMS = "package.module:function or path/to/file.py:function"


@dataclass(frozen=True, kw_only=True, slots=True)
class UserFunction:
    """A function, or a class, of the user's own code.

    Attributes:
        call: The function.
        sha256: The SHA-256 of the file that defines its module, when it was imported.
    """

    call: Callable[..., Any]
    sha256: str


# What this process has imported, by name. Files that are edited later do not change what runs.
_IMPORTED: dict[str, UserFunction] = {}


def is_reference(name: str) -> bool:
    """Return whether a name refers to a function of the user's own code, rather than to a part of rhofast."""
    return ":" in name


def import_function(name: str, where: str) -> UserFunction:
    """Import a function of the user's own code, once per process.

    Args:
        name: `package.module:function`, or `path/to/file.py:function` with a path from the current folder.
        where: The option that names it, such as `backbone.name`.

    Raises:
        ConfigError: There is no such file, module or function, or its import fails.
    """
    if name in _IMPORTED:
        return _IMPORTED[name]
    place, _, function = name.rpartition(":")
    option = f"{where}={redacted(name)}"
    if not place or not function.isidentifier() or is_address(name):
        raise ConfigError(f"{option}: not of the form {FORMS}")
    module = import_file(Path(place), option) if place.endswith(".py") else _import(place, option)
    call = getattr(module, function, None)
    if not callable(call):
        what = "is not a function" if hasattr(module, function) else "does not exist"
        names = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        defined = ", ".join(key for key in names if callable(getattr(module, key)))
        raise ConfigError(f"{option}: {function!r} {what} in {place}", hint=f"it defines {defined or 'no functions'}")
    if getattr(module, "__file__", None) is None:
        raise ConfigError(f"{option}: {place} has no source file", hint="name a module of your own")
    with failures_of(option):
        digest = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
    _IMPORTED[name] = UserFunction(call=call, sha256=digest)
    return _IMPORTED[name]


def import_file(path: Path, where: str) -> ModuleType:
    """Import a Python file by its path; modules beside it can be imported by it, as by a script.

    Args:
        path: The file.
        where: What names the file, for error messages.

    Raises:
        ConfigError: There is no such file, another module has its name, or its import fails.
    """
    if not path.is_file():
        raise ConfigError(f"{where}: {path}: no such file")
    if "." in path.stem:
        raise ConfigError(f"{where}: the name of a Python file has no dot but that of .py", hint="rename the file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _import(path.stem, where)
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise ConfigError(f"{where}: another module has the name {path.stem!r}", hint="rename the file")
    return module


def imported_digests(**names: str) -> dict[str, str]:
    """Return the SHA-256 of the files behind those of some names that are code of a user.

    Args:
        names: Names of functions by what they are, such as backbone="net.py:small". This process has imported them.
    """
    return {kind: digest for kind, name in names.items() if (digest := imported_digest(name)) is not None}


def imported_digest(name: str) -> str | None:
    """Return the SHA-256 of the file behind a function that this process has imported; None for any other name."""
    return _IMPORTED[name].sha256 if name in _IMPORTED else None


def renamed(recorded: str, sha256: str | None, named: str | None, *, where: str, python: bool = False) -> str:
    """Return the name under which the code behind some weights may be imported.

    Args:
        recorded: The name that stands beside the weights.
        sha256: The digest that stands beside them, or None.
        named: What the user named, or None. It may be at another place than when the weights were made.
        where: What the weights are called in errors.
        python: Whether the hint is an argument of `load_backbone`, not an option of the command line.

    Returns:
        `recorded` if it is no code of a user, otherwise `named`. A warning says if the file has changed.

    Raises:
        ConfigError: The weights belong to code that the user has not named, or the code cannot be imported.
    """
    if not is_reference(recorded):
        return recorded
    if named is None or not is_reference(named):
        option = f"--set {shlex.quote(f'backbone.name={recorded}')}"
        hint = f"pass backbone={recorded!r} to load_backbone" if python else f"add {option}"
        raise ConfigError(
            f"{where}: its backbone is code of a user, {redacted(recorded)}, which is imported only if you name it",
            hint=f"{hint}, or another place of that code",
        )
    now = import_function(named, "backbone.name").sha256
    if sha256 is not None and now != sha256:
        text = f"{where}: {redacted(named)} is another file than the weights were saved with; their features may differ"
        warnings.warn(text, UserWarning, stacklevel=1)
    return named


@contextmanager
def failures_of(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line that says where it was raised.

    Args:
        what: What the line starts with: option and value.

    Raises:
        ConfigError: With the class, the first line of the text and the place of the error. Errors of rhofast pass.
    """
    try:
        yield
    except RhofastError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what}: {_described(error)}") from error


def _import(name: str, where: str) -> ModuleType:
    try:
        with failures_of(where):
            return importlib.import_module(name)
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            hint = f"install it or add its folder to PYTHONPATH, or use {FORMS.split(' or ')[1]}"
            raise ConfigError(f"{where}: there is no module {cause.name!r}", hint=hint) from None
        raise ConfigError(f"{error.message.replace(where, f'{where}: its import fails', 1)}") from cause


def _described(error: BaseException) -> str:
    """Return class and text of an error in one line, and the file and line that raised it."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    every = list(traceback.extract_tb(error.__traceback__))
    frames = [frame for frame in every if not frame.filename.startswith(_LIBRARIES)] or every
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):  # its text names file and line
        at = ""
    return f"{type(error).__name__}: {text}{at}" if text else f"{type(error).__name__}{at}"
