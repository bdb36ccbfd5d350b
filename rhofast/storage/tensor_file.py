"""Read safetensors files that somebody else may have written.

    8 bytes: length of the header | the header, JSON: name -> dtype, shape, place | the bytes of the tensors

The header is checked before the file is loaded: its size is limited, and every tensor must lie within the file. So
nothing is allocated that the file does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rhofast.errors import RhofastError
from rhofast.storage.files import open_regular
from rhofast.storage.strict_json import parse_record

_LENGTH_BYTES = 8
_MAX_HEADER = 8 << 20  # bytes; a thousand tensors take 100 kB
_MAX_DIMENSIONS = 8
_MAX_LENGTH = 1 << 48


class TensorEntry(BaseModel):
    """What a header says about one tensor.

    Attributes:
        dtype: Its type of number.
        shape: Its length in each dimension.
        data_offsets: Where its bytes begin and end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dtype: Literal["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64"]
    shape: list[int] = Field(max_length=_MAX_DIMENSIONS)
    data_offsets: list[int] = Field(min_length=2, max_length=2)


class TensorHeader(BaseModel):
    """The header of a file.

    Attributes:
        metadata: The texts of the file, by name.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, TensorEntry]

    metadata: dict[str, str] = Field(alias="__metadata__", default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """The tensors by name."""
        return self.__pydantic_extra__


def read_tensor_header(path: Path, *, raises: type[RhofastError], hint: str | None = None) -> TensorHeader:
    """Read and check the header of a safetensors file.

    Args:
        path: The file.
        raises: Class of the errors.
        hint: Remedy that the errors name.

    Raises:
        RhofastError: An error of class `raises`: the file cannot be read, or is no safetensors file.
    """
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise raises(
                    f"{path}: cannot be read: not a safetensors file (its header would have {length} bytes)", hint=hint
                )
            content = file.read(length)
            size = file.seek(0, 2) - _LENGTH_BYTES - length
    except (OSError, ValueError) as error:
        raise raises(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}", hint=hint) from None
    if len(content) < length:
        raise raises(f"{path}: cut short within its header", hint=hint)
    header = parse_record(content, TensorHeader, where=f"{path}: header", raises=raises, hint=hint)
    for name, entry in header.tensors.items():
        begin, end = entry.data_offsets
        if not 0 <= begin <= end <= size:
            raise raises(f"{path}: {name[:80]!a} lies outside the file, which was cut short", hint=hint)
        if any(not 0 <= side < _MAX_LENGTH for side in entry.shape):
            raise raises(f"{path}: {name[:80]!a} has an impossible shape", hint=hint)
    return header


def read_tensors(path: Path, *, raises: type[RhofastError], hint: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file to the CPU.

    Args:
        path: The file.
        raises: Class of the errors.
        hint: Remedy that the errors name.

    Raises:
        RhofastError: An error of class `raises`: the file cannot be read, or is no safetensors file.
    """
    read_tensor_header(path, raises=raises, hint=hint)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise raises(f"{path}: cannot be read: {' '.join(str(error).split())}", hint=hint) from None
