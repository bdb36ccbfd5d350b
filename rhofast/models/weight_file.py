"""Read weight files of other programs: safetensors, and files of torch (.pth, .pyth, .pt, .bin), by strangers.

Beside a safetensors file or a .bin, `config.json` describes the network, as transformers and timm write it, and
`preprocessor_config.json` its input, as transformers does.

Torch itself refuses to run pickled code (`weights_only`). What it would still do for a hostile file is checked before:
it unpacks compressed entries, and allocates what a pickle asks for. So an archive must hold its entries uncompressed,
as torch writes them, and a pickle may name nothing but tensors, their storages, dicts, and the command line arguments
(argparse.Namespace) that VideoMAE stores.
"""

from __future__ import annotations

import argparse
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from rhofast.errors import ConfigError
from rhofast.storage.files import open_regular
from rhofast.storage.strict_json import read_record
from rhofast.storage.tensor_file import read_tensors

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_PROCESSORS = (f"video_{PROCESSOR}", PROCESSOR)
_DESCRIBED = (".safetensors", ".bin")
_ZIP = b"PK\x03\x04"
_MAX_ENTRIES = 100_000
_MAX_PICKLE = 64 << 20  # bytes
_MAX_OPCODES = 2_000_000
_LEGACY_PICKLES = 5  # magic number, version, facts about the system, the content, names of the storages
# What the pickle of a checkpoint may name. Torch would take more, and some of that allocates memory by a number alone.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch Size|torch device|torch [A-Za-z]+Storage|torch(\.storage)? (Untyped|Typed)Storage|"
    r"torch b?(float|int|uint)\d+|torch bool|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|"
    r"torch\.nn\.parameter Parameter|builtins (set|complex)|argparse Namespace"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """A file of weights.

    Attributes:
        path: The file.
        content: What is in it: the tensors of a safetensors file by name, or the dict of a file of torch.
        config: The content of the `config.json` beside it; empty if there is none.
        processor: The content of transformers' description of the input beside it; empty if there is none.
    """

    path: Path
    content: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)


class _Refused(Exception):  # noqa: N818 - a reason, not an error of the program
    """A name in a pickle that is not needed for weights."""


def open_weights(path: Path) -> WeightFile:
    """Read a file of weights, and what lies beside it.

    Args:
        path: The file. Its suffix says whether it is a safetensors file.

    Raises:
        ConfigError: It cannot be read, or not without running code.
    """
    config = _described(path, (CONFIG,))
    processor = _described(path, _PROCESSORS)
    content = read_tensors(path, raises=ConfigError) if path.suffix == ".safetensors" else read_weights(path)
    return WeightFile(path=path, content=content, config=config, processor=processor)


def _described(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the content of the first of some JSON files that lies beside a file; nothing if there is none."""
    found = [path.parent / name for name in names if (path.parent / name).exists()]
    if not found or path.suffix not in _DESCRIBED:
        return {}
    return read_record(found[0], dict[str, Any], raises=ConfigError)


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file with torch.load without running any code that is pickled in it.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ConfigError: The file cannot be read so, or does not hold a dict.
    """
    try:
        with open_regular(path) as file:
            _check(file)
            file.seek(0)
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")  # about what a damaged file seems to be
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _Refused as error:
        raise _needs_code(path, str(error)) from None
    # Which error the restricted unpickler raises for a file of another kind depends on its first bytes.
    except Exception as error:  # noqa: BLE001
        found = re.search(r"GLOBAL ([\w.]{1,200})", str(error))
        if found is not None:
            raise _needs_code(path, found[1]) from None
        # Torch's own message guesses at the cause and advises to read the file without the restriction.
        raise ConfigError(
            f"{path}: cannot be read as a checkpoint of torch", hint="it is another kind of file, or was cut short"
        ) from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}, not a checkpoint")
    return loaded


def _needs_code(path: Path, name: str) -> ConfigError:
    return ConfigError(
        f"{path}: refused: to read it, code pickled in it would have to run ({name})",
        hint="if you trust it, save only its tensors: torch.save({'model_state': ...}, path)",
    )


def _check(file: BinaryIO) -> None:
    """Raise an exception if reading a file could take more than the file holds, or anything but tensors."""
    begins = file.read(len(_ZIP))
    file.seek(0)
    if begins != _ZIP:
        count = 0
        for _ in range(_LEGACY_PICKLES):
            count = _check_pickle(file, count)
        return
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries) > size:
            raise ValueError("holds more than its size")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("is compressed")
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _MAX_PICKLE:
                    raise ValueError("its pickle is too large")
                with archive.open(entry) as pickled:
                    _check_pickle(pickled, 0)


def _check_pickle(file: IO[bytes], count: int) -> int:
    """Check the next pickle of a file, and return the number of opcodes so far.

    Args:
        file: The file.
        count: Number of opcodes before this pickle.
    """
    for opcode, argument, _ in pickletools.genops(file):
        count += 1
        if count > _MAX_OPCODES:
            raise ValueError("its pickle has too many parts")
        if opcode.name == "STACK_GLOBAL":
            raise ValueError("torch does not read this version of pickles")
        if opcode.name in ("GLOBAL", "INST") and not _HARMLESS.fullmatch(str(argument)):
            raise _Refused(str(argument).replace(" ", ".")[:200])
    return count
