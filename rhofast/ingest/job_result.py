"""The files that say what became of videos: the result file of a job, and refused.jsonl.

A stranger may have written them, and a crash of the machine may have left any bytes: both are read strictly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rhofast.config.section import Section
from rhofast.data.format.dataset_json import ShardInfo
from rhofast.errors import IngestError
from rhofast.storage.files import write_atomically
from rhofast.storage.strict_json import read_lines, read_record

REFUSED_FILE = "refused.jsonl"
_MAX_BYTES = 256 << 20  # of a result file: some 100,000 refused videos with all details

State = list[Annotated[int | float | str | None, Field(union_mode="left_to_right")]] | None


class RefusedSource(Section):
    """A video that did not become a sample.

    Attributes:
        key: The key that its sample would have had.
        path: Where it is, as it may be stored and shown.
        reason: The kind of reason; see `Refusal`.
        detail: What exactly was wrong.
    """

    key: str
    path: str
    reason: str
    detail: str

    def line(self) -> str:
        """Return the line of refused.jsonl."""
        return json.dumps(self.model_dump()) + "\n"


class ShardResult(Section):
    """What a job made.

    Attributes:
        digest: Digest of everything that decides the result, except the content of the sources.
        shard: The shard; None if every source was refused.
        refused: The refused sources.
        states: What `source_state` returned for each source before it was read.
    """

    digest: str
    states: list[State]
    shard: ShardInfo | None
    refused: list[RefusedSource]

    def write(self, path: Path) -> None:
        """Write the result file.

        Raises:
            OSError: It cannot be written.
        """
        write_atomically(path, json.dumps(self.model_dump()))


def read_result(path: Path) -> ShardResult | None:
    """Return what the result file of a job says; None if it is missing or is none: the job is then not done."""
    try:
        return read_record(path, ShardResult, raises=IngestError, max_bytes=_MAX_BYTES)
    except IngestError:
        return None


def read_refused(path: Path) -> Iterator[RefusedSource]:
    """Yield the lines of a refused.jsonl.

    Raises:
        IngestError: The file is missing or cannot be read, or a line does not fit.
    """
    return read_lines(path, RefusedSource, raises=IngestError, hint="restore the file as `rhofast shard` wrote it")
