"""The content of `dataset.json`: what a shard set is, and which shards it consists of.

A stranger may have written the file, so it is read strictly: every value has the right type and range, and no name of a
shard leads out of the folder of the set.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from rhofast.config.section import Section
from rhofast.data.codecs import build_codec
from rhofast.data.format.index import VERSION
from rhofast.data.format.index_rows import IndexFacts
from rhofast.errors import ConfigError, ShardFormatError
from rhofast.storage.strict_json import parse_record

MAX_CODECS = 256  # places that the index can name
MAX_DATASET_BYTES = 64 << 20  # of dataset.json: some 200,000 shards

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # no name leads out of the folder of the set
_Size = Annotated[int, Field(ge=0, lt=1 << 60)]
_Rows = Annotated[int, Field(ge=1, lt=1 << 31)]
_Frames = Annotated[int, Field(ge=1, lt=1 << 44)]
_Seconds = Annotated[float, Field(ge=0, le=1e15)]
_Several = Annotated[int, Field(ge=0)]


class ShardInfo(Section):
    """One shard as `dataset.json` lists it.

    Attributes:
        name: Name of its files without the suffix (`shard-000000`).
        samples: Number of samples.
        frames: Number of frames of all samples.
        seconds: Duration of all samples.
        bytes: Size of the tar.
        index_bytes: Size of the index.
        tar_sha256: SHA-256 of the tar, hexadecimal.
        index_sha256: SHA-256 of the index, hexadecimal.
    """

    name: str
    samples: _Rows
    frames: _Frames
    seconds: _Seconds
    bytes: _Size
    index_bytes: _Size
    tar_sha256: str
    index_sha256: str

    @property
    def tar(self) -> str:
        """The file name of the tar."""
        return f"{self.name}.tar"

    @property
    def index(self) -> str:
        """The file name of the index."""
        return f"{self.name}.arrow"


class DatasetInfo(Section):
    """The content of `dataset.json`.

    Attributes:
        format: Constant that marks the file as the description of a shard set.
        version: Version of the format.
        name: Name of the data set.
        split: Name of the split.
        codecs: Name and settings of each storage codec; a sample names its own by its place in this list.
        transcode: Settings with which videos were converted to the codecs.
        encoders: Versions of the ffmpeg programs that converted them.
        classes: Name of each class, by label; empty for a data set without labels.
        shards: The shards, in the order in which samples are numbered.
        refused: Number of refused sources for each reason.
        build: Digest of the list of sources and of the settings.
    """

    format: Literal["rhofast-shards"] = "rhofast-shards"
    version: Literal[2] = 2
    name: str
    split: str
    codecs: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_CODECS)]
    transcode: dict[str, Any] = Field(default_factory=dict)
    encoders: list[str] = Field(default_factory=list)
    classes: list[str]
    shards: list[ShardInfo]
    refused: dict[str, _Several]
    build: str

    @field_validator("shards")
    @classmethod
    def _names_are_of_files(cls, shards: list[ShardInfo]) -> list[ShardInfo]:
        for shard in shards:
            if not _NAME.fullmatch(shard.name):
                raise ValueError(f"{shard.name[:200]!a} is not a name of a shard")
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("two shards have the same name")
        return shards

    @property
    def num_samples(self) -> int:
        """Number of samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def num_frames(self) -> int:
        """Number of frames of all shards."""
        return sum(shard.frames for shard in self.shards)

    @property
    def seconds(self) -> float:
        """Duration of all samples in seconds."""
        return sum(shard.seconds for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Size of all tars in bytes."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """Digest of the content, 64 hexadecimal characters. Equal digests mean equal samples in equal order."""
        text = json.dumps([self.version, [(shard.samples, shard.index_sha256) for shard in self.shards]])
        return hashlib.sha256(text.encode()).hexdigest()


class _Header(BaseModel):
    """What every version of `dataset.json` has."""

    format: Any = None
    version: Any = None


def parse_dataset(content: bytes, where: str) -> DatasetInfo:
    """Parse a `dataset.json`.

    Args:
        content: The bytes of the file.
        where: Name of the file in messages.

    Returns:
        Its content.

    Raises:
        ShardFormatError: The content is not valid, or of another format or version.
    """
    try:
        info = parse_record(content, DatasetInfo, where=where, raises=ShardFormatError)
        for settings in info.codecs:
            build_codec(settings)
        return info
    except ConfigError as error:
        raise ShardFormatError(f"{where}: {error.message[:300]}", hint=error.hint) from None
    except ShardFormatError as error:
        header = parse_record(content, _Header, where=where, raises=ShardFormatError)
        if header.format != "rhofast-shards":
            raise ShardFormatError(f"{where}: not the description of a rhofast shard set") from None
        if header.version != VERSION:
            raise ShardFormatError(
                f"{where}: format version {ascii(header.version)[:20]}, but this rhofast reads version {VERSION}",
                hint="install the rhofast that wrote the set, or make the shards again: rhofast shard SOURCE OUT",
            ) from None
        raise error from None


def index_facts(shard: ShardInfo, info: DatasetInfo) -> IndexFacts:
    """Return what `dataset.json` says of a shard's index.

    Args:
        shard: The shard.
        info: The content of `dataset.json`.
    """
    return IndexFacts(
        samples=shard.samples,
        num_bytes=shard.index_bytes,
        sha256=shard.index_sha256,
        tar_bytes=shard.bytes,
        num_classes=len(info.classes),
        codecs=tuple(build_codec(settings) for settings in info.codecs),
    )
